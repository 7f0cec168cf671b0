"""The API's certificate: its TLS context, which follows changes of the files, and when it expires."""

import asyncio
import logging
import ssl
from datetime import UTC, datetime, timedelta
from pathlib import Path

from worker_agent.connections.certificates import expiry, read_certificate

log = logging.getLogger(__name__)
EXPOSED = "the API listens beyond this machine without TLS, so keys cross the network in clear"
EXPOSED_REMEDY = (
    "set CONVENER_TLS_CERTIFICATE and CONVENER_TLS_KEY (`convener tls create` makes them), "
    "or CONVENER_ALLOW_PLAIN_HTTP=true behind a proxy with TLS"
)
WARN_BEFORE = timedelta(days=14)
_LOOK_EVERY_SECONDS = 10.0
_WARN_EVERY_SECONDS = 86_400.0


class UnusableCertificate(Exception):
    """The files of the certificate and its key cannot be served."""


class ServerCertificate:
    """A certificate and its key in files; `context` serves what was last read whole."""

    def __init__(self, certificate: Path, key: Path) -> None:
        """Raises UnusableCertificate."""
        self._files = (certificate, key)
        self.context, self.expires_at = _load(certificate, key)
        self._stamps = self._look()
        self._warned_at = -_WARN_EVERY_SECONDS

    async def follow(self) -> None:
        """Take over renewed files, and warn daily of a certificate that is about to expire, until cancelled."""
        while True:
            self.warn(asyncio.get_running_loop().time())
            await asyncio.sleep(_LOOK_EVERY_SECONDS)
            self.reload_if_changed()

    def reload_if_changed(self) -> bool:
        """Use the files for new connections if they are others than before, and fit each other."""
        stamps = self._look()
        if stamps == self._stamps:
            return False
        self._stamps = stamps
        certificate, key = self._files
        try:
            # Tried in a context of its own: half of a renewal must not end up in the one that serves.
            _, expires_at = _load(certificate, key)
            self.context.load_cert_chain(certificate, key)
        except (UnusableCertificate, OSError) as error:
            log.warning("the changed certificate cannot be used, the former one is served: %s", error)
            return False
        self.expires_at, self._warned_at = expires_at, -_WARN_EVERY_SECONDS
        log.info("serving a changed certificate, valid until %s", expires_at.isoformat())
        return True

    def warn(self, seconds: float) -> None:
        """Log a certificate that expires soon, once a day by this clock."""
        if seconds - self._warned_at >= _WARN_EVERY_SECONDS and (problem := expiry_problem(self.expires_at)):
            self._warned_at = seconds
            log.warning("%s", problem)

    def _look(self) -> tuple[tuple[int, int, int] | None, ...]:
        return tuple(_stamp(file) for file in self._files)


def served_certificate(certificate: Path | None, key: Path | None) -> ServerCertificate | None:
    """The certificate that these settings name. Raises UnusableCertificate."""
    return None if certificate is None or key is None else ServerCertificate(certificate, key)


def expiry_problem(expires_at: datetime) -> str | None:
    """A sentence about a certificate that has expired or will within 14 days; None for one that is good."""
    left = expires_at - datetime.now(UTC)
    if left > WARN_BEFORE:
        return None
    verb = "has expired" if left < timedelta() else "expires"
    return f"the TLS certificate {verb} at {expires_at.isoformat()}; a renewed file is taken over without a restart"


def _load(certificate: Path, key: Path) -> tuple[ssl.SSLContext, datetime]:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    try:
        context.load_cert_chain(certificate, key)
        return context, expiry(read_certificate(certificate))
    except (OSError, ValueError) as error:
        cause = (error.reason or "not in PEM form") if isinstance(error, ssl.SSLError) else error
        message = f"{certificate} and {key} are no certificate with its key: {cause}"
        raise UnusableCertificate(f"{message}; `convener tls create` makes such a pair") from None


def _stamp(file: Path) -> tuple[int, int, int] | None:
    try:
        status = file.stat()
    except OSError:
        return None
    return status.st_ino, status.st_size, status.st_mtime_ns
