"""The server of the API: uvicorn's, which listens on a unix socket as well, drains, and ends within a time."""

import asyncio
import signal
import socket
import sys
import time
from types import FrameType

import uvicorn
from fastapi import FastAPI
from starlette.types import ASGIApp, Message
from uvicorn.config import STARTUP_FAILURE

from app.http.bounds import BoundedHeads
from app.http.quiet_server import QuietServer
from app.http.services import Services
from app.http.sockets import UnixSocket
from app.queue.broker.broker import Broker
from app.terminal.failures import ExitCode, Failure

_HANDSHAKE_SECONDS = 5.0
# Of a shutdown: for requests to finish, until those fail that wait for the database, and until the process is killed.
GRACE_SECONDS, _DATABASE_SECONDS, _END_SECONDS = 3, 3.5, 4.9


async def begin_shutdown(services: Services) -> None:
    """Refuse new requests, and answer those that wait."""
    if not services.stopping:
        services.stopping = True
        services.database.announcer.announce(["events"])  # wakes event streams, which then see `stopping`
        await services[Broker].stop()


async def _build_routes(app: ASGIApp) -> None:
    """Ask for an address that nothing has, so that the framework looks at every route and builds it before it serves.

    It takes tenths of a second, in which nobody else is answered.
    """

    async def receive() -> Message:
        return {"type": "http.disconnect"}

    async def send(_: Message) -> None:
        pass

    address = {"method": "GET", "scheme": "http", "path": "/", "raw_path": b"/", "query_string": b"", "root_path": ""}
    head = {"type": "http", "http_version": "1.1", "headers": [(b"host", b"localhost")], "client": None, "server": None}
    await app({**head, **address}, receive, send)


class Server(QuietServer):
    """Serves the port, and a unix socket without TLS; answers long polls as soon as it is stopped.

    SIGTERM, as an orchestrator sends it, stops it only after `drain_seconds`, unless it comes twice.
    """

    def __init__(
        self, config: uvicorn.Config, unix_socket: UnixSocket | None = None, *, drain_seconds: float = 0.0
    ) -> None:
        super().__init__(config)
        self._unix_socket = unix_socket
        self._drain_seconds = drain_seconds
        self._drains_until: float | None = None

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Listen on both; not by uvicorn's own, which lets a TLS handshake take a minute."""
        await self.lifespan.startup()
        if self.lifespan.should_exit:
            sys.exit(STARTUP_FAILURE)
        await _build_routes(self.config.loaded_app)
        loop, config = asyncio.get_running_loop(), self.config
        try:
            server = await loop.create_server(
                self._protocol,
                config.host,
                config.port,
                backlog=config.backlog,
                ssl=config.ssl,
                ssl_handshake_timeout=_HANDSHAKE_SECONDS if config.ssl else None,
            )
            self.servers = [server]
        except OSError as error:
            await self.lifespan.shutdown()
            hint = "stop whoever uses it, or choose another with CONVENER_HOST and CONVENER_PORT"
            message = f"cannot listen on {config.host}:{config.port}: {error.strerror or error}"
            raise Failure(message, ExitCode.REFUSED, hint=hint) from None
        if self._unix_socket is not None:
            listener = self._unix_socket.listener
            server = await loop.create_unix_server(self._protocol, sock=listener, backlog=config.backlog)
            self.servers.append(server)
        self.started = True

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """Stop in order, after the time to drain; whatever hangs ends with the process."""
        if sig == signal.SIGTERM and self._begins_to_drain():
            return
        signal.setitimer(signal.ITIMER_REAL, _END_SECONDS)
        super().handle_exit(sig, frame)

    async def on_tick(self, counter: int) -> bool:
        """Stop where the time to drain is over."""
        if self._drains_until is not None and time.monotonic() >= self._drains_until and not self.should_exit:
            self.handle_exit(signal.SIGTERM, None)
        return await super().on_tick(counter)

    def _begins_to_drain(self) -> bool:
        """Be not ready from now on, and serve as ever; False where there is no time for it, or it has begun already."""
        app = self.config.app
        if not self._drain_seconds or self._drains_until is not None or not self.started:
            return False
        if not isinstance(app, FastAPI):
            return False
        self._drains_until = time.monotonic() + self._drain_seconds
        app.state.services.is_draining = True
        return True

    def _protocol(self) -> asyncio.Protocol:
        return BoundedHeads(self.config, self.server_state, self.lifespan.state)

    async def shutdown(self, sockets: list[object] | None = None) -> None:  # type: ignore[override]
        """Begin the shutdown of the services, then do uvicorn's."""
        app = self.config.app
        if isinstance(app, FastAPI) and hasattr(app.state, "services"):
            services: Services = app.state.services
            asyncio.get_running_loop().call_later(_DATABASE_SECONDS, services.database.give_up)
            await begin_shutdown(services)
        await super().shutdown(sockets)  # type: ignore[arg-type]
