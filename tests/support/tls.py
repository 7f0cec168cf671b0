"""Certificates of authorities of a test's own, and servers that show them."""

import os
import socket
import ssl
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path

import trustme

from worker_agent.connections.certificates import public_key_digest, read_certificate

# In the place of an encrypted record, which no client takes it for.
ALERT_IN_CLEAR = b"\x15\x03\x03\x00\x02\x02\x28"


@dataclass(frozen=True, slots=True, kw_only=True)
class Certificate:
    """Files of a certificate, its key, and the authority that vouches for it."""

    certificate: Path
    key: Path
    ca_file: Path

    @property
    def pin(self) -> str:
        return f"sha256:{public_key_digest(read_certificate(self.certificate))}"

    def context(self) -> ssl.SSLContext:
        """What a server shows."""
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(self.certificate, self.key)
        return context


def issue(
    directory: Path, *names: str, authority: trustme.CA | None = None, not_after: datetime | None = None
) -> Certificate:
    """A certificate for these names (`localhost` and 127.0.0.1 by default), in files of a directory."""
    authority = authority or trustme.CA()
    directory.mkdir(parents=True, exist_ok=True)
    made = authority.issue_cert(*(names or ("localhost", "127.0.0.1")), not_after=not_after)
    files = Certificate(
        certificate=directory / "server.pem", key=directory / "server.key", ca_file=directory / "ca.pem"
    )
    made.cert_chain_pems[0].write_to_path(files.certificate)
    made.private_key_pem.write_to_path(files.key)
    files.key.chmod(0o600)
    authority.cert_pem.write_to_path(files.ca_file)
    return files


@dataclass(slots=True, kw_only=True)
class Listener:
    """Keeps all that arrives in clear: what is read after the handshake, or from a plain connection."""

    port: int
    received: list[bytes] = field(default_factory=list)


@contextmanager
def listening(
    context: ssl.SSLContext | None,
    answer: bytes = b"HTTP/1.1 204 No Content\r\n\r\n",
    port: int = 0,
    *,
    beneath: bytes = b"",
) -> Iterator[Listener]:
    """A server on loopback that answers every request with the same bytes, and more `beneath` the encryption."""
    server = socket.create_server(("127.0.0.1", port))
    listener = Listener(port=server.getsockname()[1])

    def serve() -> None:
        while True:
            try:
                connection, _ = server.accept()
            except OSError:
                return
            # Both, as a wrapped socket has taken the descriptor of the other one over.
            with suppress(OSError), connection:
                connection.settimeout(5)
                with connection if context is None else context.wrap_socket(connection, server_side=True) as stream:
                    if data := stream.recv(65_536):
                        listener.received.append(data)
                        stream.sendall(answer)
                        os.write(stream.fileno(), beneath)

    thread = threading.Thread(target=serve, daemon=True)
    thread.start()
    try:
        yield listener
    finally:
        server.shutdown(socket.SHUT_RDWR)
        server.close()
        thread.join(10)
