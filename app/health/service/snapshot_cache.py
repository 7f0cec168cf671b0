"""A look at everything, for whoever judges: one at a time, shared by all who ask meanwhile, and never for long.

It has a connection of its own, so that it sees what is wrong also when all others are taken.
"""

import asyncio
import logging
import time
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

from sqlalchemy.ext.asyncio import AsyncConnection

from app.admin.rules.config import preset
from app.admin.store import config
from app.db.database import Database
from app.health.rules import report
from app.health.rules.report import DATABASE_AWAY, DATABASE_SLOW, Report
from app.health.rules.runtime import LanguageModel
from app.health.rules.snapshot import FOR_ALERTS, FOR_REPORT, CheckPolicy, Snapshot
from app.health.service.observations import current_step
from app.health.store import alerts, pool_counts, series, utilisation
from app.health.store import observations as store
from app.kernel.errors import DatabaseUnavailable
from app.kernel.modes import Mode
from app.llm.store import usage
from app.queue.rules.admission import CapacityPolicy
from app.queue.rules.status import RECENT
from app.queue.service import status
from app.scaling.store import decisions
from app.workers.service.recovery import recovery

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class CachePolicy:
    """Seconds: how long a look is shared, a statement of it may take, and somebody waits for it."""

    # Scrapes and browsers come every few seconds; a flood of them costs one look a second.
    fresh_seconds: float = 1.0
    statement_seconds: float = 0.5
    # A report is promised within one second.
    patience_seconds: float = 0.8
    # A server that is gone without a word leaves a connection that never answers: another is made then.
    silence_seconds: float = 5.0


@dataclass(frozen=True, slots=True, kw_only=True)
class SnapshotTerms:
    """By what is judged."""

    report: CheckPolicy = FOR_REPORT
    capacity: CapacityPolicy
    initial_mode: Mode
    silent_seconds: float


class SnapshotCache:
    """One per process, over a database of its own with a single connection."""

    def __init__(self, database: Database, terms: SnapshotTerms, policy: CachePolicy = CachePolicy()) -> None:
        self.terms = terms
        self.policy = policy
        self._database = database
        self._looking: asyncio.Task[Snapshot] | None = None
        self._known: Snapshot | None = None
        self._known_at = 0.0

    async def look(self) -> Snapshot:
        """How everything stands, at most a second ago. Raises DatabaseUnavailable, in time."""
        if self._known is not None and time.monotonic() - self._known_at < self.policy.fresh_seconds:
            return self._known
        if self._looking is None:
            self._looking = asyncio.create_task(self._look(), name="lookout")
            self._looking.add_done_callback(self._looked)
        # The look goes on for others when this caller leaves, and ends by the limits of its own statements.
        done, _ = await asyncio.wait([self._looking], timeout=self.policy.patience_seconds)
        if not done:
            raise DatabaseUnavailable(_slow(self.policy.patience_seconds), reason=DATABASE_SLOW)
        return done.pop().result()

    async def report(self) -> tuple[Report, bool]:
        """The health report, and whether the database has answered."""
        try:
            snapshot = await self.look()
        except DatabaseUnavailable as error:
            return self._blind(error), False
        return report.make_report(snapshot, self.terms.report, self.terms.capacity), True

    def _looked(self, task: asyncio.Task[Snapshot]) -> None:
        self._looking = None
        # Asked for here as well, because nobody may be waiting any more.
        if not task.cancelled() and task.exception() is None:
            self._known, self._known_at = task.result(), time.monotonic()

    async def _look(self) -> Snapshot:
        try:
            async with asyncio.timeout(self.policy.silence_seconds), self._database.transaction() as connection:
                await pool_counts.limit_statement_time(connection, self.policy.statement_seconds)
                return await read_snapshot(connection, self.terms)
        except TimeoutError:
            raise DatabaseUnavailable(_slow(self.policy.silence_seconds), reason=DATABASE_SLOW) from None
        except DatabaseUnavailable as error:
            if pool_counts.is_statement_timeout(error):
                raise DatabaseUnavailable(_slow(self.policy.statement_seconds), reason=DATABASE_SLOW) from error
            raise DatabaseUnavailable("the database cannot be reached", reason=DATABASE_AWAY) from error
        except Exception as error:
            # A database that refuses us, or is not as it should be, is no reason to say nothing.
            log.exception("could not look at the system")
            raise DatabaseUnavailable(
                "the database cannot be read; the log of the API says why", reason=DATABASE_AWAY
            ) from error

    def _blind(self, error: DatabaseUnavailable) -> Report:
        code = error.reason or DATABASE_AWAY
        if self._known is None:
            # The only clock that is left; it dates the report and decides nothing.
            return report.outdated_report(None, datetime.now(UTC), code, error.detail)
        last = report.make_report(self._known, self.terms.report, self.terms.capacity)
        moment = last.at + timedelta(seconds=time.monotonic() - self._known_at)
        return report.outdated_report(last, moment, code, error.detail)

    async def close(self) -> None:
        """End a look that is under way, and the connection."""
        if self._looking is not None:
            self._looking.cancel()
            await asyncio.wait([self._looking])
        await self._database.close()


async def read_snapshot(connection: AsyncConnection, terms: SnapshotTerms) -> Snapshot:
    """Read everything that is judged: workers and hosts one by one, and nothing that costs anything per task."""
    queue = await status.read_snapshot(connection)
    version = await config.last(connection)
    document = version.document if version else preset(terms.initial_mode)
    calls = await usage.recent(connection, RECENT)
    return Snapshot(
        at=queue.at,
        queue=queue,
        pool=await pool_counts.read_pool(connection, silent_seconds=terms.silent_seconds, lately=RECENT),
        min_workers=document.worker_pool.min_workers,
        target_workers=await decisions.target(connection),
        spans=await utilisation.recent_minutes(connection, RECENT),
        database=await store.database_condition(connection),
        turns=await pool_counts.duty_turns(connection),
        pushed=await series.current_values(connection),
        running=await store.running_tasks(connection, FOR_ALERTS.overdue_grace_seconds),
        workers=await store.worker_counts(connection, None),
        recovery=await recovery(connection),
        breakers=await store.open_breakers(connection),
        step=await current_step(connection),
        alerts=await alerts.unresolved_alerts(connection),
        language_model=LanguageModel(latency_ms=calls.mean_latency_ms, usage=calls.in_use / calls.limit),
    )


def _slow(seconds: float) -> str:
    return f"the database has not answered within {seconds:g} s: it is overloaded, or something holds a lock"
