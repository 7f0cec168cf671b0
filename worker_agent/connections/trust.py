"""Settings and TLS contexts that decide which servers may see a key: public or private authorities, and pins."""

import hmac
import re
import ssl
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from worker_agent.connections.certificates import public_key_digest, read_certificate

TRUST_VARIABLES = ("CONVENER_CA_FILE", "CONVENER_TLS_PIN", "CONVENER_ALLOW_PLAIN_HTTP", "CONVENER_PROXY")
_PIN = re.compile(r"sha256:[0-9a-f]{64}")
_YES = {"1": True, "true": True, "yes": True, "": False, "0": False, "false": False, "no": False}


@dataclass(frozen=True, slots=True, kw_only=True)
class Trust:
    """Servers that may see a key; without file and pins those that the authorities of the system vouch for.

    A pin is `sha256:` and the digest of a public key; with pins alone the certificate needs no authority, and its name
    and dates are not looked at. `proxy` is used only when it is set here: variables such as HTTPS_PROXY are ignored.
    """

    ca_file: Path | None = None
    pins: frozenset[str] = frozenset()
    allow_plain_http: bool = False
    proxy: str | None = None

    def context(self) -> ssl.SSLContext:
        """A context for clients. Raises OSError for an unusable file of authorities."""
        context = _PinningContext(ssl.PROTOCOL_TLS_CLIENT)
        context.minimum_version = ssl.TLSVersion.TLSv1_2
        context.pins = self.pins
        if self.ca_file is not None:
            context.load_verify_locations(self.ca_file)
        elif self.pins:
            context.check_hostname = False
            context.verify_mode = ssl.CERT_NONE
        else:
            context.load_default_certs()
        return context


SYSTEM_TRUST = Trust()


def read_trust(environment: Mapping[str, str]) -> Trust:
    """Read CONVENER_CA_FILE, _TLS_PIN, _ALLOW_PLAIN_HTTP and _PROXY. Raises ValueError that names the variable."""
    words = environment.get("CONVENER_TLS_PIN", "").replace(",", " ").split()
    pins = frozenset(word.lower().replace("sha-256:", "sha256:") for word in words)
    if wrong := sorted(pin for pin in pins if not _PIN.fullmatch(pin)):
        raise ValueError(f"CONVENER_TLS_PIN: {wrong[0]!r} is not sha256: and 64 hexadecimal digits")
    file = environment.get("CONVENER_CA_FILE", "").strip()
    if file:
        _check_authorities(Path(file))
    word = environment.get("CONVENER_ALLOW_PLAIN_HTTP", "").strip().lower()
    if word not in _YES:
        raise ValueError(f"CONVENER_ALLOW_PLAIN_HTTP must be true or false, not {word!r}")
    return Trust(
        ca_file=Path(file) if file else None,
        pins=pins,
        allow_plain_http=_YES[word],
        proxy=environment.get("CONVENER_PROXY", "").strip() or None,
    )


def _check_authorities(file: Path) -> None:
    try:
        ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT).load_verify_locations(file)
    except OSError as error:
        cause = "holds no certificate in PEM form" if isinstance(error, ssl.SSLError) else error.strerror
        raise ValueError(f"CONVENER_CA_FILE: {file}: {cause}") from None


def certificate_pin(file: Path) -> str:
    """The pin of the first certificate in a PEM file. Raises OSError, ValueError."""
    return f"sha256:{public_key_digest(read_certificate(file))}"


class _PinnedSocket(ssl.SSLSocket):
    def do_handshake(self, block: bool = False) -> None:
        super().do_handshake(block)
        _check_pins(self, self.context)


class _PinnedObject(ssl.SSLObject):
    def do_handshake(self) -> None:
        super().do_handshake()
        _check_pins(self, self.context)


class _PinningContext(ssl.SSLContext):
    """Checks the pins as part of the handshake, so that nothing is sent to a server with another key."""

    pins: frozenset[str] = frozenset()
    sslsocket_class = _PinnedSocket
    sslobject_class = _PinnedObject


def _check_pins(connection: ssl.SSLSocket | ssl.SSLObject, context: Any) -> None:
    if not context.pins:
        return
    certificate = connection.getpeercert(binary_form=True)
    try:
        pin = f"sha256:{public_key_digest(certificate or b'')}"
    except ValueError:
        pin = "none"
    if not any(hmac.compare_digest(pin, allowed) for allowed in context.pins):
        raise ssl.SSLCertVerificationError(1, f"certificate verify failed: its key is {pin}, which is not pinned")
