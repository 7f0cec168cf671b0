"""Checks on the database itself: its schema, the programs for backups, and where the API is away what it would tell."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from typing import Any

from sqlalchemy.exc import SQLAlchemyError
from sqlalchemy.ext.asyncio import AsyncConnection

from app.admin.rules.config import Document, preset
from app.admin.store import config
from app.cli import findings
from app.cli.checks import Check, Status, usable_settings
from app.cli.pooler_checks import pooler_checks
from app.db import retention, schema
from app.db.database import Database, now
from app.health.rules.checks import alert_symptoms
from app.health.rules.report import make_report
from app.health.rules.snapshot import FOR_ALERTS, FOR_REPORT, BlockingSession, Snapshot
from app.health.service.snapshot_cache import SnapshotSettings, read_snapshot
from app.health.store import observations
from app.health.store.pool_counts import limit_statement_time
from app.kernel.database_urls import OLDEST_POSTGRES
from app.kernel.errors import ConvenerError
from app.kernel.modes import Mode
from app.kernel.states import TaskState
from app.memory.store.backups import server_version
from app.postgres.binaries import find_version, major_version
from app.postgres.errors import BinariesMissing
from app.queue.rules.admission import capacity_policy
from app.queue.service.admission import settings_policy
from app.queue.store import listing
from app.queue.store.listing import Selection
from app.settings import Settings
from app.terminal.databases import bundled_url, on_database
from app.terminal.failures import Failure
from app.workers.rules.workers import HealthPolicy

_STATEMENT_SECONDS = 5.0
_HOUR = timedelta(hours=1)


@dataclass(frozen=True, slots=True, kw_only=True)
class _State:
    """Revision, version and clock of the database, and where the API is away what the service would tell of.

    `clock_seconds`: how far its clock is ahead of this machine's.
    """

    revision: str | None
    is_served: bool
    server: str
    at: datetime
    clock_seconds: float
    blocking: BlockingSession | None
    large_defaults: Mapping[str, int]
    snapshot: Snapshot | None = None
    mode: Mode | None = None
    document: Document | None = None
    letters: list[dict[str, Any]] | None = None


def database_checks(*, is_alone: bool, is_own: bool) -> Iterator[Check]:
    """Yield the checks, of which none raises.

    `is_alone`: the API is away, so that what it would tell of is read here. The bundled database belongs to this
    machine's own service alone, and is left out unless `is_own`.
    """
    settings = usable_settings()
    if settings is None or not (settings.database_url or (is_own and (settings.state_directory / "postgres").is_dir())):
        return
    url = settings.session_url or bundled_url()
    if url is None:
        return
    try:
        state = on_database(lambda database: _read(database, settings, is_alone=is_alone), url)
    except Failure as failure:
        detail = ": ".join([failure.message, *failure.details])
        yield Check(name="database", status=Status.FAILED, detail=detail, remedy=failure.hint or "")
        return
    if major_version(state.server) < OLDEST_POSTGRES:
        detail = f"the server is PostgreSQL {state.server}, and Convener needs {OLDEST_POSTGRES} or newer"
        remedy = "move the database to a newer server: the service is made for such, and tried on no other"
        yield Check(name="database", status=Status.FAILED, detail=detail, remedy=remedy)
    yield _schema(state)
    if settings.database_url:
        yield from pooler_checks(settings.database_url, settings.database_direct_url)
    yield from _partitions(state)
    yield from findings.lock_checks(state.blocking)
    yield _programs(state, settings)
    yield findings.clock_check(state.clock_seconds, "the database's")
    if state.snapshot is not None and state.document is not None:
        yield from _findings(state, state.snapshot, state.document, settings)


async def _read(database: Database, settings: Settings, *, is_alone: bool) -> _State:
    revision = await schema.revision(database.engine)
    async with database.transaction() as connection:
        # At once: whatever is done in between, or waited for, would count as the clock's.
        at = await now(connection)
        clock_seconds = (at - datetime.now(UTC)).total_seconds()
        # Before all that may have to wait for its locks.
        blocking = await observations.blocking_session(connection) if revision == schema.head() else None
        large_defaults = await retention.too_large(connection) if revision == schema.head() else {}
        server = await server_version(connection)
    is_served = await schema.is_served(database.engine, revision)
    state = _State(
        revision=revision,
        is_served=is_served,
        server=server,
        at=at,
        clock_seconds=clock_seconds,
        blocking=blocking,
        large_defaults=large_defaults,
    )
    if not is_alone or revision != schema.head():
        return state
    try:
        async with database.transaction() as connection:
            await limit_statement_time(connection, _STATEMENT_SECONDS)
            return await _look_around(connection, state, settings)
    except (ConvenerError, SQLAlchemyError):
        # Whose locks keep us from reading more is told, and is what has to be mended first.
        if blocking is None:
            raise
        return state


async def _look_around(connection: AsyncConnection, state: _State, settings: Settings) -> _State:
    initial = settings.mode or Mode.PRODUCTION
    version = await config.last(connection)
    terms = SnapshotSettings(
        capacity=settings_policy(settings), initial_mode=initial, silent_seconds=HealthPolicy().lost_after_seconds
    )
    selection = Selection(states=[TaskState.FAILED], finished_after=state.at - _HOUR)
    letters = await listing.page(connection, selection, below=None, limit=findings.MAX_LETTERS)
    return replace(
        state,
        snapshot=await read_snapshot(connection, terms),
        mode=version.mode if version else initial,
        document=version.document if version else preset(initial),
        letters=list(letters.items),
    )


def _partitions(state: _State) -> Iterator[Check]:
    for table, size in state.large_defaults.items():
        yield Check(
            name="partitions",
            status=Status.WARNING,
            detail=f"the default partition of {table} holds {size / (1 << 30):.1f} GB, so no other is made beside it: "
            "rows go one by one when they are old, instead of by day",
            remedy="`convener db partition`, in a quiet moment, makes those of the coming days",
        )


def _schema(state: _State) -> Check:
    head = schema.head()
    if state.is_served:
        detail = f"it is at {state.revision}, a newer one, which is made for this version as well"
        return Check(name="schema", status=Status.OK, detail=detail)
    if state.revision == head:
        return Check(name="schema", status=Status.OK, detail=f"it is at {head}, as this version needs it")
    detail = f"it is at {state.revision or 'nothing: the database is empty'}, and this version needs {head}"
    return Check(name="schema", status=Status.FAILED, detail=detail, remedy=schema.remedy(state.revision))


def _programs(state: _State, settings: Settings) -> Check:
    """The check of pg_dump, which must be of the version of the server."""
    try:
        binaries = find_version(major_version(state.server), configured_directory=settings.postgres_bin)
    except BinariesMissing as error:
        remedy = "until then `convener db backup` makes none"
        return Check(name="pg_dump", status=Status.WARNING, detail=str(error), remedy=remedy)
    detail = f"that of PostgreSQL {binaries.version}, as the server is, is in {binaries.directory}"
    return Check(name="pg_dump", status=Status.OK, detail=detail)


def _findings(state: _State, snapshot: Snapshot, document: Document, settings: Settings) -> Iterator[Check]:
    report = make_report(snapshot, FOR_REPORT, capacity_policy(document.queue, settings_policy(settings)))
    workers = {"healthy": report.healthy_workers, "workers": report.total_workers}
    yield from findings.report_checks(report.reasons, **workers, waiting=report.pending_tasks)
    yield from findings.symptom_checks(alert_symptoms(snapshot, FOR_ALERTS)[0])
    for name, trouble in snapshot.models.items():
        yield findings.model_check(name, trouble)
    pool = document.worker_pool
    yield findings.mode_check(state.mode or Mode.PRODUCTION, pool.min_workers, pool.max_workers, snapshot.pool.total)
    yield findings.letters_check(state.letters or [])
