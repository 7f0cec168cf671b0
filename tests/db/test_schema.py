"""Migrations and models agree, and migrations go up from empty and down again."""

from alembic.autogenerate import compare_metadata
from alembic.runtime.migration import MigrationContext
from sqlalchemy import Connection, text

from app.db import schema
from app.db.database import Database
from app.metadata import metadata
from tests.conftest import PROCESS, named, run_on


def _differences(connection: Connection) -> list[object]:
    context = MigrationContext.configure(connection, opts={"include_object": schema.is_ours, "compare_type": True})
    return list(compare_metadata(context, metadata))


async def test_models_and_migrations_agree(database: Database) -> None:
    async with database.engine.connect() as connection:
        assert await connection.run_sync(_differences) == []


async def test_up_from_empty_and_down_again(server_url: str) -> None:
    name = f"convener_up_down_{PROCESS}"
    await run_on(server_url, f"DROP DATABASE IF EXISTS {name} WITH (FORCE)")
    await run_on(server_url, f"CREATE DATABASE {name}")
    database = Database(named(server_url, name))
    assert await schema.migrate(database.engine) == (None, schema.head())
    assert await schema.migrate(database.engine) == (schema.head(), schema.head())
    await schema.downgrade(database.engine)
    async with database.engine.connect() as connection:
        left = await connection.execute(
            text("SELECT relname FROM pg_class WHERE relnamespace = 'public'::regnamespace AND relkind IN ('r', 'p')")
        )
        assert set(left.scalars()) == {"alembic_version"}
    await database.close()
    await run_on(server_url, f"DROP DATABASE {name} WITH (FORCE)")


async def test_history_has_partitions_for_the_coming_days(database: Database) -> None:
    async with database.engine.connect() as connection:
        names = set(
            (
                await connection.execute(text("SELECT relname FROM pg_class WHERE relispartition AND relkind = 'r'"))
            ).scalars()
        )
    assert {"events_default", "task_history_default"} < names
    assert len(names) == 2 * (1 + 4)
