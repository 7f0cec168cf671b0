"""Migrations beside a service that goes on: what they lock, how long they wait, and what an interrupted one leaves."""

import asyncio
import json
import shutil
import subprocess
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import asyncpg
import pytest
from sqlalchemy import text

from app.db import migration_steps, schema
from app.db.database import Database
from app.db.migration_steps import Step
from app.kernel.errors import DatabaseUnavailable, Refused
from benchmarks import migration_locks
from benchmarks.migration_locks import Watched
from tests.conftest import empty_database
from tests.support.factories import submitted
from tests.support.sql import execute, fetch, until, until_blocked, value

_TASKS = 50_000
# What a transaction may touch with its locks; the catalogue and small tables are far below.
_FEW_ROWS = 2_000
# As a transaction does that has written a task, and stays open.
_WRITES = "LOCK TABLE tasks IN ROW EXCLUSIVE MODE"
_WAITS_FOR_MIGRATION = """
SELECT EXISTS (SELECT FROM pg_stat_activity WHERE datname = current_database() AND pid <> pg_backend_pid()
    AND query ~ 'advisory_lock|COMMIT'
    AND pid <> ALL (SELECT pid FROM pg_locks WHERE locktype = 'advisory' AND granted))
"""
_WAITS_FOR_VACUUM = """
SELECT EXISTS (SELECT FROM pg_locks WHERE relation = 'tasks'::regclass AND NOT granted
    AND mode = 'ShareUpdateExclusiveLock' AND waitstart < clock_timestamp() - interval '0.5 s')
"""
AddMigration = Callable[..., str]


@pytest.fixture
def add_migration(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> AddMigration:
    """Adds a migration to a copy of ours, which counts from then on; takes its body and what stands above it."""
    migrations = tmp_path / "migrations"
    shutil.copytree(schema.FUNCTIONS.parent, migrations)
    monkeypatch.setattr(schema, "MIGRATIONS", migrations)

    def add(body: str, head: str = "from alembic import op") -> str:
        former = schema.head()
        name = f"9_{len(list((migrations / 'versions').glob('9_*')))}"
        lines = [head, f'revision = "{name}"', f'down_revision = "{former}"', "def upgrade():", f"    {body}"]
        (migrations / "versions" / f"{name}.py").write_text("\n".join(lines) + "\n")
        return name

    return add


@pytest.mark.slow
async def test_no_migration_reads_or_writes_large_tables_while_it_holds_locks(
    server_url: str, add_migration: AddMigration
) -> None:
    """All migrations over 50,000 tasks with their history and events; then some that do what none may do."""
    async with empty_database(server_url) as database:
        # Without limits: it is their locks that count here, and not the speed of this machine.
        watched = await migration_locks.migrate(database.url, _TASKS, _TASKS, is_alone=True)
        assert [step.revision for step in watched.steps][-1] == schema.head()
        assert _culprits(watched) == []
        declared = {step.revision for step in watched.steps if watched.declared[step.revision]}
        assert {"2026_11_24_whole_queue", "2026_11_28_hot_claims", "2026_11_28_lean_rows"} < declared
        index = add_migration("op.execute('CREATE INDEX tasks_probe ON tasks (created_at)')")
        check = add_migration("op.execute('ALTER TABLE task_history ADD CHECK (failures >= 0)')")
        rewrite = add_migration("op.execute('UPDATE tasks SET failures = 1'); op.execute('LOCK TABLE goals')")
        online = "from migrations.online import create_index"
        beside = [
            add_migration("create_index('tasks_made', 'tasks', '(created_at)')", online),
            add_migration("create_index('task_history_made', 'task_history', '(created_at)')", online),
        ]
        bad = Watched()
        await schema.migrate(database.engine, watch=bad.watch(), is_alone=True)
        assert [step.revision for step in bad.steps] == [index, check, rewrite, *beside]
        assert _culprits(bad) == [index, check, rewrite]
        assert await value(database, "SELECT bool_and(indisvalid) FROM pg_index") is True
        query = "SELECT count(*) FROM pg_inherits WHERE inhparent = 'task_history_made'::regclass"
        assert await value(database, query) == 5


def _culprits(watched: Watched) -> list[str]:
    """Migrations that touch many rows while they hold strong locks, and do not say so."""
    return [
        step.revision
        for step in watched.steps
        if watched.declared[step.revision] is None and step.locked and watched.rows(step) > _FEW_ROWS
    ]


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Steps are tried once."""
    monkeypatch.setattr(migration_steps, "ONLINE", replace(migration_steps.ONLINE, patience_seconds=0.0))


async def test_a_step_lets_others_pass_until_it_has_its_lock(
    own_database: Database, add_migration: AddMigration
) -> None:
    revision, steps = add_migration("op.execute('ALTER TABLE tasks ADD COLUMN probe int')"), list[Step]()
    async with own_database.transaction() as connection:
        await connection.exec_driver_sql(_WRITES)
        migration = asyncio.create_task(schema.migrate(own_database.engine, watch=schema.Watch(applied=steps.append)))
        await until_blocked(own_database)
        # Behind the step, which gives up its place in the line.
        await submitted(own_database, 1)
        assert not migration.done()
    _, reached = await migration
    assert reached == revision
    assert steps[0].attempts > 1
    assert steps[0].locked == ["tasks"]
    assert steps[0].seconds < 0.5


async def test_a_step_waits_for_vacuums_without_keeping_others_waiting(
    own_database: Database, add_migration: AddMigration
) -> None:
    revision = add_migration("op.execute('ALTER TABLE tasks ADD COLUMN probe int')")
    async with own_database.transaction() as connection:
        # As a vacuum does.
        await connection.exec_driver_sql("LOCK TABLE tasks IN SHARE UPDATE EXCLUSIVE MODE")
        migration = asyncio.create_task(schema.migrate(own_database.engine))
        await until_blocked(own_database)
        await submitted(own_database, 1)
        # For longer than it would for a lock that keeps others out.
        await until(lambda: value(own_database, _WAITS_FOR_VACUUM))
        assert not migration.done()
    assert (await migration)[1] == revision


async def test_a_step_leaves_vacuums_of_the_servers_own_tables_alone(
    own_database: Database, add_migration: AddMigration
) -> None:
    """They are no business of a step, and only a superuser could wait for their locks."""
    revision = add_migration("op.execute('ALTER TABLE tasks ADD COLUMN probe int')")
    vacuuming = await asyncpg.connect(own_database.url)
    try:
        await vacuuming.execute("SET vacuum_cost_limit = 1; SET vacuum_cost_delay = 100")
        vacuum = asyncio.create_task(vacuuming.execute("VACUUM (DISABLE_PAGE_SKIPPING) pg_attribute"))
        query = "SELECT count(*) FROM pg_locks WHERE relation = 'pg_attribute'::regclass AND mode = $1"
        while not await value(own_database, query, "ShareUpdateExclusiveLock"):
            assert not vacuum.done()
        assert (await schema.migrate(own_database.engine))[1] == revision
        assert not vacuum.done()
    finally:
        vacuuming.terminate()
    with pytest.raises(asyncpg.PostgresConnectionError):
        await vacuum


@pytest.mark.usefixtures("impatient")
async def test_a_step_that_cannot_have_its_lock_gives_up_in_words(
    own_database: Database, add_migration: AddMigration
) -> None:
    before = schema.head()
    add_migration("op.execute('ALTER TABLE tasks ADD COLUMN probe int')")
    async with own_database.transaction() as connection:
        await connection.exec_driver_sql(_WRITES)
        with pytest.raises(Refused, match="lock timeout") as refused:
            await schema.migrate(own_database.engine)
    assert "--offline" in str(refused.value.hint)
    assert await schema.revision(own_database.engine) == before


@pytest.mark.usefixtures("impatient")
async def test_a_step_that_takes_long_is_ended_by_the_server_and_undone(
    own_database: Database, add_migration: AddMigration
) -> None:
    before = schema.head()
    add_migration("op.execute('LOCK TABLE tasks'); [op.execute('SELECT pg_sleep(0.1)') for _ in range(99)]")
    with pytest.raises(Refused):
        await schema.migrate(own_database.engine)
    assert await schema.revision(own_database.engine) == before
    # Nothing is held any more, and no limit is left on the connections.
    assert await value(own_database, "SELECT count(*) FROM pg_locks WHERE locktype = 'advisory'") == 0
    await submitted(own_database, 1)
    async with own_database.transaction() as connection:
        limit = (await connection.exec_driver_sql("SHOW transaction_timeout")).scalar_one()
    assert limit == "0"


async def test_an_interrupted_upgrade_goes_on_and_applies_the_functions(
    own_database: Database, add_migration: AddMigration
) -> None:
    functions = schema.FUNCTIONS.read_text()
    changed = Path(schema.MIGRATIONS) / "functions.sql"
    changed.write_text(functions.replace("rows of % are only added", "all rows of % are only added"))
    head = "from alembic import context, op\nfunctions_sha256 = 'x'"
    first = add_migration("context.config.attributes['apply_functions'] = True", head)
    last = add_migration("op.execute('CREATE TABLE probe (id int)')")

    def stop(step: Step) -> None:
        raise KeyboardInterrupt

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(schema, "FUNCTIONS", changed)
        with pytest.raises(KeyboardInterrupt):
            await schema.migrate(own_database.engine, watch=schema.Watch(applied=stop))
        assert await schema.revision(own_database.engine) == first
        await schema.migrate(own_database.engine)
    assert await schema.revision(own_database.engine) == last
    body = await value(own_database, "SELECT prosrc FROM pg_proc WHERE proname = 'convener_append_only'")
    assert "all rows of % are only added" in body


async def test_an_index_is_built_anew_after_an_attempt_that_failed(
    own_database: Database, add_migration: AddMigration
) -> None:
    await execute(own_database, "CREATE TABLE probe (id int)")
    await execute(own_database, "INSERT INTO probe VALUES (1), (1)")
    with pytest.raises(Exception, match="could not create unique index"):
        await execute(own_database, "CREATE UNIQUE INDEX CONCURRENTLY probe_id ON probe (id)")
    add_migration("create_index('probe_id', 'probe', '(id)')", "from migrations.online import create_index")
    await schema.migrate(own_database.engine)
    query = "SELECT indisvalid, indisunique FROM pg_index WHERE indexrelid = 'probe_id'::regclass"
    assert [tuple(row) for row in await fetch(own_database, query)] == [(True, False)]


async def test_an_index_after_other_changes_is_refused(own_database: Database, add_migration: AddMigration) -> None:
    before = schema.head()
    body = "op.execute('CREATE TABLE probe (id int)'); create_index('probe_id', 'probe', '(id)')"
    add_migration(body, "from alembic import op\nfrom migrations.online import create_index")
    with pytest.raises(ValueError, match="before anything else"):
        await schema.migrate(own_database.engine)
    assert await schema.revision(own_database.engine) == before
    assert await value(own_database, "SELECT to_regclass('probe')") is None


async def test_a_statement_whose_table_has_got_a_column_meanwhile_is_to_be_repeated(own_database: Database) -> None:
    async def read() -> None:
        async with own_database.transaction() as connection:
            await connection.execute(text("SELECT * FROM workers"))

    for _ in range(3):
        await read()
    await execute(own_database, "ALTER TABLE workers ADD COLUMN probe int")
    with pytest.raises(DatabaseUnavailable, match="just changed"):
        await read()
    await read()


async def test_a_newer_schema_is_left_alone_where_it_serves_this_version(own_database: Database) -> None:
    engine = own_database.engine
    await execute(own_database, "UPDATE alembic_version SET version_num = 'next_year'")
    assert await schema.migrate(engine) == ("next_year", "next_year")
    await execute(own_database, "DELETE FROM served_revisions WHERE revision = $1", schema.head())
    with pytest.raises(Exception, match="next_year"):
        await schema.migrate(engine)


async def test_versions_that_the_new_schema_does_not_serve_are_not_ready_from_the_first_step_on(
    own_database: Database, add_migration: AddMigration
) -> None:
    await execute(own_database, "INSERT INTO served_revisions VALUES ('long_ago')")
    first, last, seen = add_migration("pass"), add_migration("pass"), list[list[str]]()

    def look(connection: object) -> None:
        rows = connection.exec_driver_sql("SELECT revision FROM served_revisions ORDER BY 1")  # type: ignore[attr-defined]
        seen.append(list(rows.scalars()))

    await schema.migrate(own_database.engine, watch=schema.Watch(before_commit=look))
    assert "long_ago" not in seen[0]
    assert {"2026_11_28_served_revisions"} <= set(seen[0])
    served = {row["revision"] for row in await fetch(own_database, "SELECT revision FROM served_revisions")}
    assert {first, last} < served


def test_the_former_release_is_the_one_that_is_recorded() -> None:
    """A release writes its own commit and revision down, so that the next one goes on beside it."""
    previous = json.loads(schema.PREVIOUS.read_text())
    root = schema.PREVIOUS.parents[1]
    assert previous["revision"] in schema.served()
    git = ["git", "-C", str(root)]
    found = subprocess.run(
        [*git, "rev-parse", "--verify", "--quiet", previous["commit"]], capture_output=True, text=True
    )
    if found.returncode:
        pytest.skip("the history of this checkout does not reach back to it")
    listing = [*git, "ls-tree", "-r", "--name-only", found.stdout.strip(), "migrations/versions/"]
    files = subprocess.run(listing, capture_output=True, text=True, check=True).stdout.split()
    assert f"migrations/versions/{previous['revision']}.py" in files


async def test_whoever_waits_for_another_migration_keeps_no_index_from_being_built(own_database: Database) -> None:
    await execute(own_database, "CREATE TABLE probe (id int)")
    other, holder = Database(own_database.url), await own_database.connect()
    try:
        await holder.execute(f"SELECT pg_advisory_lock({schema.ADVISORY_LOCK})")
        waiting = asyncio.create_task(schema.migrate(other.engine))
        await until(lambda: value(own_database, _WAITS_FOR_MIGRATION))
        # It waits for everybody who has a snapshot, as the one does whose statement waits for a lock.
        await execute(own_database, "CREATE INDEX CONCURRENTLY probe_id ON probe (id)")
        assert not waiting.done()
        await holder.close()
        assert await waiting == (schema.head(), schema.head())
    finally:
        holder.terminate()
        await other.close()
