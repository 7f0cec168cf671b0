"""Workers that are registered, fall silent and are swept."""

from typing import Any

from app.db.database import Database
from app.kernel.ids import WorkerId
from app.kernel.states import WorkerState
from app.workers.rules.workers import HealthPolicy
from app.workers.service import workers
from tests.support.factories import (
    registration,
    turn,
)
from tests.support.sql import value
from tests.support.turns import done


async def register_worker(database: Database, name: str | None = None, **changes: Any) -> workers.WorkerIdentity:
    async with database.transaction() as connection:
        return await workers.register(connection, registration(name, **changes), None)


async def lose_worker(database: Database, worker: WorkerId) -> bool:
    async with database.transaction() as connection:
        return await workers.lose(connection, worker, WorkerState.LOST, "silent for 20 s")


async def worker_state(database: Database, worker: WorkerId) -> str:
    return str(await value(database, "SELECT state FROM workers WHERE id = $1", worker))


async def sweep(database: Database, **changes: Any) -> dict[str, Any]:
    async with database.transaction() as connection:
        return done(await workers.sweep(connection, HealthPolicy(), turn(**changes)))
