"""Migrations: bring the schema up to date, and down again."""

import re
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sqlalchemy import Connection, text
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine

from app.db import retention

# Alembic is imported by what migrates: it would take a tenth of the start of each program, when all start anew at once.
if TYPE_CHECKING:
    from alembic.config import Config

_MIGRATIONS = Path(__file__).parents[2] / "migrations"
FUNCTIONS = _MIGRATIONS / "functions.sql"
_REVISION = re.compile(r'^(down_)?revision = (?:"(\w+)"|None)$', re.MULTILINE)
# Keeps two migrating processes apart. Any constant does that nobody else uses.
_ADVISORY_LOCK = 7_241_001


async def migrate(engine: AsyncEngine, target: str = "head") -> tuple[str | None, str | None]:
    """Upgrade to `target` and create the partitions ahead; return the revisions before and after.

    Safe to call from several processes at once: one does the work, the others wait and have nothing left to do.
    """
    async with engine.connect() as connection:
        await connection.execute(text("SELECT pg_advisory_lock(:key)"), {"key": _ADVISORY_LOCK})
        await connection.commit()
        try:
            revisions = await connection.run_sync(_upgrade, target)
            await retention.create_ahead(connection)
            await connection.commit()
        finally:
            await connection.rollback()
            await connection.execute(text("SELECT pg_advisory_unlock(:key)"), {"key": _ADVISORY_LOCK})
            await connection.commit()
    return revisions


async def downgrade(engine: AsyncEngine, target: str = "base") -> None:
    """Downgrade to `target`."""
    async with engine.connect() as connection:
        await connection.run_sync(_downgrade, target)
        await connection.commit()


async def revision(engine: AsyncEngine) -> str | None:
    """Return the revision of the database."""
    async with engine.connect() as connection:
        return await connection.run_sync(_revision)


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


def _followers() -> dict[str, str | None]:
    """The revisions, each with the one that it follows; read as text, as importing them all takes long."""
    followers: dict[str, str | None] = {}
    for file in (_MIGRATIONS / "versions").glob("*.py"):
        names = dict(_REVISION.findall(file.read_text()))
        followers[names[""]] = names["down_"] or None
    return followers


async def adopt(connection: AsyncConnection, revision: str) -> None:
    """Upgrade restored tables, which have no record of their revision, from this one, in the caller's transaction."""
    await connection.execute(
        text("INSERT INTO alembic_version (version_num) VALUES (:revision)"), {"revision": revision}
    )
    await connection.run_sync(_upgrade, "head")
    await retention.create_ahead(connection)


def apply_functions(connection: Connection) -> None:
    """Give every function and trigger the text that `migrations/functions.sql` has for it."""
    # Only a single statement can be prepared, as everything is that goes this way: the block makes one of the file.
    connection.exec_driver_sql(f"DO $file$ BEGIN {FUNCTIONS.read_text()} END $file$")


def is_compared(element: Any, name: str | None, kind: str, *_: Any) -> bool:
    """Return whether a comparison of models and database covers a table or index: partitions are in no model."""
    table = element if kind == "table" else getattr(element, "table", None)
    return table is None or not retention.is_partition(str(table.name))


def _upgrade(connection: Connection, target: str) -> tuple[str | None, str | None]:
    from alembic import command

    old_revision = _revision(connection)
    command.upgrade(_config(connection), target)
    return old_revision, _revision(connection)


def _downgrade(connection: Connection, target: str) -> None:
    from alembic import command

    command.downgrade(_config(connection), target)


def _revision(connection: Connection) -> str | None:
    if connection.scalar(text("SELECT to_regclass('alembic_version')")) is None:
        return None
    revision: str | None = connection.scalar(text("SELECT version_num FROM alembic_version"))
    return revision


def _config(connection: Connection) -> "Config":
    from alembic.config import Config

    config = Config()
    config.set_main_option("script_location", str(_MIGRATIONS))
    config.attributes["connection"] = connection
    return config
