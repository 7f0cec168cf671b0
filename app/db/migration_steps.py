"""One migration in a transaction of its own: it gives up and tries again rather than keep the service waiting."""

import asyncio
import random
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import asyncpg
from alembic.config import Config
from alembic.runtime.environment import EnvironmentContext
from alembic.script import ScriptDirectory
from sqlalchemy import Connection, text
from sqlalchemy.exc import DBAPIError
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine

from app.kernel.errors import Refused


@dataclass(frozen=True, slots=True, kw_only=True)
class StepLimits:
    """Seconds that a step waits for one lock, that its transaction lasts at most, and that it is tried again for."""

    lock_seconds: float
    transaction_seconds: float
    patience_seconds: float


# Everybody who needs a table waits behind a step that waits for it, and then until its transaction has ended: together
# for the half second after which a statement of the hot path gives up.
ONLINE = StepLimits(lock_seconds=0.1, transaction_seconds=0.4, patience_seconds=120.0)
# Longer than the second after which PostgreSQL ends an automatic vacuum for whoever waits for it.
_VACUUM = StepLimits(lock_seconds=5.0, transaction_seconds=0.0, patience_seconds=0.0)
# Nobody works meanwhile, or all who do must wait.
OFFLINE = StepLimits(lock_seconds=5.0, transaction_seconds=1800.0, patience_seconds=0.0)
_PAUSE_SECONDS = (0.1, 0.5)
# Somebody held a lock; our statement or transaction took too long; we and another waited for each other.
_TRIED_AGAIN = frozenset({"55P03", "57014", "25P04", "40P01"})
# Modes that keep writers out, or readers too.
_STRONG = ("ShareLock", "ShareRowExclusiveLock", "ExclusiveLock", "AccessExclusiveLock")


@dataclass(frozen=True, slots=True, kw_only=True)
class Migration:
    """A migration that is to be applied, and the limits of its transaction.

    `offline` says what it reads or writes while it keeps tables locked; None for one beside which the service goes on.
    """

    revision: str
    offline: str | None
    limits: StepLimits


@dataclass(frozen=True, slots=True, kw_only=True)
class Step:
    """A migration that was applied: at which attempt, and which tables it locked for at most how many seconds."""

    revision: str
    attempts: int
    seconds: float
    locked: Sequence[str]


def pending(script: ScriptDirectory, target: str, revision: str | None, *, is_alone: bool) -> list[Migration]:
    """Return the migrations from a revision up to `target`, the first one first. Raises CommandError.

    Where nobody else works with the database none of them has to hurry.
    """
    return [
        _migration(script, step.to_revisions[0], is_alone=is_alone)
        for step in script._upgrade_revs(target, revision or "base")
    ]


def _migration(script: ScriptDirectory, revision: str, *, is_alone: bool) -> Migration:
    offline = getattr(script.get_revision(revision).module, "offline", None)
    return Migration(revision=revision, offline=offline, limits=OFFLINE if offline or is_alone else ONLINE)


async def apply(
    engine: AsyncEngine, script: ScriptDirectory, migration: Migration, attributes: Mapping[str, Any]
) -> Step:
    """Apply one migration as often as it takes, and return what it needed.

    Raises Refused where its locks could not be had in time; other errors as they are.
    """
    limits, attempts = migration.limits, 0
    end = time.monotonic() + limits.patience_seconds
    while True:
        attempts += 1
        try:
            async with engine.connect() as connection:
                return await _attempt(connection, script, migration, attributes, attempts)
        except DBAPIError as error:
            if not _is_tried_again(error):
                raise
            if time.monotonic() >= end:
                raise Refused(
                    f"{migration.revision} gave up after {attempts} attempts: {str(error.orig).rpartition('>: ')[2]}",
                    "`convener doctor` names sessions that keep locks; repeat the command, which goes on there, or "
                    "stop the service and add --offline",
                ) from error
        await asyncio.sleep(random.uniform(*_PAUSE_SECONDS))  # noqa: S311 - no secret


async def _attempt(
    connection: AsyncConnection,
    script: ScriptDirectory,
    migration: Migration,
    attributes: Mapping[str, Any],
    attempts: int,
) -> Step:
    there = list((await connection.execute(_TABLES)).scalars())
    await connection.run_sync(set_limits, migration.limits)
    # The step begins its transaction itself, as it may have to leave it for an index.
    await connection.commit()
    notes: dict[str, Any] = {}

    def prepare(plain: Connection) -> None:
        if migration.limits is ONLINE:
            _end_vacuums(plain, there)
        notes["since"], _ = plain.execute(_NOW_AND_BEGIN).one()

    def look(plain: Connection) -> None:
        notes["locked"] = list(plain.execute(_LOCKED, {"modes": list(_STRONG), "there": there}).scalars())
        # It may have left the transaction in which it began, for an index.
        now, begin = plain.execute(_NOW_AND_BEGIN).one()
        notes["seconds"] = (now - max(begin, notes.pop("since"))).total_seconds()

    before_commit = (*attributes.get("before_commit", ()), look)
    own = {**attributes, "is_online": True, "at_begin": (prepare,), "before_commit": before_commit}
    try:
        await connection.run_sync(run, script, migration.revision, own)
    except BaseException:
        # The server may have closed it, and the limits are still set.
        await connection.invalidate()
        raise
    await connection.execute(_RESET, {"names": list(_LIMITS)})
    await connection.commit()
    return Step(revision=migration.revision, attempts=attempts, **notes)


def _end_vacuums(connection: Connection, tables: Sequence[int]) -> None:
    """Take the locks of the vacuums that are under way. They would keep a step out for as long as they last.

    PostgreSQL ends an automatic vacuum for whoever waits for it for a second. This lock keeps vacuums out and nothing
    else, so that nobody waits meanwhile.
    """
    names = list(connection.execute(_VACUUMED, {"tables": tables}).scalars())
    if names:
        set_limits(connection, _VACUUM)
        for name in names:
            connection.execute(text(f"LOCK TABLE {name} IN SHARE UPDATE EXCLUSIVE MODE"))
        set_limits(connection, ONLINE)


def set_limits(connection: Connection, limits: StepLimits) -> None:
    """Limit the session from now on; zero is no limit."""
    values = (limits.lock_seconds, limits.transaction_seconds, limits.transaction_seconds)
    milliseconds = [f"{seconds * 1000:.0f}" for seconds in values]
    connection.execute(_SET, {"names": list(_LIMITS), "milliseconds": milliseconds})


def _is_tried_again(error: BaseException | None) -> bool:
    # A transaction that lasts too long loses its connection: then what the server says is the cause of the error, or
    # reaches the driver between two statements, where it expects nothing.
    while error is not None:
        if getattr(error, "sqlstate", None) in _TRIED_AGAIN or isinstance(error, asyncpg.InternalClientError):
            return True
        error = error.__cause__ or getattr(error, "orig", None)
    return False


# A server before PostgreSQL 17 knows no limit for transactions, and limits each statement alone.
_LIMITS = ("lock_timeout", "statement_timeout", "transaction_timeout")
_SET = text("""
SELECT set_config(s.name, milliseconds, false)
FROM unnest(CAST(:names AS text[]), CAST(:milliseconds AS text[])) AS wanted (name, milliseconds)
JOIN pg_settings s USING (name)
""")
_RESET = text("SELECT set_config(name, reset_val, false) FROM pg_settings WHERE name = ANY (:names)")
# Not those of the server, which may be vacuumed as well: nobody but a superuser may lock them.
_TABLES = text("""
SELECT oid FROM pg_class WHERE relkind IN ('r', 'p') AND relnamespace <> 'pg_catalog'::regnamespace
  AND pg_has_role(relowner, 'USAGE')
""")
_LOCKED = text("""
SELECT DISTINCT relation::regclass::text AS name FROM pg_locks
WHERE pid = pg_backend_pid() AND locktype = 'relation' AND granted AND mode = ANY (:modes)
  AND relation = ANY (CAST(:there AS oid[])) ORDER BY 1
""")
_NOW_AND_BEGIN = text("SELECT clock_timestamp(), transaction_timestamp()")
_VACUUMED = text("""
SELECT DISTINCT relation::regclass::text FROM pg_locks
WHERE locktype = 'relation' AND granted AND mode = 'ShareUpdateExclusiveLock' AND pid <> pg_backend_pid()
  AND database = (SELECT oid FROM pg_database WHERE datname = current_database())
  AND relation = ANY (CAST(:tables AS oid[])) ORDER BY 1
""")


def run(connection: Connection, script: ScriptDirectory, target: str, attributes: Mapping[str, Any]) -> None:
    """Upgrade to `target`, in the transaction of the caller where there is one."""
    config = Config()
    config.set_main_option("script_location", script.dir)
    config.attributes.update(attributes, connection=connection)

    def steps(revision: Any, _: Any) -> Any:
        return script._upgrade_revs(target, revision)

    with EnvironmentContext(config, script, fn=steps, destination_rev=target):
        script.run_env()
