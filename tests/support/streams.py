"""The application on a real port in this process, and a reader of server-sent events that knows only the standard."""

import asyncio
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass, field
from typing import Any

import httpx
import uvicorn

from app.db.database import Database
from app.http.bounds import BoundedHeads
from app.kernel.access import Role
from app.main import create_app
from app.server import Server
from app.settings import Settings
from tests.support.service import Service, make_keys


class _Server(Server):
    """Leaves the signals of the test run alone."""

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield


@dataclass(frozen=True, slots=True, kw_only=True)
class Port:
    """A running service, and how to stop it."""

    service: Service
    number: int
    server: uvicorn.Server

    @property
    def listeners(self) -> int:
        """How many parts of the service hear announcements; every stream is one."""
        return len(self.service.app.state.services.database.announcer._listeners)


@asynccontextmanager
async def on_a_port(database: Database) -> AsyncIterator[Port]:
    """Serve until the end of the block, or until it is told to stop."""
    keys = await make_keys(database)
    app = create_app(Settings(database_url=database.url))
    config = uvicorn.Config(
        app, port=0, http=BoundedHeads, log_config=None, access_log=False, timeout_graceful_shutdown=4
    )
    server = _Server(config)
    serving = asyncio.create_task(server.serve())
    while not server.started:
        assert not serving.done(), serving.exception()
        await asyncio.sleep(0.01)
    number = server.servers[0].sockets[0].getsockname()[1]
    async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{number}", trust_env=False, timeout=60) as client:
        yield Port(service=Service(app=app, client=client, keys=keys), number=number, server=server)
    server.should_exit = True
    await serving


@dataclass(slots=True, kw_only=True)
class Source:
    """What a browser's EventSource does: it parses, remembers the last id, and connects again with it.

    https://html.spec.whatwg.org/multipage/server-sent-events.html#event-stream-interpretation
    """

    service: Service
    path: str = "/events/stream"
    query: dict[str, Any] = field(default_factory=dict)
    headers: dict[str, str] = field(default_factory=dict)
    last_id: str = ""
    retry: int = 0
    comments: int = 0

    @asynccontextmanager
    async def open(self) -> AsyncIterator[AsyncIterator[tuple[str, str, str]]]:
        """Connect; the events come as (id, kind, data), until the service ends the stream."""
        headers = {"Authorization": f"Bearer {self.service.keys[Role.READER]}", **self.headers}
        if self.last_id:
            headers["Last-Event-ID"] = self.last_id
        async with self.service.client.stream("GET", self.path, params=self.query, headers=headers) as answer:
            assert answer.status_code == 200, await answer.aread()
            assert answer.headers["content-type"].startswith("text/event-stream")
            yield self._events(answer)

    async def _events(self, answer: httpx.Response) -> AsyncIterator[tuple[str, str, str]]:
        fields: dict[str, str] = {}
        async for line in answer.aiter_lines():
            name, _, value = line.partition(":")
            if line and not name:
                self.comments += 1
            elif line:
                value = value.removeprefix(" ")
                fields[name] = f"{fields[name]}\n{value}" if name == "data" and name in fields else value
            else:
                self.last_id = fields.get("id", self.last_id)
                self.retry = int(fields.get("retry", self.retry))
                if "data" in fields:
                    yield self.last_id, fields.get("event", "message"), fields["data"]
                fields = {}
