"""A burst wakes the scaling loop at once: what is announced, when, and when not."""

import asyncio
from collections.abc import AsyncIterator, Collection

import pytest

from app.admin.service.config import CurrentConfig
from app.db import notify
from app.db.database import Database
from app.kernel.agents import AgentType
from app.kernel.modes import Mode
from app.loops.schedule import DUTIES
from app.queue.service import tasks
from app.queue.service.tasks import Intake
from app.scaling.service.bursts import Bursts
from tests.support.factories import submission
from tests.support.pools import bounds, crew, decided, passed
from tests.support.runner import running
from tests.support.sql import execute, until, value


class _Ear:
    """Counts the announcements of bursts."""

    def __init__(self, database: Database) -> None:
        self.heard = 0
        database.announcer.subscribe(self._hear)

    def _hear(self, topics: Collection[str]) -> None:
        self.heard += notify.BURST in topics


@pytest.fixture
async def bursts(database: Database) -> AsyncIterator[Bursts]:
    await bounds(database, 2, 50)
    await crew(database, 2, cpu_percent=90.0)
    await decided(database)
    await passed(database, 2.0)
    bursts = Bursts(database, CurrentConfig(database, Mode.PRODUCTION))
    await _submit(database, bursts, 0)
    await until(lambda: _is_known(bursts))
    yield bursts
    await bursts.stop()


async def _is_known(bursts: Bursts) -> bool:
    return bursts._outlook is not None


async def _submit(database: Database, bursts: Bursts, count: int, **changes: object) -> None:
    async with database.transaction() as connection:
        wanted = [submission(**changes) for _ in range(count)]
        await tasks.submit(connection, wanted, Intake(on_submitted=bursts.count_new_tasks))
        bursts.count_new_tasks([])


async def test_a_burst_is_announced_once_with_the_commit(database: Database, bursts: Bursts) -> None:
    """Two workers start 2 x 12 s of work within half the budget: one task of 20 s is none, three are a burst."""
    ear = _Ear(database)
    await _submit(database, bursts, 1)
    assert ear.heard == 0
    await _submit(database, bursts, 2)
    assert ear.heard == 1
    await _submit(database, bursts, 100)
    assert ear.heard == 1


async def test_what_is_taken_back_is_not_announced(database: Database, bursts: Bursts) -> None:
    ear = _Ear(database)

    async def give_up() -> None:
        async with database.transaction() as connection:
            notify.note(connection, *bursts.count_new_tasks([AgentType.GENERATION] * 100))
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        await give_up()
    assert ear.heard == 0


async def test_a_pool_that_does_not_scale_is_not_woken(database: Database) -> None:
    await bounds(database, 2, 5, Mode.DEVELOPMENT)
    await decided(database)
    bursts, ear = Bursts(database, CurrentConfig(database, Mode.DEVELOPMENT)), _Ear(database)
    await _submit(database, bursts, 0)
    await until(lambda: _is_known(bursts))
    await passed(database, 60.0)
    await _submit(database, bursts, 100)
    assert ear.heard == 0
    await bursts.stop()


async def test_the_loop_decides_before_its_tick(database: Database, bursts: Bursts) -> None:
    """It would be due 4 to 5 s after the last decision, which was 2 s ago."""
    duty = next(duty for duty in DUTIES if duty.name == "scaling")
    # Whatever time has gone by since the fixture was made.
    await execute(database, "UPDATE scaling_state SET decided_at = now() - interval '2 s'")
    before = await value(database, "SELECT decided_at FROM scaling_state")
    async with running(database, duty):
        await asyncio.sleep(0)
        await _submit(database, bursts, 200)

        async def grown() -> bool:
            return bool(await value(database, "SELECT count(*) FROM decisions WHERE decision_type = 'scale_up'"))

        await until(grown)
    at = await value(database, "SELECT decided_at FROM decisions WHERE decision_type = 'scale_up'")
    assert (at - before).total_seconds() < 4
