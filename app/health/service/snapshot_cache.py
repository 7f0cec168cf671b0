"""Snapshots of the whole system: read one at a time, shared by all callers meanwhile, and within a second.

The cache has a connection of its own, so that it sees what is wrong also when all others are taken.
"""

import asyncio
import logging
import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

from sqlalchemy.ext.asyncio import AsyncConnection

from app.admin.rules.config import preset
from app.admin.store import config
from app.db.database import NO_CONNECTION_LEFT, Database, is_crowded
from app.health.rules import report
from app.health.rules.report import DATABASE_AWAY, DATABASE_SLOW, Report
from app.health.rules.runtime import LanguageModel
from app.health.rules.snapshot import FOR_ALERTS, FOR_REPORT, CheckPolicy, Snapshot
from app.health.service.starvation import count_workers
from app.health.store import alerts, pool_counts, refusals, series, utilisation
from app.health.store import observations as store
from app.kernel.errors import DatabaseUnavailable
from app.kernel.modes import Mode
from app.kernel.refused_writes import MEANINGS, WriteTrouble
from app.llm.store import usage
from app.queue.rules.admission import CapacityPolicy
from app.queue.rules.status import RECENT
from app.queue.service import degradation, status
from app.scaling.store import decisions
from app.workers.service.pool import recovery

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class CachePolicy:
    """Seconds that a snapshot is shared, that a statement of it may take, and that a caller waits for it."""

    # Scrapes and browsers come every few seconds; a flood of them costs one snapshot a second.
    fresh_seconds: float = 1.0
    statement_seconds: float = 0.5
    # A report is promised within one second.
    wait_seconds: float = 0.8
    # A server that is gone without a word leaves a connection that never answers: another is made then.
    silence_seconds: float = 5.0


@dataclass(frozen=True, slots=True, kw_only=True)
class SnapshotSettings:
    """Policies of the report, and settings that a snapshot depends on; `certificate_expiry` is of the API's own."""

    report: CheckPolicy = FOR_REPORT
    capacity: CapacityPolicy
    initial_mode: Mode
    silent_seconds: float
    certificate_expiry: Callable[[], datetime | None] = lambda: None


class SnapshotCache:
    """One for each process, over a database of its own with a single connection."""

    def __init__(self, database: Database, settings: SnapshotSettings, policy: CachePolicy = CachePolicy()) -> None:
        self.settings = settings
        self.policy = policy
        self._database = database
        self._loading: asyncio.Task[Snapshot] | None = None
        self._latest: Snapshot | None = None
        self._latest_at = 0.0

    async def read(self) -> Snapshot:
        """A snapshot that is at most a second old. Raises DatabaseUnavailable after `wait_seconds` at the latest."""
        if self._latest is not None and time.monotonic() - self._latest_at < self.policy.fresh_seconds:
            return self._latest
        if self._loading is None:
            self._loading = asyncio.create_task(self._load(), name="read snapshot")
            self._loading.add_done_callback(self._keep)
        # Loading goes on for others when this caller leaves, and ends by the limits of its own statements.
        finished_tasks, _ = await asyncio.wait([self._loading], timeout=self.policy.wait_seconds)
        if not finished_tasks:
            raise DatabaseUnavailable(_slow(self.policy.wait_seconds), reason=DATABASE_SLOW)
        return finished_tasks.pop().result()

    async def report(self) -> tuple[Report, bool]:
        """The health report, and whether the database has answered."""
        try:
            snapshot = await self.read()
        except DatabaseUnavailable as error:
            return self._outdated_report(error), False
        return report.make_report(snapshot, self.settings.report, self.settings.capacity), True

    def _keep(self, task: asyncio.Task[Snapshot]) -> None:
        self._loading = None
        # The exception is fetched here as well, because nobody may be waiting any more and asyncio would complain.
        if not task.cancelled() and task.exception() is None:
            self._latest, self._latest_at = task.result(), time.monotonic()

    async def _load(self) -> Snapshot:
        try:
            async with asyncio.timeout(self.policy.silence_seconds), self._database.transaction() as connection:
                # There is one connection: a statement that waited for a lock would hold up all later snapshots.
                await pool_counts.limit_statement_time(connection, self.policy.statement_seconds)
                return await read_snapshot(connection, self.settings)
        except TimeoutError:
            raise DatabaseUnavailable(_slow(self.policy.silence_seconds), reason=DATABASE_SLOW) from None
        except DatabaseUnavailable as error:
            if error.reason is not None:
                raise DatabaseUnavailable(MEANINGS[WriteTrouble(error.reason)], reason=error.reason) from error
            if pool_counts.is_statement_timeout(error):
                raise DatabaseUnavailable(_slow(self.policy.statement_seconds), reason=DATABASE_SLOW) from error
            raise DatabaseUnavailable(_absence(error), reason=DATABASE_AWAY) from error
        except Exception as error:
            # A database that refuses us, or is not as it should be, is no reason to say nothing.
            log.exception("could not look at the system")
            raise DatabaseUnavailable(
                "the database cannot be read; the log of the API says why", reason=DATABASE_AWAY
            ) from error

    def _outdated_report(self, error: DatabaseUnavailable) -> Report:
        code = error.reason or DATABASE_AWAY
        if self._latest is None:
            # The only clock that is left; it dates the report and decides nothing.
            return report.outdated_report(None, datetime.now(UTC), code, error.detail)
        last = report.make_report(self._latest, self.settings.report, self.settings.capacity)
        moment = last.at + timedelta(seconds=time.monotonic() - self._latest_at)
        return report.outdated_report(last, moment, code, error.detail)

    async def close(self) -> None:
        """End the loading that is under way, and the connection."""
        if self._loading is not None:
            self._loading.cancel()
            await asyncio.wait([self._loading])
        await self._database.close()


async def read_snapshot(connection: AsyncConnection, settings: SnapshotSettings) -> Snapshot:
    """Read all that is judged: each worker and host, and nothing whose cost grows with the number of tasks."""
    # All in one transaction, in which now() stands still: every age is measured to the same moment.
    queue = await status.read_snapshot(connection)
    version = await config.last(connection)
    document = version.document if version else preset(settings.initial_mode)
    workers = await store.read_workers(connection, FOR_ALERTS.overdue_grace_seconds)
    calls = await usage.recent(connection, RECENT)
    return Snapshot(
        at=queue.at,
        queue=queue,
        pool=await pool_counts.read_pool(connection, workers, silent_seconds=settings.silent_seconds, lately=RECENT),
        min_workers=document.worker_pool.min_workers,
        target_workers=await decisions.target(connection),
        spans=await utilisation.recent_minutes(connection, RECENT),
        database=await store.database_condition(connection),
        duty_turns=await pool_counts.duty_turns(connection),
        pushed_values=await series.current_values(connection),
        running=workers.running,
        workers=await count_workers(connection, workers, queue, document.worker_pool),
        recovery=await recovery(connection),
        models=await store.model_troubles(connection),
        step=await degradation.current_step(connection),
        refusals=await refusals.recent(connection),
        alerts=await alerts.unresolved_alerts(connection),
        certificate_expires_at=settings.certificate_expiry(),
        language_model=LanguageModel(latency_ms=calls.mean_latency_ms, usage=calls.in_use / calls.limit),
    )


def _absence(error: DatabaseUnavailable) -> str:
    """Why no connection could be made."""
    cause = error.__cause__
    return NO_CONNECTION_LEFT if cause is not None and is_crowded(cause) else "the database cannot be reached"


def _slow(seconds: float) -> str:
    return f"the database has not answered within {seconds:g} s: it is overloaded, or something holds a lock"
