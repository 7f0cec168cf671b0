"""Brings the schema up to date, and down again."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from alembic import command
from alembic.config import Config
from alembic.runtime.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import Connection, text
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine

from app.db import retention

_MIGRATIONS = Path(__file__).parents[2] / "migrations"
FUNCTIONS = _MIGRATIONS / "functions.sql"
# Any constant does, as long as nobody else takes it: it keeps two migrating processes apart.
_ADVISORY_LOCK = 7_241_001


async def migrate(engine: AsyncEngine, target: str = "head") -> tuple[str | None, str | None]:
    """Upgrade to `target` and create the partitions ahead; returns the revisions before and after.

    Safe to call from any number of processes at once: one works, the others wait and find nothing to do.
    """
    async with engine.connect() as connection:
        await connection.execute(text("SELECT pg_advisory_lock(:key)"), {"key": _ADVISORY_LOCK})
        await connection.commit()
        try:
            before, after = await connection.run_sync(_upgrade, target)
            await retention.create_ahead(connection)
            await connection.commit()
        finally:
            await connection.rollback()
            await connection.execute(text("SELECT pg_advisory_unlock(:key)"), {"key": _ADVISORY_LOCK})
            await connection.commit()
    return before, after


async def downgrade(engine: AsyncEngine, target: str = "base") -> None:
    """Take migrations back down to `target`."""
    async with engine.connect() as connection:
        await connection.run_sync(lambda plain: command.downgrade(_config(plain), target))
        await connection.commit()


async def revision(engine: AsyncEngine) -> str | None:
    """The revision that the database is at."""
    async with engine.connect() as connection:
        return await connection.run_sync(_revision)


@dataclass(frozen=True, slots=True, kw_only=True)
class ExpectedSchema:
    """The revision that this program expects, looked up once."""

    revision: str | None


def head() -> str | None:
    """The revision that this program expects."""
    return ScriptDirectory(str(_MIGRATIONS)).get_current_head()


def knows(revision: str) -> bool:
    """Whether this program can bring a schema of this revision up to date."""
    return any(script.revision == revision for script in ScriptDirectory(str(_MIGRATIONS)).walk_revisions())


async def adopt(connection: AsyncConnection, revision: str) -> None:
    """Tables that came without a word about their revision are at this one; bring them up to date.

    All within the transaction of the caller.
    """
    await connection.execute(
        text("INSERT INTO alembic_version (version_num) VALUES (:revision)"), {"revision": revision}
    )
    await connection.run_sync(_upgrade, "head")
    await retention.create_ahead(connection)


def apply_functions(connection: Connection) -> None:
    """Give every function and trigger the text that `migrations/functions.sql` has for it."""
    # Only a single statement can be prepared, as everything is that goes this way: the block makes one of the file.
    connection.exec_driver_sql(f"DO $file$ BEGIN {FUNCTIONS.read_text()} END $file$")


def is_ours(thing: Any, name: str | None, kind: str, *_: Any) -> bool:
    """Whether a comparison of models and database should look at this; partitions come and go by themselves."""
    table = thing if kind == "table" else getattr(thing, "table", None)
    return table is None or not retention.is_partition(str(table.name))


def _upgrade(connection: Connection, target: str) -> tuple[str | None, str | None]:
    before = _revision(connection)
    command.upgrade(_config(connection), target)
    return before, _revision(connection)


def _revision(connection: Connection) -> str | None:
    return MigrationContext.configure(connection).get_current_revision()


def _config(connection: Connection) -> Config:
    config = Config()
    config.set_main_option("script_location", str(_MIGRATIONS))
    config.attributes["connection"] = connection
    return config
