"""Checkpoints are taken by the loops, without being asked."""

from app.db.database import Database
from app.loops.schedule import JOBS
from tests.support.factories import submitted
from tests.support.runner import running
from tests.support.sql import until, value


async def test_the_first_checkpoint_is_taken_at_once(database: Database) -> None:
    await submitted(database, 3)
    async with running(database, *JOBS):

        async def taken() -> bool:
            return bool(await value(database, "SELECT count(*) FROM checkpoints WHERE counts->>'tasks' = '3'"))

        await until(taken)
    assert await value(database, "SELECT result->>'reason' FROM loop_ticks WHERE duty = 'checkpoint'") == "the first"
