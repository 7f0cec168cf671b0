"""`convener checkpoints` against the real service, and into an empty database."""

import asyncio
import hashlib
import json
import os
import stat
import subprocess
import sys
from pathlib import Path

from app.db.database import Database
from app.terminal.failures import ExitCode
from tests.support.command_line import CommandLine
from tests.support.sql import value


async def test_taken_listed_read_and_verified(convener: CommandLine, goal: str) -> None:
    await convener("tasks", "submit", "--agent", "ranking", "--goal", goal)
    taken = (await convener("checkpoints", "create", "--reason", "before the upgrade", "-o", "json")).json
    assert taken["counts"]["tasks"] >= 1
    listed = (await convener("checkpoints", "ls", "-o", "json")).json["items"]
    assert taken in listed
    assert "before the upgrade" in (await convener("checkpoints", "ls", COLUMNS="160")).out
    shown = (await convener("checkpoints", "get", str(taken["id"]))).out
    assert taken["sha256"] in shown
    assert (await convener("checkpoints", "get", str(taken["id"]), "-o", "json")).json == taken
    assert (await convener("checkpoints", "verify", str(taken["id"]))).out == "ok\n"
    assert (await convener("checkpoints", "verify", str(taken["id"]), "-o", "json")).json["ok"]
    assert (await convener("checkpoints", "get", "999999999")).code == 5


async def test_exported_and_restored(
    convener: CommandLine, offline: CommandLine, goal: str, tmp_path: Path, empty_url: str
) -> None:
    task = (await convener("tasks", "submit", "--agent", "ranking", "--goal", goal)).out.strip()
    taken = (await convener("checkpoints", "create", "-o", "json")).json
    file = tmp_path / "c"
    done = await convener("checkpoints", "export", str(taken["id"]), str(file))
    assert (done.code, done.err) == (0, "")
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    head, content = file.read_text().split("\n", 1)
    assert json.loads(head)["sha256"] == taken["sha256"]
    assert task in [found["id"] for found in json.loads(content)["tasks"]]
    again = await convener("checkpoints", "export", str(taken["id"]), str(file))
    assert (again.code, again.out) == (1, "")
    assert "exists already" in again.err
    restored = await offline("checkpoints", "restore", str(file), "-o", "json", CONVENER_DATABASE_URL=empty_url)
    assert (restored.code, restored.json["tasks"]) == (0, taken["counts"]["tasks"])
    assert "convener key create" not in restored.out
    database = Database(empty_url)
    assert await value(database, "SELECT state FROM tasks WHERE CAST(id AS text) = $1", task) in ("pending", "blocked")
    by = await value(database, "SELECT by FROM audit WHERE action = 'checkpoint.restore'")
    assert str(by).startswith("convener checkpoints restore by ")
    await database.close()
    twice = await offline("checkpoints", "restore", str(file), CONVENER_DATABASE_URL=empty_url)
    assert (twice.code, twice.out) == (1, "")
    assert "not empty" in twice.err


async def test_restored_by_a_fresh_process(convener: CommandLine, goal: str, tmp_path: Path, empty_url: str) -> None:
    """A process in which nothing else has imported the tables."""
    await convener("tasks", "submit", "--agent", "ranking", "--goal", goal)
    taken = (await convener("checkpoints", "create", "-o", "json")).json
    file = tmp_path / "c"
    assert (await convener("checkpoints", "export", str(taken["id"]), str(file))).code == 0
    command = [sys.executable, "-m", "app.cli", "checkpoints", "restore", str(file), "-o", "json"]
    environment = {**os.environ, "CONVENER_DATABASE_URL": empty_url}
    restoring = await asyncio.create_subprocess_exec(*command, env=environment, stdout=subprocess.PIPE)
    restored = json.loads((await restoring.communicate())[0])
    assert (restoring.returncode, restored["tasks"]) == (0, taken["counts"]["tasks"])


async def test_files_that_are_no_checkpoints(offline: CommandLine, tmp_path: Path, empty_url: str) -> None:
    file = tmp_path / "c"
    for text in ("", "nonsense", "{}", "[" * 100_000, '{"convener_checkpoint": 2, "sha256": "00"}\n{}'):
        file.write_text(text)
        done = await offline("checkpoints", "restore", str(file), CONVENER_DATABASE_URL=empty_url)
        assert (done.code, done.out) == (2, ""), text
    file.write_text('{"convener_checkpoint": 1, "sha256": "00"}\n{}')
    damaged = await offline("checkpoints", "restore", str(file), CONVENER_DATABASE_URL=empty_url)
    assert damaged.code == 1
    assert "damaged" in damaged.err
    parts = ("tasks", "leased", "dependencies", "context")
    lists = {"tasks": [], "dependencies": [], "context": [], "config_versions": [1]}
    content = json.dumps({"format": 1, "event_cursor": "1-1", "counts": dict.fromkeys(parts, 0), **lists})
    head = {"convener_checkpoint": 1, "sha256": hashlib.sha256(content.encode()).hexdigest()}
    file.write_text(f"{json.dumps(head)}\n{content}")
    incomplete = await offline("checkpoints", "restore", str(file), CONVENER_DATABASE_URL=empty_url)
    assert incomplete.code == 1
    assert "not complete" in incomplete.err
    assert (await offline("checkpoints", "restore", str(tmp_path / "none"))).code == 2


async def test_an_id_in_place_of_a_file_is_answered_with_how_to_get_one(offline: CommandLine) -> None:
    done = await offline("checkpoints", "restore", "99")
    assert (done.code, "`convener checkpoints export` writes one" in done.err) == (ExitCode.USAGE, True)
