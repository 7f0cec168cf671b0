"""Serves a relay at one address: loopback or a unix socket, until it is stopped."""

import asyncio
import ipaddress
import logging
import signal
import socket
from dataclasses import dataclass
from pathlib import Path
from types import FrameType

import uvicorn

from app import garbage_collection
from app.http.bounds import BoundedHeads
from app.http.connection_room import raise_limits
from app.http.quiet_server import QuietServer
from app.http.sockets import SocketTaken, UnixSocket
from app.relay.exchange import ExchangePolicy
from app.relay.gateway import Gateway
from app.relay.upstream import Upstream
from worker_agent.connections.clients import MAX_SOCKET_PATH_BYTES, socket_path
from worker_agent.connections.trust import Trust

log = logging.getLogger(__name__)
# Of a shutdown: for calls under way, for uvicorn to close connections, and until the process is killed.
_DRAIN_SECONDS, _GRACE_SECONDS, _END_SECONDS = 3.0, 1, 4.9
_MAX_UPSTREAM_CONNECTIONS = 4096


class UnusableAddress(Exception):
    """The address cannot be listened on; the message says why, and what to do."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Listen:
    """An address to listen on: a unix socket, or a host with a port."""

    path: Path | None = None
    host: str = ""
    port: int = 0

    @property
    def is_local(self) -> bool:
        """Whether only programs of this machine reach it."""
        return self.path is not None or self.host == "localhost" or _is_loopback(self.host)


def read_listen(text: str) -> Listen:
    """Read `unix:/path`, or HOST:PORT as in `127.0.0.1:8770` and `[::1]:8770`. Raises UnusableAddress."""
    path = socket_path(text)
    if path is not None:
        if not path.startswith("/") or len(path.encode()) > MAX_SOCKET_PATH_BYTES:
            raise UnusableAddress(f"{text!r} is no unix: and an absolute path of {MAX_SOCKET_PATH_BYTES} bytes at most")
        return Listen(path=Path(path))
    host, _, port = text.rpartition(":")
    host = host.removeprefix("[").removesuffix("]")
    if not host or not (port.isascii() and port.isdigit()) or int(port) > 65535:
        raise UnusableAddress(f"{text!r} is not an address like 127.0.0.1:8770, [::1]:8770 or unix:/run/relay.sock")
    return Listen(host=host, port=int(port))


def serve(url: str, trust: Trust, listen: Listen) -> None:
    """Serve until SIGTERM or SIGINT. Raises UnusableAddress, and ValueError or OSError for `url` and `trust`."""
    limits = raise_limits()
    # Both sides of the relay take files.
    max_connections = BoundedHeads.room.max_connections = max(16, limits.open // 2)
    upstream = Upstream(url, trust, max_connections=min(max_connections, _MAX_UPSTREAM_CONNECTIONS))
    gateway = Gateway(upstream, ExchangePolicy())
    unix_socket, listener, place = _listen(listen)
    config = uvicorn.Config(
        gateway,
        http=BoundedHeads,
        ws="none",
        lifespan="off",
        access_log=False,
        log_config=None,
        timeout_graceful_shutdown=_GRACE_SECONDS,
        timeout_keep_alive=75,
        backlog=limits.waiting,
        server_header=False,
        proxy_headers=False,
    )
    server = _Server(config, gateway)
    for number in (signal.SIGTERM, signal.SIGINT):
        # Also before uvicorn listens to them, and when it raises them again at its end: then they change nothing.
        signal.signal(number, server.handle_exit)
    garbage_collection.settle()
    # It tells, with a trace each, of answers that end early because one side hung up, which we have told of.
    logging.getLogger("uvicorn.error").setLevel(logging.CRITICAL)
    log.info("relaying %s to %s", place, url)
    try:
        with asyncio.Runner(loop_factory=config.get_loop_factory()) as runner:
            runner.run(server.serve(sockets=[listener]))
    finally:
        if unix_socket is not None:
            unix_socket.remove()
    log.info("stopped")


class _Server(QuietServer):
    """Answers what is under way before it closes."""

    def __init__(self, config: uvicorn.Config, gateway: Gateway) -> None:
        super().__init__(config)
        self._gateway = gateway

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """Stop in order; whatever hangs ends with the process."""
        signal.setitimer(signal.ITIMER_REAL, _END_SECONDS)
        super().handle_exit(sig, frame)

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Stop the gateway, then do uvicorn's."""
        for server in self.servers:
            server.close()
        await self._gateway.stop(_DRAIN_SECONDS)
        await super().shutdown(sockets)


def _listen(listen: Listen) -> tuple[UnixSocket | None, socket.socket, str]:
    """A listening socket, and its address in words."""
    if listen.path is not None:
        try:
            unix_socket = UnixSocket(listen.path)
        except SocketTaken as error:
            message = str(error).replace("set CONVENER_SOCKET to another path", "choose another --listen")
            raise UnusableAddress(message) from None
        return unix_socket, unix_socket.listener, f"unix:{listen.path}"
    try:
        places = socket.getaddrinfo(listen.host, listen.port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
        family, _, _, _, address = places[0]
        # TCP by name, as the event loop turns Nagle's algorithm off only for sockets that say so.
        listener = socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            listener.bind(address)
        except OSError:
            listener.close()
            raise
    except OSError as error:
        raise UnusableAddress(
            f"cannot listen on {listen.host}:{listen.port} ({error.strerror or error}); stop whoever uses it, or "
            "choose another --listen"
        ) from None
    host, port = listener.getsockname()[:2]
    return None, listener, f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False
