"""The schedule of the service, all duties together."""

from app.db.database import Database
from app.loops.schedule import DUTIES
from tests.support.factories import ready_worker, submitted
from tests.support.runner import running
from tests.support.sql import execute, until, value


async def test_the_real_schedule_rescues_a_task_from_a_silent_worker(database: Database) -> None:
    """All duties together on a database where something is to be done for each."""
    (task_id,) = await submitted(database)
    worker_id = await ready_worker(database)
    await ready_worker(database)
    await execute(
        database,
        "UPDATE tasks SET state = 'executing', token = 1, worker_id = $1, leased_at = now(),"
        " deadline_at = now() + interval '1 h', lease_expires_at = now() - interval '1 s'",
        worker_id,
    )
    await execute(
        database,
        "INSERT INTO leases (worker_id, n, task_id, token, request_id) VALUES ($1, 1, $2, 1, $1)",
        worker_id,
        task_id,
    )
    await execute(database, "UPDATE workers SET last_seen_at = now() - interval '1 h' WHERE id = $1", worker_id)
    async with running(database, *DUTIES):

        async def rescued() -> bool:
            state = await value(database, "SELECT state FROM tasks WHERE id = $1", task_id)
            worker = await value(database, "SELECT state FROM workers WHERE id = $1", worker_id)
            return (state, worker) == ("pending", "lost")

        await until(rescued)
        for duty in DUTIES:
            await _until_run(database, duty.name)


def test_duties_have_names_of_their_own() -> None:
    names = [duty.name for duty in DUTIES]
    assert len(set(names)) == len(names)


async def _until_run(database: Database, duty: str) -> None:
    async def done() -> bool:
        return bool(await value(database, "SELECT runs FROM loop_ticks WHERE duty = $1", duty))

    await until(done)
