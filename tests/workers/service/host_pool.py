"""A pool of workers on a host whose processes are only numbers."""

from typing import Any
from uuid import UUID

from app.db.database import Database
from app.kernel.modes import Mode
from app.queue.rules.tasks import LeasePolicy
from app.workers.provisioners.base import Handle
from app.workers.service import pool, workers
from app.workers.service.workers import Heartbeats
from tests.support.factories import (
    beat,
    registration,
    report,
)
from tests.support.sql import execute, fetch


class Host:
    """A provisioner whose processes are numbers."""

    kind = "local"
    host = "here"

    def __init__(self, table: str = "ours") -> None:
        self.table = table
        self.running: dict[UUID, Handle] = {}
        self.watched: set[UUID] = set()
        self.stopped: dict[UUID, float] = {}
        self.broken = False
        self.heard_seconds_ago: list[float | None] = []
        self.keys: dict[UUID, str] = {}

    async def start(self, worker_id: UUID, name: str, key: str) -> Handle:
        if self.broken:
            raise OSError("no more processes")
        handle = self.running.setdefault(worker_id, {"pid": len(self.running) + 1, "name": name, "table": self.table})
        self.keys[worker_id] = key
        self.adopt(worker_id, handle)
        return handle

    def stop(self, worker_id: UUID, handle: Handle, grace_seconds: float) -> None:
        self.stopped[worker_id] = grace_seconds

    def is_running(self, handle: Handle) -> bool:
        return handle in self.running.values()

    def is_foreign(self, handle: Handle, silent_seconds: float) -> bool:
        return bool(handle["table"] != self.table)

    def tell_of_twin(self, handle: Handle, heard_seconds_ago: float | None) -> None:
        self.heard_seconds_ago.append(heard_seconds_ago)

    async def find(self) -> dict[UUID, Handle]:
        return dict(self.running)

    def adopt(self, worker_id: UUID, handle: Handle) -> None:
        self.watched.add(worker_id)


async def tick(database: Database, size: int, host: str = "here") -> dict[str, Any]:
    """As if the scaling loop had set the size; one host's first report says it."""
    await execute(database, "UPDATE hosts SET size = $1 WHERE host = $2", size, host)
    async with database.transaction() as connection:
        return await pool.tick(connection, Mode.PRODUCTION, report(size, host=host))


async def start_pool(database: Database, host: Host, size: int) -> list[UUID]:
    """A pool of so many workers that have registered and beaten; their ids by slot."""
    await tick(database, size)
    await pool.provision(database, host)
    heartbeats = Heartbeats(database, LeasePolicy())
    rows = await fetch(database, "SELECT id, name FROM workers WHERE state = 'starting' ORDER BY slot")
    for row in rows:
        async with database.transaction() as connection:
            await workers.register(connection, registration(row["name"]), row["id"])
        await heartbeats.report(beat(row["id"]))
    return [row["id"] for row in rows]


async def replacements(database: Database) -> list[Any]:
    return await fetch(database, "SELECT * FROM replacements ORDER BY id")
