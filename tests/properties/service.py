"""Two replicas of the service on one database, driven from synchronous code: nothing moves between two calls.

What would go by the clock is left to the machine: virtual times are exchanged, lanes looked through and announcements
carried to the other replica only when it says so.
"""

import asyncio
from collections.abc import Awaitable, Callable, Collection, Coroutine, Mapping
from typing import Any, TypeVar

import asyncpg
from sqlalchemy import event

from app.db import hot_path, notify
from app.db.database import Database
from app.db.notify import Announcer, News
from app.db.shared_objects import share
from app.kernel.errors import ConvenerError
from app.kernel.ids import TaskId, WorkerId
from app.metadata import metadata
from app.queue.broker.broker import Broker
from app.queue.broker.lane_view import LANES
from app.queue.service.leases import LeaseService
from app.queue.store import lanes, ready_lanes
from app.workers.service.workers import Heartbeats
from tests.properties import policies

T = TypeVar("T")
_EMPTY = "; ".join(f"DELETE FROM {table.name}" for table in metadata.sorted_tables)


class Wire(Announcer):
    """Carries announcements to the other replica at once, or loses them while it is cut; `told` keeps them."""

    other: "Wire | None" = None
    is_cut: bool = False

    def __init__(self, connect: Callable[[], Awaitable["asyncpg.Connection[asyncpg.Record]"]]) -> None:
        super().__init__(connect)
        self.told: dict[str, float] = {}

    def announce(self, news: News | Collection[str]) -> None:
        super().announce(news)
        for topic, tag in (news if isinstance(news, Mapping) else dict.fromkeys(news, 0.0)).items():
            self.told[topic] = min(tag, self.told.get(topic, tag))
        if self.other is not None and not self.is_cut:
            super(Wire, self.other).announce(news)


class Replica:
    """One process of the service. Its connections outlive it, because opening them takes longer than an example."""

    def __init__(self, url: str) -> None:
        self.database = Database(url)
        self.wire = Wire(self.database.connect)
        engine = self.database.engine.sync_engine
        event.listen(engine, "checkout", lambda _, record, __: share(record.info, self.database.shared_objects))

    def boot(self, other: Wire | None) -> None:
        """Begin without any memory."""
        self.wire = Wire(self.database.connect)
        self.connect_with(other)
        self.database.announcer, self.database.shared_objects = self.wire, {}
        self.broker = Broker(self.database, policies.LEASES)
        self.desk = LeaseService(self.database, policies.LEASES, self.broker.fairness)
        self.heartbeats = Heartbeats(self.database, policies.LEASES)
        self.broker.start()

    def connect_with(self, other: Wire | None) -> None:
        """Announcements go both ways."""
        self.wire.other = other
        if other is not None:
            other.other = self.wire
            self.wire.is_cut = other.is_cut

    async def shut_down(self) -> None:
        """As a process does that is told to stop."""
        await self.broker.stop()
        await self.desk.stop()
        await self.heartbeats.stop()

    async def exchange(self) -> None:
        """Tell the other replica where the lanes stand, and hear it from it."""
        tag_issuer = self.database.shared(lanes.TagIssuer)
        times = tag_issuer.unstored_times()
        tag_issuer.merge_stored_times(await hot_path.run(self.database, lambda c: lanes.exchange_times(c, times)))

    async def look_through(self) -> None:
        """Find the work that nobody announced."""
        found = await hot_path.run(self.database, lambda c: ready_lanes.find(c, LANES))
        Announcer.announce(self.wire, {notify.work(lane): tag for lane, tag in found.items()})


class Service:
    """Both replicas, a connection beside them, and the event loop in which they live."""

    def __init__(self, url: str) -> None:
        self._runner = asyncio.Runner(loop_factory=asyncio.new_event_loop)
        self._url = url
        self.is_up = False
        self.last_results: dict[WorkerId, TaskId] = {}

    def __enter__(self) -> "Service":
        self.replicas = self.run(self._open())
        return self

    def __exit__(self, *_: object) -> None:
        self.run(self._close())
        self._runner.close()

    def run(self, work: Coroutine[Any, Any, T]) -> T:
        """Let the replicas live until this is done."""
        # Not by the runner, which changes a signal's handler for each step, and puts what came of it into words.
        return self._runner.get_loop().run_until_complete(work)

    async def begin(self) -> None:
        """Both replicas anew, on an empty database."""
        await self.end()
        await self._delete_all()
        self.last_results.clear()
        first, second = self.replicas
        first.boot(None)
        second.boot(first.wire)
        self.is_up = True

    async def end(self) -> None:
        """Stop the replicas."""
        if self.is_up:
            self.is_up = False
            for replica in self.replicas:
                await replica.shut_down()

    async def restart(self, place: int) -> None:
        """One replica forgets what it knew."""
        replica, other = self.replicas[place], self.replicas[1 - place]
        await replica.shut_down()
        replica.boot(other.wire)

    def cut(self, *, is_cut: bool) -> None:
        """Lose announcements between the replicas from now on, or no longer."""
        for replica in self.replicas:
            replica.wire.is_cut = is_cut

    def take_told(self) -> dict[str, float]:
        """What was announced since the last time."""
        told: dict[str, float] = {}
        for replica in self.replicas:
            for topic, tag in replica.wire.told.items():
                told[topic] = min(tag, told.get(topic, tag))
            replica.wire.told = {}
        return told

    async def fetch(self, query: str, *values: object) -> list[asyncpg.Record]:
        """What is in the database."""
        return list(await self.beside.fetch(query, *values))

    async def fetch_value(self, query: str) -> str:
        """The one text that a query finds."""
        return str(await self.beside.fetchval(query))

    async def _open(self) -> tuple[Replica, Replica]:
        self.beside: asyncpg.Connection[asyncpg.Record] = await asyncpg.connect(self._url)
        replicas = Replica(self._url), Replica(self._url)
        self.reading = await replicas[0].database.engine.connect()
        await self.reading.execution_options(isolation_level="AUTOCOMMIT")
        return replicas

    async def _close(self) -> None:
        await self.end()
        await self._delete_all()
        await self.beside.close()
        await self.reading.close()
        for replica in self.replicas:
            await replica.database.close()

    async def _delete_all(self) -> None:
        # The triggers that count tasks would write new lines into emptied tables.
        await self.beside.execute(f"SET session_replication_role = replica; {_EMPTY}; RESET session_replication_role")


async def answer(call: Awaitable[object]) -> object:
    """What a call returns, or the class of its refusal."""
    try:
        return await call
    except ConvenerError as refusal:
        return type(refusal)
