"""The entrance of time: runs the schedule, and the worker pool of this host, until it is told to stop."""

import asyncio
import contextlib
import gc
import logging
import os
import signal
from collections.abc import Sequence
from uuid import UUID

from app.db.database import Database
from app.health.service.delivery import MessageSender, WebhookSender
from app.kernel.errors import DatabaseUnavailable
from app.kernel.modes import Mode
from app.logs import set_up_logging
from app.loops.runner import Runner
from app.loops.schedule import (
    DUTIES,
    JOBS,
    Context,
    Duty,
    Job,
    host_jobs,
    pool_duties,
    pool_jobs,
    webhook_jobs,
)
from app.queue.rules.tasks import LeasePolicy
from app.queue.service.admission import capacity_policy
from app.settings import Settings, load_settings
from app.workers.provisioners.host import Gauge, Machine
from app.workers.provisioners.local import LocalProvisioner
from app.workers.rules.workers import HealthPolicy
from app.workers.service import pool

log = logging.getLogger(__name__)


def settle_down() -> None:
    """Take present objects out of garbage collection, which would take longer than a scaling decision."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(20_000, 50, 100)


async def run(settings: Settings) -> None:
    """Run until SIGTERM or SIGINT, then end the workers in order."""
    if settings.database_url is None:
        raise ValueError("the loops need CONVENER_DATABASE_URL")
    database = Database(settings.database_url, hot_connections=2)
    provisioner = _provisioner(settings, database) if settings.pool_size else None
    schedule: Sequence[Duty | Job] = [*DUTIES, *JOBS, *host_jobs(Machine(), settings.host_name)]
    if provisioner is not None:
        schedule = [*schedule, *pool_duties(provisioner, Gauge()), *pool_jobs(provisioner)]
    webhook_sender = WebhookSender(settings.webhook) if settings.webhook else None
    if webhook_sender is not None:
        schedule = [*schedule, *webhook_jobs(webhook_sender)]
    runner = Runner(_context(settings, database, provisioner, webhook_sender), schedule)
    database.announcer.start()
    work = asyncio.create_task(runner.run())
    log.info("loops are running: %s", ", ".join(item.name for item in schedule))
    await _until_stopped(work)
    work.cancel()
    await asyncio.gather(work, return_exceptions=True)
    if provisioner is not None:
        with contextlib.suppress(DatabaseUnavailable):
            await pool.leave(database, provisioner)
        await provisioner.stop_all(_patience(settings))
    await database.close()


def _context(
    settings: Settings, database: Database, provisioner: LocalProvisioner | None, webhook_sender: MessageSender | None
) -> Context:
    return Context(
        database=database,
        leases=LeasePolicy(lease_seconds=settings.lease_seconds),
        capacity=capacity_policy(settings),
        health=HealthPolicy(
            heartbeat_interval_seconds=settings.heartbeat_interval_seconds,
            lost_after_seconds=settings.lost_after_seconds,
        ),
        mode=settings.mode or Mode.PRODUCTION,
        provisioner=provisioner,
        webhook_sender=webhook_sender,
        pool_size=settings.pool_size,
        stop_grace_seconds=_patience(settings),
        history_days=settings.history_days,
        events_days=settings.events_days,
    )


def _provisioner(settings: Settings, database: Database) -> LocalProvisioner:
    async def on_exit(worker_id: UUID, reason: str) -> None:
        for _ in range(60):
            try:
                await pool.report_exit(database, worker_id, reason)
            except Exception:
                log.warning("could not report the exit of worker %s yet (%s)", worker_id, reason)
                await asyncio.sleep(0.5)
            else:
                return

    arguments = ["--url", f"http://{settings.host}:{settings.port}"]
    arguments += ["--grace", str(settings.stop_grace_seconds)]
    arguments += ["--handlers", settings.worker_handlers] if settings.worker_handlers else []
    return LocalProvisioner(
        host=settings.host_name,
        owner=str(settings.state_directory),
        arguments=arguments,
        environment=_worker_environment(settings),
        logs=settings.state_directory / "logs" / "workers",
        on_exit=on_exit,
    )


def _patience(settings: Settings) -> float:
    """Seconds until a stopping worker is killed: its own grace, and a little for giving its task back."""
    return settings.stop_grace_seconds + 5


def _worker_environment(settings: Settings) -> dict[str, str]:
    """Ours without what is ours alone: a worker runs foreign code, which must not see the way to the database.

    The way to the language model is the worker's own matter; its handlers do not see the key to that either.
    """
    plain = {name: value for name, value in os.environ.items() if not name.startswith("CONVENER_")}
    language_model = {name: value for name, value in os.environ.items() if name.startswith("CONVENER_LLM_")}
    return {**plain, **language_model, "CONVENER_KEY": settings.pool_key or ""}


async def _until_stopped(work: "asyncio.Task[None]") -> None:
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    waiting = asyncio.create_task(stop.wait())
    await asyncio.wait((work, waiting), return_when=asyncio.FIRST_COMPLETED)
    if work.done():
        work.result()


def main() -> None:
    """Entry point of `python -m app.background`."""
    settings = load_settings()
    set_up_logging(settings.log_level, as_json=settings.log_json)
    settle_down()
    asyncio.run(run(settings))


if __name__ == "__main__":
    main()
