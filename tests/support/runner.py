"""A runner beside the test."""

import asyncio
import contextlib
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

from app.admin.service.config import CurrentConfig
from app.db.database import Database
from app.kernel.modes import Mode
from app.loops.runner import Runner
from app.loops.schedule import Context, Duty, Job
from app.queue.rules.admission import CapacityPolicy
from app.queue.rules.tasks import LeasePolicy
from app.workers.rules.workers import HealthPolicy


def context(database: Database) -> Context:
    """What duties work with."""
    return Context(
        database=database,
        leases=LeasePolicy(),
        capacity=CapacityPolicy(),
        health=HealthPolicy(),
        mode=Mode.DEVELOPMENT,
        config=CurrentConfig(database, Mode.DEVELOPMENT),
        provisioner=None,
        webhook_sender=None,
        pool_size=0,
        stop_grace_seconds=1,
        history_days=30,
        events_days=7,
    )


@asynccontextmanager
async def running(database: Database, *schedule: Duty | Job, liveness_file: Path | None = None) -> AsyncIterator[None]:
    """The schedule runs, and no error ends it."""
    runner = asyncio.create_task(Runner(context(database), schedule, liveness_file=liveness_file).run())
    try:
        yield
        assert not runner.done(), "an error has ended the runner"
    finally:
        runner.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await runner
