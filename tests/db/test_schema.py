"""Migrations, models and functions agree, and migrations go up from empty and down again."""

import hashlib
import re
from datetime import date, timedelta

import pytest
from alembic.autogenerate import compare_metadata
from alembic.runtime.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import CheckConstraint, Connection, text

from app.db import schema
from app.db.database import Database
from app.db.dialect import Dialect
from app.kernel.errors import Refused
from app.metadata import metadata
from tests.conftest import PROCESS, named, run_on
from tests.support.sql import execute, fetch, value


def _differences(connection: Connection) -> list[object]:
    context = MigrationContext.configure(connection, opts={"include_object": schema.is_compared, "compare_type": True})
    return list(compare_metadata(context, metadata))


async def test_models_and_migrations_agree(database: Database) -> None:
    async with database.engine.connect() as connection:
        assert await connection.run_sync(_differences) == []


async def test_values_that_columns_allow_agree(database: Database) -> None:
    """A new member of an enumeration needs a migration, and the comparison of tables looks at no checks."""
    query = """
        SELECT conrelid::regclass::text AS table, conname, pg_get_constraintdef(oid) AS definition FROM pg_constraint
        WHERE contype = 'c' AND connamespace = 'public'::regnamespace AND conparentid = 0
    """
    rows = await fetch(database, query)
    allowed = {(row["table"], row["conname"]): _quoted(row["definition"]) for row in rows}
    for table in metadata.sorted_tables:
        for check in table.constraints:
            if isinstance(check, CheckConstraint) and _quoted(str(check.sqltext)):
                key = (table.name, str(check.name))
                assert allowed[key] == _quoted(str(check.sqltext)), f"{key}: add a migration that changes the check"


def _quoted(sql: str) -> set[str]:
    return set(re.findall(r"'([^']*)'", sql))


async def test_up_from_empty_and_down_again(empty_url: str) -> None:
    database = Database(empty_url)
    assert await schema.migrate(database.engine) == (None, schema.head())
    assert await schema.migrate(database.engine) == (schema.head(), schema.head())
    await schema.downgrade(database.engine)
    async with database.engine.connect() as connection:
        left = await connection.execute(
            text("SELECT relname FROM pg_class WHERE relnamespace = 'public'::regnamespace AND relkind IN ('r', 'p')")
        )
        assert set(left.scalars()) == {"alembic_version"}
    await database.close()


async def test_a_database_that_cannot_hold_every_text_is_refused(server_url: str) -> None:
    """As `createdb` makes them on a server that was installed without a locale; failures with an accent got lost."""
    name = f"convener_encoding_{PROCESS}"
    await run_on(server_url, f"DROP DATABASE IF EXISTS {name}")
    await run_on(server_url, f"CREATE DATABASE {name} ENCODING 'SQL_ASCII' LOCALE 'C' TEMPLATE template0")
    database = Database(named(server_url, name))
    try:
        with pytest.raises(Refused, match="the encoding SQL_ASCII") as refused:
            await schema.migrate(database.engine)
        assert "--encoding=UTF8" in str(refused.value.hint)
        assert await schema.revision(database.engine) is None
    finally:
        await database.close()
        await run_on(server_url, f"DROP DATABASE {name}")


async def test_a_server_that_is_too_old_is_refused(own_database: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    """PostgreSQL 14 took every migration, and nothing said that the service is not made for it."""
    await schema.downgrade(own_database.engine, "2026_11_30_weight_steps")
    monkeypatch.setattr(Dialect, "_get_server_version_info", lambda *_: (14, 23))
    await own_database.engine.dispose()
    database = Database(own_database.url)
    try:
        with pytest.raises(Refused, match="PostgreSQL 14, and Convener needs 15"):
            await schema.migrate(database.engine)
        assert await schema.revision(database.engine) == "2026_11_30_weight_steps"
    finally:
        await database.close()


async def test_history_has_partitions_for_the_day_of_the_migration_and_three_more(own_database: Database) -> None:
    rows = await fetch(own_database, "SELECT relname FROM pg_class WHERE relispartition AND relkind = 'r'")
    names = {name for (name,) in rows}
    first = date.fromisoformat(min(names - {"events_default"}).removeprefix("events_"))
    days = [f"{first + timedelta(days=n):%Y%m%d}" for n in range(4)]
    assert names == {f"{table}_{day}" for table in ("events", "task_history") for day in ("default", *days)}
    migrated_on = await value(own_database, "SELECT (now() AT TIME ZONE 'UTC')::date")
    assert migrated_on - first in (timedelta(0), timedelta(days=1))  # midnight may have passed since


def _functions_of_the_file() -> dict[str, str]:
    """Name -> body."""
    definition = r"CREATE (?:OR REPLACE )?FUNCTION (\w+).*?AS \$\$(.*?)\$\$;"
    return dict(re.findall(definition, schema.FUNCTIONS.read_text(), re.DOTALL))


def _triggers_of_the_file() -> dict[str, str]:
    """Name -> everything behind it, on one line."""
    triggers = re.findall(r"CREATE OR REPLACE TRIGGER (\w+) (.*?);", schema.FUNCTIONS.read_text(), re.DOTALL)
    return {name: " ".join(definition.split()) for name, definition in triggers}


async def _functions(database: Database) -> dict[str, str]:
    query = "SELECT proname, prosrc FROM pg_proc WHERE pronamespace = 'public'::regnamespace"
    return {row["proname"]: row["prosrc"] for row in await fetch(database, query)}


async def _triggers(database: Database) -> dict[str, str]:
    query = "SELECT tgname, pg_get_triggerdef(oid, true) AS definition FROM pg_trigger WHERE NOT tgisinternal"
    rows = await fetch(database, query)
    return {row["tgname"]: row["definition"].removeprefix(f"CREATE TRIGGER {row['tgname']} ") for row in rows}


async def test_functions_and_triggers_are_those_of_the_file(database: Database) -> None:
    assert await _functions(database) == _functions_of_the_file()
    assert await _triggers(database) == _triggers_of_the_file()


async def test_applying_the_functions_again_changes_nothing(own_database: Database) -> None:
    before = await _functions(own_database), await _triggers(own_database)
    for _ in range(2):
        async with own_database.engine.begin() as connection:
            await connection.run_sync(schema.apply_functions)
    assert (await _functions(own_database), await _triggers(own_database)) == before


async def test_functions_are_applied_within_the_transaction(own_database: Database) -> None:
    await execute(own_database, "DROP TRIGGER audit_append_only ON audit")
    async with own_database.engine.connect() as connection:
        await connection.run_sync(schema.apply_functions)
        await connection.rollback()
    assert "audit_append_only" not in await _triggers(own_database)
    async with own_database.engine.begin() as connection:
        await connection.run_sync(schema.apply_functions)
    assert await _triggers(own_database) == _triggers_of_the_file()


async def test_an_offset_that_a_restore_has_set_survives(own_database: Database) -> None:
    """Reset to 0, it would let new events be numbered below those that readers have passed."""
    definition = "CREATE OR REPLACE FUNCTION convener_transaction_offset() RETURNS bigint LANGUAGE sql IMMUTABLE AS"
    await execute(own_database, f"{definition} $$SELECT 12345::bigint$$")
    async with own_database.engine.begin() as connection:
        await connection.run_sync(schema.apply_functions)
    assert await value(own_database, "SELECT convener_transaction_offset()") == 12345


def test_the_file_of_functions_is_the_one_that_the_last_migration_applies() -> None:
    scripts = ScriptDirectory(str(schema.FUNCTIONS.parent)).walk_revisions()
    digests = (getattr(script.module, "functions_sha256", None) for script in scripts)
    applied = next(digest for digest in digests if digest)
    digest = hashlib.sha256(schema.FUNCTIONS.read_bytes()).hexdigest()
    assert applied == digest, f"functions.sql has changed: add a migration that applies it, with {digest}"


def test_the_newest_revision_is_the_one_that_alembic_finds() -> None:
    scripts = ScriptDirectory(str(schema.FUNCTIONS.parent))
    assert schema.head() == scripts.get_current_head()
    assert all(schema.knows(script.revision) for script in scripts.walk_revisions())
    assert not schema.knows("base")
