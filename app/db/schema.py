"""Migrations: bring the schema up to date, and down again."""

import asyncio
import hashlib
import json
import re
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sqlalchemy import Connection, text
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine

from app.db import retention, served_revisions

# Alembic is imported by what migrates: it would take a tenth of the start of each program, when all start anew at once.
if TYPE_CHECKING:
    from alembic.config import Config

    from app.db.migration_steps import Migration, Step

MIGRATIONS = Path(__file__).parents[2] / "migrations"
FUNCTIONS = MIGRATIONS / "functions.sql"
# The commit and the revision of the last release, whose programs may still run when the schema is the new one.
PREVIOUS = MIGRATIONS / "previous.json"
# The function whose comment says which text of the file was applied last.
_MARKED = "convener_event_transaction()"
_REVISION = re.compile(r'^(down_)?revision = (?:"(\w+)"|None)$', re.MULTILINE)
# Keeps two migrating processes apart. Any constant does that nobody else uses.
ADVISORY_LOCK = 7_241_001
_TRY_LOCK = text("SELECT pg_try_advisory_lock(:key)")
_LOCK_POLL_SECONDS = 0.2


async def _ignore(old_revision: str | None, new_revision: str | None) -> None:
    pass


@dataclass(frozen=True, slots=True, kw_only=True)
class Watch:
    """Functions that are called with what an upgrade is about to do, what each of its steps needed, and what is done.

    `moved` is called with the revisions before and after where they differ, also where later steps have failed.
    """

    pending: Callable[[Sequence["Migration"]], object] = lambda _: None
    applied: Callable[["Step"], object] = lambda _: None
    # Called in the transaction of each step before its commit.
    before_commit: Callable[[Connection], object] = lambda _: None
    moved: Callable[[str | None, str | None], Awaitable[None]] = _ignore


_NOBODY = Watch()


async def migrate(
    engine: AsyncEngine, target: str = "head", watch: Watch = _NOBODY, *, is_alone: bool = False
) -> tuple[str | None, str | None]:
    """Upgrade to `target` and create the partitions ahead; return the revisions before and after.

    An empty database is filled in one transaction. In any other each migration has one of its own, and the service may
    go on beside it: what is interrupted goes on where it was. Safe to call from several processes at once: one does the
    work, the others wait and have nothing left to do. Raises Refused where locks cannot be had for as little time as a
    service that goes on allows; with `is_alone` they are waited for, and kept for as long as it takes. Raises it, too,
    for a schema of a newer version that does not serve this one, for an encoding that lacks characters, and for a
    server that is too old.
    """
    from app.db import upgrade

    async with engine.connect() as connection:
        # Not by a statement that waits: the indexes that the other builds would wait for its snapshot, and so for us.
        while not (await connection.execute(_TRY_LOCK, {"key": ADVISORY_LOCK})).scalar_one():
            await connection.commit()
            await asyncio.sleep(_LOCK_POLL_SECONDS)
        await connection.commit()
        try:
            return await upgrade.take(engine, target, watch, is_alone=is_alone)
        finally:
            await connection.rollback()
            await connection.execute(text("SELECT pg_advisory_unlock(:key)"), {"key": ADVISORY_LOCK})
            await connection.commit()


async def downgrade(engine: AsyncEngine, target: str = "base") -> None:
    """Downgrade to `target`."""
    async with engine.connect() as connection:
        await connection.run_sync(_downgrade, target)
        await connection.commit()


async def revision(engine: AsyncEngine) -> str | None:
    """Return the revision of the database."""
    async with engine.connect() as connection:
        return await connection.run_sync(revision_of)


@dataclass(frozen=True, slots=True, kw_only=True)
class ExpectedSchema:
    """The revision that this program expects, looked up once."""

    revision: str | None


def head() -> str:
    """Return the newest revision, which this program expects."""
    followers = _followers()
    (newest,) = followers.keys() - followers.values()
    return newest


def knows(revision: str) -> bool:
    """Return whether this program can upgrade a schema of this revision."""
    return revision in _followers()


def remedy(revision: str | None) -> str:
    """Return what mends a schema of this revision, which does not serve this program."""
    if revision is None or knows(revision):
        return "`convener db migrate` brings it up to date"
    return "a newer version made it: start that one again, or restore the backup that was made for this one"


def served() -> list[str]:
    """Return the revisions of programs that the newest schema serves: from its own down to that of the last release."""
    followers, oldest = _followers(), str(json.loads(PREVIOUS.read_text())["revision"])
    revisions = [head()]
    while revisions[-1] != oldest:
        revisions.append(str(followers[revisions[-1]]))
    return revisions


async def is_served(engine: AsyncEngine, revision: str | None) -> bool:
    """Return whether a schema of this revision, which is newer than the one of this program, serves this program."""
    async with engine.connect() as connection:
        return await serves(connection, revision)


async def serves(connection: AsyncConnection, revision: str | None) -> bool:
    """As `is_served`, at a connection."""
    return revision is not None and not knows(revision) and await served_revisions.includes(connection, head())


def _followers() -> dict[str, str | None]:
    """The revisions, each with the one that it follows; read as text, as importing them all takes long."""
    followers: dict[str, str | None] = {}
    for file in (MIGRATIONS / "versions").glob("*.py"):
        names = dict(_REVISION.findall(file.read_text()))
        followers[names[""]] = names["down_"] or None
    return followers


async def adopt(connection: AsyncConnection, revision: str) -> None:
    """Upgrade restored tables, which have no record of their revision, from this one, in the caller's transaction."""
    from app.db import upgrade

    await connection.execute(
        text("INSERT INTO alembic_version (version_num) VALUES (:revision)"), {"revision": revision}
    )
    await upgrade.take_at_once(connection, "head")


def apply_functions(connection: Connection) -> None:
    """Give every function and trigger the text that `migrations/functions.sql` has for it."""
    # Only a single statement can be prepared, as everything is that goes this way: the block makes one of the file.
    connection.exec_driver_sql(f"DO $file$ BEGIN {FUNCTIONS.read_text()} END $file$")
    connection.execute(text(f"COMMENT ON FUNCTION {_MARKED} IS '{_functions_digest()}'"))


def _functions_digest() -> str:
    return f"of functions.sql, {hashlib.sha256(FUNCTIONS.read_bytes()).hexdigest()}"


def functions_are_current(connection: Connection) -> bool:
    """Return whether the text that was applied last is the one of the file."""
    statement = text(f"SELECT obj_description(to_regprocedure('{_MARKED}'), 'pg_proc')")
    return bool(connection.execute(statement).scalar_one_or_none() == _functions_digest())


def is_compared(element: Any, name: str | None, kind: str, *_: Any) -> bool:
    """Return whether a comparison of models and database covers a table or index: partitions are in no model."""
    table = element if kind == "table" else getattr(element, "table", None)
    return table is None or not retention.is_partition(str(table.name))


def _downgrade(connection: Connection, target: str) -> None:
    from alembic import command

    command.downgrade(_config(connection), target)


def revision_of(connection: Connection) -> str | None:
    """Return the revision of the database at this connection."""
    if connection.scalar(text("SELECT to_regclass('alembic_version')")) is None:
        return None
    revision: str | None = connection.scalar(text("SELECT version_num FROM alembic_version"))
    return revision


def _config(connection: Connection) -> "Config":
    from alembic.config import Config

    config = Config()
    config.set_main_option("script_location", str(MIGRATIONS))
    config.attributes["connection"] = connection
    return config
