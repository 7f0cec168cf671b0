"""Upgrades of the schema, by the migrations: an empty database at once, any other step by step."""

import logging
from collections.abc import Sequence
from typing import Any

from alembic.script import ScriptDirectory
from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine

from app.db import migration_steps, retention, schema, served_revisions
from app.db.migration_steps import Migration
from app.kernel.database_urls import OLDEST_POSTGRES
from app.kernel.errors import Refused

log = logging.getLogger(__name__)
_ENCODING = text("SELECT pg_encoding_to_char(encoding) FROM pg_database WHERE datname = current_database()")


async def take(
    engine: AsyncEngine, target: str, watch: schema.Watch, *, is_alone: bool
) -> tuple[str | None, str | None]:
    """Take the steps up to `target`; return the revisions before and after. Nobody else does so meanwhile."""
    old_revision = await schema.revision(engine)
    version = engine.dialect.server_version_info
    if version is not None and int(version[0]) < OLDEST_POSTGRES:
        hint = f"install PostgreSQL {OLDEST_POSTGRES} or newer, and make the database there"
        raise Refused(f"the server is PostgreSQL {version[0]}, and Convener needs {OLDEST_POSTGRES} or newer", hint)
    if await schema.is_served(engine, old_revision):
        return old_revision, old_revision
    if old_revision is not None and not schema.knows(old_revision):
        raise Refused(f"the schema is at {old_revision}, which this version does not know", schema.remedy(old_revision))
    script = ScriptDirectory(str(schema.MIGRATIONS))
    migrations = migration_steps.pending(script, target, old_revision, is_alone=is_alone)
    try:
        if old_revision is None:
            await _fill(engine, target)
        else:
            watch.pending(migrations)
            await _take_steps(engine, script, migrations, watch)
            await _create_partitions(engine)
    except BaseException:
        # What went wrong is told, also where the database cannot note how far that went.
        try:
            await _note_move(engine, old_revision, watch)
        except Exception as error:
            log.warning("how far the migration went could not be recorded: %s", error)
        raise
    return old_revision, await _note_move(engine, old_revision, watch)


async def _note_move(engine: AsyncEngine, old_revision: str | None, watch: schema.Watch) -> str | None:
    """Tell of the revision that was reached, where it is another; return it."""
    new_revision = await schema.revision(engine)
    if new_revision != old_revision:
        await watch.moved(old_revision, new_revision)
    return new_revision


async def _fill(engine: AsyncEngine, target: str) -> None:
    async with engine.connect() as connection:
        await connection.execute(text("SET LOCAL statement_timeout = '10min'"))
        await take_at_once(connection, target)
        await connection.commit()


async def take_at_once(connection: AsyncConnection, target: str) -> None:
    """Take all steps and create the partitions ahead in the transaction of the caller, where nobody waits for it.

    Raises Refused where the database cannot hold every text.
    """
    encoding = (await connection.execute(_ENCODING)).scalar_one()
    if encoding != "UTF8":
        hint = "make it anew: createdb --encoding=UTF8 --locale=C --template=template0 --owner=ROLE NAME"
        raise Refused(f"the database has the encoding {encoding}, in which not every text can be stored", hint)
    script = ScriptDirectory(str(schema.MIGRATIONS))
    await connection.run_sync(migration_steps.run, script, target, {})
    if await connection.run_sync(schema.revision_of) == script.get_current_head():
        await connection.run_sync(served_revisions.grant, schema.served())
    await retention.create_ahead(connection)


async def _take_steps(
    engine: AsyncEngine, script: ScriptDirectory, migrations: Sequence[Migration], watch: schema.Watch
) -> None:
    async with engine.connect() as connection:
        # Before the first step: versions that the new schema does not serve are not ready from now on.
        await connection.run_sync(served_revisions.withdraw, schema.served())
        if not migrations and await connection.run_sync(schema.revision_of) == script.get_current_head():
            await connection.run_sync(served_revisions.grant, schema.served())
        are_stale = not await connection.run_sync(schema.functions_are_current)
        await connection.commit()
    for migration in migrations:
        is_last = migration is migrations[-1]
        attributes: dict[str, Any] = {"is_last": is_last, "before_commit": [watch.before_commit]}
        if is_last and migration.revision == script.get_current_head():
            # Whichever step asks for it, in this run or in one that was interrupted.
            asked = any(_asks_for_functions(script, step.revision) for step in migrations)
            attributes["apply_functions"] = asked or are_stale
            attributes["before_commit"].append(lambda plain: served_revisions.grant(plain, schema.served()))
        watch.applied(await migration_steps.apply(engine, script, migration, attributes))


def _asks_for_functions(script: ScriptDirectory, revision: str) -> bool:
    return hasattr(script.get_revision(revision).module, "functions_sha256")


async def _create_partitions(engine: AsyncEngine) -> None:
    """Create the partitions ahead, but for those whose table is in use for too long: the loops make them as well."""
    async with engine.connect() as connection:
        for table in retention.PARTITIONED:
            for day in await retention.missing_days(connection, table):
                await retention.create(connection, table, day)
                await connection.commit()
