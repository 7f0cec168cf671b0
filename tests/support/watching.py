"""One turn of the duty that watches for alerts, and a queue in which something is wrong."""

from typing import Any

from app.db import duties
from app.db.database import Database
from app.health.rules.alerts import AlertPolicy, Hysteresis
from app.health.rules.finding import AlertRule
from app.health.rules.snapshot import WATCH
from app.health.service import alerts
from app.queue.rules.admission import CapacityPolicy
from app.queue.service import counters
from tests.support.factories import submitted
from tests.support.sql import execute, value

AT_ONCE = AlertPolicy(hysteresis={rule: Hysteresis(opens_after=0, resolves_after=0) for rule in AlertRule}, refresh=0)


async def observe(database: Database, policy: AlertPolicy = AT_ONCE, **capacity: Any) -> dict[str, Any]:
    """One turn of the duty; its result."""
    async with database.transaction() as connection:
        await duties.ensure(connection, WATCH)
        assert await duties.claim(connection, WATCH, 0.0) is not None
        result = await alerts.watch(connection, CapacityPolicy(**capacity), policy)
        await duties.record(connection, WATCH, result, held_back=False)
    return result


async def find_oldest(database: Database) -> None:
    """One turn of the duty that looks for the oldest task."""
    async with database.transaction() as connection:
        await duties.ensure(connection, counters.FIND_OLDEST)
        result = await counters.find_oldest(connection)
        await duties.record(connection, counters.FIND_OLDEST, result, held_back=False)


async def neglect_task(database: Database, minutes: int) -> None:
    """A task that has been waiting for so long."""
    await execute(database, "DELETE FROM loop_ticks WHERE duty = $1", counters.FIND_OLDEST)
    if await value(database, "SELECT count(*) FROM tasks") == 0:
        await submitted(database)
    await execute(database, f"UPDATE tasks SET waiting_since = now() - interval '{minutes} min'")
    await find_oldest(database)


async def empty_queue(database: Database) -> None:
    """Nothing waits any more."""
    await execute(database, "DELETE FROM tasks")
    await find_oldest(database)
