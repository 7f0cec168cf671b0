"""The other side of an exchange without a network: it remembers requests, and the test answers them line by line."""

import asyncio
import json
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any
from uuid import uuid4

from app.relay.calls import Answer, Item, read_item, read_operation
from app.relay.exchange import Refused


@dataclass(slots=True, eq=False)
class Request:
    """A request that came: the key that was shown, its items, and whether it was hung up on."""

    key: bytes
    items: list[dict[str, Any]]
    lines: "asyncio.Queue[bytes | Exception | None]" = field(default_factory=asyncio.Queue)
    is_hung_up: bool = False

    def answer(self, *answers: dict[str, Any], ends: bool = False) -> None:
        """One line."""
        self.lines.put_nowait(json.dumps({"answers": answers}).encode())
        if ends:
            self.lines.put_nowait(None)

    def answer_all(self, status: int = 200, **body: Any) -> None:
        """A line with the same answer for each, and the end."""
        self.answer(*({"index": index, "status": status, "body": body} for index in range(len(self.items))), ends=True)


@dataclass(slots=True)
class FakeUpstream:
    """Refuses whole requests with the answers in `refusals` first, each after some seconds."""

    refusals: list[Answer | Exception] = field(default_factory=list)
    refusal_seconds: float = 0.0
    requests: list[Request] = field(default_factory=list)

    @asynccontextmanager
    async def send(self, key: bytes, body: bytes) -> AsyncIterator[AsyncGenerator[bytes]]:
        """As an exchange sends."""
        request = Request(key, json.loads(body)["items"])
        self.requests.append(request)
        if self.refusals:
            refusal = self.refusals.pop(0)
            if self.refusal_seconds:
                await asyncio.sleep(self.refusal_seconds)
            raise Refused(refusal) if isinstance(refusal, Answer) else refusal
        try:
            yield _lines(request)
        except asyncio.CancelledError:
            request.is_hung_up = True
            raise

    @property
    def open_requests(self) -> list[Request]:
        """Those that nobody has hung up on."""
        return [request for request in self.requests if not request.is_hung_up]


async def _lines(request: Request) -> AsyncGenerator[bytes]:
    while (line := await request.lines.get()) is not None:
        if isinstance(line, Exception):
            raise line
        yield line


def call(path: str = f"/leases/{uuid4()}/complete", worker: str = "w1", **body: Any) -> Item:
    """A call of a worker."""
    operation = read_operation(path)
    assert operation is not None
    now = asyncio.get_running_loop().time()
    item = read_item(operation, f"Bearer cvn_{worker}".encode(), json.dumps(body or {"token": 1}).encode(), now)
    assert item is not None
    return item


def lease_call(worker: str = "w1", wait_seconds: float = 20) -> Item:
    """A call for a task."""
    return call("/lease", worker, request_id=str(uuid4()), wait_seconds=wait_seconds, acknowledge=True)


async def settled() -> None:
    """Let everything run that need not wait."""
    for _ in range(30):
        await asyncio.sleep(0)
