"""`convener db` on databases that are empty, migrated, and away."""

import ast
import asyncio
import json
import os
import sys
from pathlib import Path
from urllib.parse import urlsplit

import pytest
from sqlalchemy import text

import app
from app.cli import db, keys
from app.db import retention, schema
from app.db.database import Database
from app.loops import housekeeping
from tests.conftest import named
from tests.support.command_line import CommandLine
from tests.support.sql import execute, fetch


async def test_an_empty_database_is_migrated_once(offline: CommandLine, empty_url: str) -> None:
    url = {"CONVENER_DATABASE_URL": empty_url}
    assert "convener db migrate" in (await offline("db", "status", **url)).out
    first = await offline("db", "migrate", "-o", "json", **url)
    assert first.json == {"before": None, "after": schema.head(), "steps": []}
    assert "nothing to do" in (await offline("db", "migrate", **url)).out
    status = await offline("db", "status", "-o", "json", **url)
    assert status.json == {"revision": schema.head(), "expected": schema.head(), "current": True, "served": True}
    database = Database(empty_url)
    (by,) = [row["by"] for row in await fetch(database, "SELECT by FROM audit WHERE action = 'db.migrate'")]
    await database.close()
    assert by.startswith("convener db migrate by ")
    assert "Traceback" not in (await offline("db", "migrate", "--to", "", **url)).err
    unknown = await offline("db", "migrate", "--to", "nowhere", **url)
    assert (unknown.code, unknown.out) == (1, "")
    assert "nowhere" in unknown.err


async def test_a_migration_that_is_ended_shows_and_records_how_far_it_went(own_database: Database) -> None:
    first, second, third = "2026_11_30_model_uses", "2026_12_02_closed_holds", "2026_12_03_array_statistics"
    await schema.downgrade(own_database.engine, first)

    async with (await own_database.pool()).acquire() as other, other.transaction():
        await other.execute("LOCK TABLE events")  # which the third one wants
        command = [sys.executable, "-m", "app.cli", "db", "migrate", "--to", third]
        environment = {**os.environ, "CONVENER_DATABASE_URL": own_database.url}
        child = await asyncio.create_subprocess_exec(*command, env=environment, stderr=asyncio.subprocess.PIPE)
        assert child.stderr is not None
        assert await asyncio.wait_for(child.stderr.readline(), 30) == f"{second}: locked nothing\n".encode()
        child.terminate()
        _, err = await child.communicate()
    assert (child.returncode, b"Traceback" in err) == (130, False), err.decode()
    rows = await fetch(own_database, "SELECT before, after FROM audit WHERE action = 'db.migrate'")
    assert [(json.loads(row["before"]), json.loads(row["after"])) for row in rows] == [(first, second)]


async def test_the_locks_of_an_upgrade_are_told_before_and_after(offline: CommandLine, own_database: Database) -> None:
    url = {"CONVENER_DATABASE_URL": own_database.url}
    await schema.downgrade(own_database.engine, "2026_11_28_hot_claims")
    answer = await offline("db", "migrate", "--offline", **url)
    lines = answer.err.splitlines()
    assert lines[0].startswith("2026_11_28_lean_rows builds an index of task_history: nothing")
    assert any(
        line.startswith("2026_11_28_lean_rows: locked task_history, ") and line.endswith(" ms") for line in lines
    )
    assert "2026_11_28_sessions: locked nothing" in lines
    assert f"migrated from 2026_11_28_hot_claims to {schema.head()}" in answer.out
    await schema.downgrade(own_database.engine, "2026_11_28_sessions")
    steps = (await offline("db", "migrate", "-o", "json", **url)).json["steps"]
    assert {step["revision"]: step["locked"] for step in steps}["2026_11_28_served_revisions"] == []


async def test_a_former_version_finds_nothing_to_do_on_a_newer_schema(
    offline: CommandLine, own_database: Database
) -> None:
    url = {"CONVENER_DATABASE_URL": own_database.url}
    await execute(own_database, "UPDATE alembic_version SET version_num = 'next_year'")
    assert "nothing to do" in (await offline("db", "migrate", **url)).out
    status = await offline("db", "status", **url)
    assert (status.code, "made for this version" in status.out) == (0, True)
    await execute(own_database, "DELETE FROM served_revisions")
    status = await offline("db", "status", **url)
    assert (status.code, "start that one again" in status.out, "db migrate" in status.out) == (1, True, False)
    for command in ("migrate", "verify"):
        refused = await offline("db", command, **url)
        assert (refused.code, "next_year" in refused.err, "start that one" in refused.err) == (1, True, True)


@pytest.mark.parametrize(
    "command", ["db status", "db migrate", "key ls --database", "key create reader --label x --database"]
)
async def test_the_bundled_database_is_used_where_no_other_is_named(
    offline: CommandLine, monkeypatch: pytest.MonkeyPatch, command: str
) -> None:
    for module in (db, keys):
        monkeypatch.setattr(module, "bundled_url", lambda: "postgresql://me@127.0.0.1:1/x")
    stopped = await offline(*command.split(), "-o", "json")
    assert (stopped.code, stopped.out) == (3, "")
    assert "convener up" in json.loads(stopped.err)["hint"]


async def test_a_database_that_is_away_or_not_named(offline: CommandLine, server_url: str) -> None:
    away = await offline("db", "status", CONVENER_DATABASE_URL="postgresql://me:hidden@127.0.0.1:1/x")
    assert away.code == 3
    assert ("hidden" in away.err, "[Errno" in away.err) == (False, False)
    missing = await offline("db", "migrate", CONVENER_DATABASE_URL=named(server_url, "convener_missing"))
    assert (missing.code, missing.out) == (1, "")
    assert "convener_missing" in missing.err
    wrong_password = server_url.replace(str(urlsplit(server_url).password), "wrong")
    refused = await offline("db", "status", CONVENER_DATABASE_URL=wrong_password)
    assert refused.code == 1
    assert "user and password" in refused.err
    assert "db status" not in refused.err
    unset = await offline("db", "migrate")
    assert unset.code == 2
    assert "convener up" in unset.err
    wrong = await offline("db", "migrate", CONVENER_DATABASE_URL="mysql://x")
    assert wrong.code == 2
    assert "CONVENER_DATABASE_URL" in wrong.err


# Functions of commands that work on the database itself: the action of the entry that each leaves in the audit log, or
# why it leaves none.
_DIRECT = {
    "cli/keys.py::_make": "key.create",
    "cli/keys.py::rotate": "key.rotate",
    "cli/keys.py::revoke": "key.revoke",
    "cli/keys.py::ls": "it shows neither secrets nor content",
    "cli/database_checks.py::database_checks": "it only looks",
    "cli/db.py::migrate": "db.migrate",
    "cli/db.py::partition": "db.partition",
    "cli/db.py::status": "it shows a revision",
    "memory/cli/backups.py::backup": "db.backup",
    "memory/cli/backups.py::restore": "db.restore",
    "memory/cli/backups.py::advance": "db.advance",
    "memory/cli/backups.py::_check_database": "it counts, in a read-only transaction",
    "memory/cli/backups.py::_dumps": "it shows the version of the server",
    "memory/cli/checkpoints.py::restore": "checkpoint.restore",
}


def test_whoever_works_on_the_database_itself_is_audited() -> None:
    """The entries are looked at by the tests of each command; this finds a command that nobody has thought of."""
    root, direct = Path(app.__file__).parent, set()
    for file in root.rglob("cli/**/*.py"):
        for node in ast.walk(ast.parse(file.read_text())):
            calls = [part.func for part in ast.walk(node) if isinstance(part, ast.Call)]
            if isinstance(node, ast.FunctionDef) and any(
                isinstance(call, ast.Name) and call.id == "on_database" for call in calls
            ):
                direct.add(f"{file.relative_to(root)}::{node.name}")
    assert direct == _DIRECT.keys()


async def test_partitions_beside_a_large_default_one(
    offline: CommandLine, own_database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Housekeeping and the doctor say what to do, and that helps."""
    url = {"CONVENER_DATABASE_URL": own_database.url}
    monkeypatch.setattr(retention, "_LARGEST_BYTES", -1)
    names = await fetch(
        own_database, "SELECT inhrelid::regclass::text FROM pg_inherits WHERE inhparent = 'events'::regclass"
    )
    last = max(name for (name,) in names if not name.endswith("default"))
    await execute(own_database, f"DROP TABLE {last}")
    assert (await housekeeping.run(own_database, history_days=9, events_days=9))["events made"] == []
    checks = (await offline("doctor", "-o", "json", **url)).json["checks"]
    (remedy,) = {check["remedy"] for check in checks if check["name"] == "partitions"}
    assert "`convener db partition`" in remedy
    answer = await offline("db", "partition", "--days", "5", "-o", "json", **url)
    assert last in answer.json["made"]["events"]
    # With what was made, and only where something was.
    assert (await offline("db", "partition", "--days", "5", **url)).code == 0
    entries = await fetch(own_database, "SELECT after FROM audit WHERE action = 'db.partition' ORDER BY seq")
    made = [{table: names} for table, names in answer.json["made"].items() if names]
    assert [json.loads(after) for (after,) in entries] == made
    async with own_database.transaction() as reader:
        await reader.execute(text("SELECT FROM events LIMIT 1"))
        busy = await offline("db", "partition", "--days", "7", **url)
    assert (busy.code, "try again" in busy.err) == (1, True)
