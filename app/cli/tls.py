"""`convener tls`: a private authority and a certificate for the API, where there is no authority to ask."""

import ipaddress
import os
import re
import secrets
import subprocess
import tempfile
from pathlib import Path
from typing import Annotated

import typer
from rich.text import Text

from app.terminal import output
from app.terminal.failures import ExitCode, Failure
from app.terminal.output import Format, Output
from worker_agent.connections.trust import certificate_pin

app = typer.Typer(
    help="Make certificates for the API.",
    no_args_is_help=True,
)
_NAME = re.compile(r"(?!-)[A-Za-z0-9-]{1,63}(\.[A-Za-z0-9-]{1,63})*")
_AUTHORITY_DAYS = 3650
# Sections of openssl's configuration; the authority may sign certificates and no further authorities.
_CONFIGURATION = """\
[req]
distinguished_name = name
prompt = no
[name]
CN = {name}
[authority]
basicConstraints = critical, CA:TRUE, pathlen:0
keyUsage = critical, keyCertSign, cRLSign
subjectKeyIdentifier = hash
[server]
basicConstraints = critical, CA:FALSE
keyUsage = critical, digitalSignature
extendedKeyUsage = serverAuth
subjectKeyIdentifier = hash
authorityKeyIdentifier = keyid
subjectAltName = {alternatives}
"""


@app.command(
    epilog=output.examples(
        "convener tls create lab.example.org 10.1.2.3", "convener tls create localhost --directory tls --days 90"
    )
)
def create(
    names: Annotated[list[str], typer.Argument(metavar="NAME...", help="host names and addresses of the API")],
    directory: Annotated[Path, typer.Option(help="where the files go; existing keys are kept")] = Path("tls"),
    days: Annotated[int, typer.Option(help="days until the certificate expires", min=1, max=825)] = 365,
    fmt: Output = Format.TABLE,
) -> None:
    """Make ca.pem, server.pem and server.key, or renew server.pem; the pin stays the same as long as the key does.

    Programs that connect need ca.pem (--ca-file) or the pin (--pin). Keep ca.key where nobody else can read it.
    """
    alternatives = ", ".join(_alternative(name) for name in names)
    directory.mkdir(mode=0o700, parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as scratch:
        configuration = Path(scratch) / "openssl.cnf"
        if not (directory / "ca.pem").exists():
            configuration.write_text(_CONFIGURATION.format(name="Convener authority", alternatives=alternatives))
            _make_authority(directory, configuration)
        configuration.write_text(_CONFIGURATION.format(name="Convener", alternatives=alternatives))
        _sign(directory, configuration, days)
    _report(directory.absolute(), fmt)


def _alternative(name: str) -> str:
    try:
        return f"IP:{ipaddress.ip_address(name)}"
    except ValueError:
        pass
    if len(name) > 253 or not _NAME.fullmatch(name):
        raise Failure(f"{name!r} is neither a host name nor an address", ExitCode.USAGE)
    return f"DNS:{name}"


def _make_authority(directory: Path, configuration: Path) -> None:
    _make_key(directory / "ca.key")
    common = ("-config", str(configuration), "-extensions", "authority", "-days", str(_AUTHORITY_DAYS))
    _openssl("req", "-x509", "-new", "-key", directory / "ca.key", "-out", directory / "ca.pem", *common)


def _sign(directory: Path, configuration: Path, days: int) -> None:
    if not (directory / "server.key").exists():
        _make_key(directory / "server.key")
    request, certificate = configuration.with_name("server.csr"), configuration.with_name("server.pem")
    _openssl("req", "-new", "-key", directory / "server.key", "-config", configuration, "-out", request)
    authority = ("-CA", directory / "ca.pem", "-CAkey", directory / "ca.key")
    extensions = ("-extfile", configuration, "-extensions", "server")
    serial = ("-set_serial", f"0x{secrets.token_hex(16)}", "-days", str(days))
    _openssl("x509", "-req", "-in", request, "-out", certificate, *authority, *extensions, *serial)
    # In one step, because an API that is running may read the file at any moment.
    new = directory / "server.pem.new"
    new.write_bytes(certificate.read_bytes())
    new.replace(directory / "server.pem")


def _make_key(file: Path) -> None:
    _openssl("genpkey", "-algorithm", "EC", "-pkeyopt", "ec_paramgen_curve:P-256", "-out", file)


def _openssl(*words: str | Path) -> None:
    former = os.umask(0o077)
    try:
        command = ["openssl", *map(str, words)]
        done = subprocess.run(command, check=False, capture_output=True, text=True, stdin=subprocess.DEVNULL)
    except FileNotFoundError:
        raise Failure(
            "the program openssl is not installed", ExitCode.REFUSED, hint="install it, or ask your own authority"
        ) from None
    finally:
        os.umask(former)
    if done.returncode:
        raise Failure("openssl has failed", ExitCode.REFUSED, details=done.stderr.splitlines()[:5])


def _report(directory: Path, fmt: Format) -> None:
    made = {
        "tls_certificate": str(directory / "server.pem"),
        "tls_key": str(directory / "server.key"),
        "ca_file": str(directory / "ca.pem"),
        "pin": certificate_pin(directory / "server.pem"),
    }
    if fmt is Format.JSON:
        output.write_json(made)
        return
    lines = [
        f"API       CONVENER_TLS_CERTIFICATE={made['tls_certificate']} CONVENER_TLS_KEY={made['tls_key']}",
        f"clients   CONVENER_CA_FILE={made['ca_file']}",
        f"or        CONVENER_TLS_PIN={made['pin']}",
    ]
    output.show(Text("\n".join(lines)))
