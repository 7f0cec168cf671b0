"""The schedule of the service, all duties together."""

from app import background
from app.admin.rules.config import QueueConfig
from app.db.database import Database
from app.health.rules.alerts import AlertPolicy
from app.health.rules.finding import AlertRule
from app.loops.schedule import DUTIES
from app.queue.rules.tasks import LeasePolicy, RetryPolicy
from app.settings import Settings
from tests.support.config_calls import changed
from tests.support.factories import ready_worker, submitted
from tests.support.runner import running
from tests.support.service import Service
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


async def test_sweeps_go_by_the_leases_of_the_settings_and_of_the_configuration(
    database: Database, service: Service
) -> None:
    """They judge how long a lease may last that they have not seen."""
    settings = Settings(database_url=database.url, lease_seconds=20, acknowledge_within_seconds=2)
    context = background._context(settings, database, None, None)
    await context.config.read()
    assert (context.leases.lease_seconds, context.leases.acknowledge_within_seconds) == (20, 2)
    await changed(service, {"recovery": {"acknowledge_within_seconds": 0.5}}, 1)
    context = background._context(settings, database, None, None)
    await context.config.read()
    assert (context.leases.lease_seconds, context.leases.acknowledge_within_seconds) == (20, 0.5)


def test_duties_have_names_of_their_own() -> None:
    names = [duty.name for duty in DUTIES]
    assert len(set(names)) == len(names)


async def _until_run(database: Database, duty: str) -> None:
    async def done() -> bool:
        return bool(await value(database, "SELECT runs FROM loop_ticks WHERE duty = $1", duty))

    await until(done)


def test_how_soon_failures_are_noticed_and_how_often_tasks_are_rescued() -> None:
    """Constants that the documents name."""
    sweeps = {duty.name: duty.seconds for duty in DUTIES if duty.name.startswith("sweep")}
    assert (sweeps["sweep leases"], sweeps["sweep workers"]) == (1, 0.5)
    assert (LeasePolicy().acknowledge_within_seconds, LeasePolicy().max_wait_seconds) == (5, 30)
    assert RetryPolicy().max_rescues == QueueConfig().max_rescues == 5
    assert AlertPolicy().of(AlertRule.RESOURCE_PRESSURE).opens_after == 300
