"""`convener db backup`, `restore` and `verify`."""

import asyncio
import contextlib
import os
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urlsplit
from uuid import uuid4

import psutil
import pytest

from app.db import schema
from app.db.database import Database
from app.kernel.database_urls import OLDEST_POSTGRES
from app.memory.store.invariants import CHECKS
from app.postgres.binaries import DUMPING, SERVER, Binaries, find_binaries, find_version
from app.postgres.cluster import Cluster
from app.postgres.errors import BinariesMissing, ClusterUnusable, DumpFailed
from app.postgres.server import Server
from app.terminal.databases import new_server
from app.terminal.failures import ExitCode, Failure
from tests.conftest import named, run_on
from tests.support.command_line import CommandLine
from tests.support.factories import holding, submitted
from tests.support.postgres import running_server
from tests.support.sql import execute, value


@pytest.fixture
def console(offline: CommandLine) -> CommandLine:
    """As `offline`, with the PostgreSQL programs that the tests use."""
    configured = os.environ.get("CONVENER_POSTGRES_BIN")
    return CommandLine(environment=offline.environment | ({"CONVENER_POSTGRES_BIN": configured} if configured else {}))


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
@pytest.mark.parametrize("command", ["backup", "restore"])
async def test_the_program_of_postgresql_ends_with_the_command(
    console: CommandLine, own_database: Database, empty_url: str, tmp_path: Path, command: str, number: signal.Signals
) -> None:
    """A dump that nobody waits for would keep its snapshot, and its half file, for hours."""
    file, programs, started = tmp_path / "b.dump", tmp_path / "bin", tmp_path / "started"
    url = own_database.url
    if command == "restore":
        assert (await console("db", "backup", str(file), CONVENER_DATABASE_URL=url)).code == 0
        url = empty_url
    programs.mkdir()
    for name in DUMPING:
        real = find_binaries(os.environ.get("CONVENER_POSTGRES_BIN")).program(name)
        # Those that connect to a database are what takes long.
        wait = f"echo $$ > {started}; mv {started} {started}.pid; exec sleep 600"
        (programs / name).write_text(f'#!/bin/sh\ncase $1 in --no-password) {wait};; esac\nexec {real} "$@"\n')
        (programs / name).chmod(0o755)
    temporary = tmp_path / "temporary"
    temporary.mkdir()
    files = set(tmp_path.iterdir())
    environment = console.environment | {
        "CONVENER_DATABASE_URL": url,
        "CONVENER_POSTGRES_BIN": str(programs),
        "TMPDIR": str(temporary),
    }
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "app.cli", "db", command, str(file), env=environment
    )
    pid_file = started.with_name("started.pid")
    async with asyncio.timeout(60):
        while not pid_file.exists():
            assert process.returncode is None
            await asyncio.sleep(0.05)
        program = psutil.Process(int(pid_file.read_text()))
        pid_file.unlink()
        process.send_signal(number)
        assert await process.wait() == (-number if number is signal.SIGKILL else ExitCode.INTERRUPTED)
        with contextlib.suppress(psutil.NoSuchProcess):
            while program.status() != psutil.STATUS_ZOMBIE:
                await asyncio.sleep(0.05)
    assert not list(temporary.iterdir())
    if number is not signal.SIGKILL:
        assert set(tmp_path.iterdir()) == files


async def test_backed_up_verified_and_restored(
    console: CommandLine, own_database: Database, empty_url: str, tmp_path: Path
) -> None:
    await holding(own_database)
    await submitted(own_database, 2)
    file = tmp_path / "b.dump"
    ours = {"CONVENER_DATABASE_URL": own_database.url}
    made = await console("db", "backup", str(file), "-o", "json", **ours)
    assert (made.code, made.json["file"], made.json["size_bytes"]) == (0, str(file), file.stat().st_size)
    assert str(urlsplit(own_database.url).password) not in made.out + made.err
    for ending in ("partial", "lock"):  # of one that was killed
        (tmp_path / f".older.dump.{ending}").touch()
    again = await console("db", "backup", str(file), **ours)
    assert (again.code, again.out) == (1, "")
    assert "older.dump.partial" in again.err.replace("\n", "")
    assert "exists already" in again.err
    verified = await console("db", "verify", str(file), "-o", "json")
    assert verified.json["ok"], verified.out
    # Not only the file: it was restored, and what every invariant says of that is here.
    assert {check.name for check in CHECKS} < {check["name"] for check in verified.json["checks"]}
    restored = await console("db", "restore", str(file), "--database-url", empty_url, "-o", "json")
    assert (restored.code, restored.json["released"], restored.json["revision"]) == (0, 1, schema.head())
    twice = await console("db", "restore", str(file), CONVENER_DATABASE_URL=empty_url)
    assert (twice.code, twice.out) == (1, "")
    assert "not empty" in twice.err
    verified = await console("db", "verify", CONVENER_DATABASE_URL=empty_url)
    assert verified.code == 0
    assert "counters" in verified.out
    by = "SELECT by FROM audit WHERE action = $1"
    assert "convener db backup by " in str(await value(own_database, by, "db.backup"))
    restored_database = Database(empty_url)
    assert "convener db restore by " in str(await value(restored_database, by, "db.restore"))
    await restored_database.close()


async def test_numbers_go_on_above_those_of_a_former_primary(console: CommandLine, own_database: Database) -> None:
    ours = {"CONVENER_DATABASE_URL": own_database.url}
    done = await console("db", "advance", "-o", "json", **ours)
    offset = "SELECT convener_transaction_offset()"
    assert done.json == {"transaction_offset": await value(own_database, offset)}
    by = await value(own_database, "SELECT by FROM audit WHERE action = 'db.advance'")
    assert str(by).startswith("convener db advance by ")
    await execute(own_database, "UPDATE alembic_version SET version_num = 'elsewhere'")
    refused = await console("db", "advance", **ours)
    assert (refused.code, "db status" in refused.err) == (1, True)
    assert await value(own_database, offset) == done.json["transaction_offset"]


async def test_a_damaged_backup(console: CommandLine, own_database: Database, empty_url: str, tmp_path: Path) -> None:
    file = tmp_path / "b.dump"
    await console("db", "backup", str(file), CONVENER_DATABASE_URL=own_database.url)
    file.write_bytes(file.read_bytes()[:-1] + b"!")
    found = await console("db", "verify", str(file), COLUMNS="160")
    assert found.code == 1
    assert "SHA-256" in found.out
    refused = await console("db", "restore", str(file), CONVENER_DATABASE_URL=empty_url)
    assert (refused.code, refused.out) == (1, "")
    assert (await console("db", "verify", str(tmp_path / "none"))).code == 2


async def test_violations_are_shown_one_by_one(console: CommandLine, own_database: Database) -> None:
    worker_id, lease = await holding(own_database)
    (blocked,) = await submitted(own_database, depends_on=[lease.task_id])
    url = {"CONVENER_DATABASE_URL": own_database.url}
    fine = await console("db", "verify", "-o", "json", **url)
    assert (fine.code, fine.json["ok"]) == (0, True), fine.out
    await execute(own_database, "DELETE FROM task_dependencies")
    await execute(own_database, "DELETE FROM queue_changes")
    await execute(own_database, "DELETE FROM leases")
    await execute(own_database, "UPDATE events SET transaction = 4000000000000 WHERE kind = 'task.assigned'")
    found = await console("db", "verify", "-o", "json", **url)
    wrong = {check["name"]: check for check in found.json["checks"] if not check["ok"]}
    assert (found.code, found.json["ok"]) == (1, False)
    assert {"counters", "ledger", "blockers", "transactions"} <= set(wrong)
    assert str(blocked) in wrong["blockers"]["examples"][0]
    assert str(worker_id) in wrong["ledger"]["examples"][0]
    assert "blockers" in (await console("db", "verify", COLUMNS="160", **url)).out


async def test_the_bundled_database_of_this_machine_is_found(
    console: CommandLine, own_database: Database, tmp_path: Path
) -> None:
    """What `convener up` leaves in its state directory says where its PostgreSQL is."""
    parts = urlsplit(own_database.url)
    if parts.username != "convener":
        pytest.skip("only the bundled server is called like that")
    # Too long a path for a socket, so that the port is what counts: that of the server of the tests.
    home = tmp_path / ("x" * 90)
    state = home / "postgres"
    state.mkdir(parents=True)
    (state / "password").write_text(f"{parts.password}\n")
    (state / "port").write_text(f"{parts.port}\n")
    place = {"CONVENER_STATE_DIRECTORY": str(home)}
    found = await console("db", "backup", str(tmp_path / "b"), "-o", "json", **place)
    # That database is the one of the server itself, which is empty here.
    assert (found.code, found.out) == (1, "")
    assert "nothing to back up" in found.err


async def test_restored_into_a_new_bundled_server(own_database: Database, console: CommandLine, tmp_path: Path) -> None:
    """For those whose PostgreSQL is the bundled one: the state directory is then ready for `convener up`."""
    await submitted(own_database, 2)
    file = tmp_path / "b.dump"
    await console("db", "backup", str(file), CONVENER_DATABASE_URL=own_database.url)
    # Outside of pytest's directory, which is closed to the user that PostgreSQL may have to run as.
    with tempfile.TemporaryDirectory(prefix="convener-state-") as name:
        state = Path(name) / "state"
        done = await _run(state, "db", "restore", str(file), "--bundled")
        assert done.returncode == 0, done.stderr
        server = Server(cluster=_cluster(state))
        with server.cluster.lock():
            await server.start()
            try:
                restored = Database(server.url)
                assert await value(restored, "SELECT count(*) FROM tasks") == 2
                await restored.close()
            finally:
                await server.stop()
        again = await _run(state, "db", "restore", str(file), "--bundled")
        assert again.returncode == 1
        assert b"already" in again.stderr
        failed = await _run(Path(name) / "other", "db", "restore", str(tmp_path / "none"), "--bundled")
        assert failed.returncode == 2
        assert not _cluster(Path(name) / "other").is_initialised


_KILLED = """
import os, signal
from app.terminal.databases import new_server

with new_server():
    os.kill(os.getpid(), signal.SIGKILL)
"""
_INTERRUPTED_TWICE = """
from app.postgres.server import Server
from app.terminal.databases import new_server

async def stop(server):
    raise KeyboardInterrupt

with new_server():
    Server.stop = stop
    raise KeyboardInterrupt
"""


@pytest.mark.parametrize(
    ("script", "number"),
    [(_KILLED, signal.SIGKILL), (_INTERRUPTED_TWICE, signal.SIGINT)],
    ids=["killed", "interrupted twice"],
)
async def test_a_killed_restore_into_a_new_bundled_server_can_be_repeated(
    own_database: Database, console: CommandLine, tmp_path: Path, script: str, number: int
) -> None:
    """`convener up` made an empty queue of what it had left, and only whoever deleted that could restore again."""
    await submitted(own_database, 2)
    file = tmp_path / "b.dump"
    await console("db", "backup", str(file), CONVENER_DATABASE_URL=own_database.url)
    with tempfile.TemporaryDirectory(prefix="convener-state-") as name:
        state = Path(name) / "state"
        environment = console.environment | {"CONVENER_STATE_DIRECTORY": str(state)}
        killed = await asyncio.create_subprocess_exec(sys.executable, "-c", script, env=environment)
        assert await killed.wait() == -number
        with _cluster(state).lock(), pytest.raises(ClusterUnusable, match="was cut off"):
            _cluster(state).initialise()
        done = await _run(state, "db", "restore", str(file), "--bundled")
        assert done.returncode == 0, done.stderr
        with _cluster(state).lock():
            assert not _cluster(state).initialise()


async def _run(state: Path, *arguments: str) -> "subprocess.CompletedProcess[bytes]":
    """The command as a process: a bundled server is started by a main thread."""
    command = [sys.executable, "-m", "app.cli", *arguments]
    environment = {name: text for name, text in os.environ.items() if name != "CONVENER_DATABASE_URL"}
    environment["CONVENER_STATE_DIRECTORY"] = str(state)
    return await asyncio.to_thread(subprocess.run, command, env=environment, capture_output=True, timeout=120)


def _cluster(state: Path) -> Cluster:
    return Cluster(directory=state / "postgres", binaries=find_binaries(os.environ.get("CONVENER_POSTGRES_BIN")))


async def test_wrong_usage(console: CommandLine, own_database: Database, tmp_path: Path, empty_url: str) -> None:
    assert (await console("db", "backup", str(tmp_path / "b"))).code == 2
    assert (await console("db", "restore", str(tmp_path / "b"), "--database-url", "mysql://x")).code == 2
    nowhere = await console("db", "backup", str(tmp_path / "no" / "b"), CONVENER_DATABASE_URL=own_database.url)
    assert (nowhere.code, nowhere.out) == (1, "")
    unmigrated = await console("db", "verify", CONVENER_DATABASE_URL=empty_url)
    assert unmigrated.code == 1
    assert "convener db migrate" in unmigrated.err
    away = await console(
        "db", "backup", str(tmp_path / "b"), CONVENER_DATABASE_URL="postgresql://me:hidden@127.0.0.1:1/x"
    )
    assert away.code == 3
    assert "hidden" not in away.err


def _other_versions() -> list[Binaries | None]:
    versions: list[Binaries | None] = []
    for version in range(OLDEST_POSTGRES, 30):
        with contextlib.suppress(BinariesMissing):
            versions.append(find_version(version, (*SERVER, *DUMPING)))
    ours = find_binaries(os.environ.get("CONVENER_POSTGRES_BIN")).version
    return [binaries for binaries in versions if binaries and binaries.version != ours]


@pytest.fixture(
    scope="module", params=[*_other_versions()] or [None], ids=lambda other: getattr(other, "version", "none")
)
def another(request: pytest.FixtureRequest) -> Iterator[tuple[Binaries, str]]:
    """A server of another version than the one of the tests, where there is one, and its programs."""
    if request.param is None:
        pytest.skip("there is no PostgreSQL of another version; Debian has postgresql-15, postgresql-17")
    directory = Path(tempfile.mkdtemp(prefix="convener-other-"))
    directory.chmod(0o711)
    try:
        with running_server(directory / "server", binaries=request.param) as url:
            yield request.param, url
    finally:
        shutil.rmtree(directory, ignore_errors=True)


@pytest.mark.slow
@pytest.mark.skipif("CONVENER_POSTGRES_BIN" in os.environ, reason="the programs are those of one version")
async def test_a_backup_is_by_the_programs_of_its_servers_version(
    offline: CommandLine, another: tuple[Binaries, str], empty_url: str, tmp_path: Path, binaries: Binaries
) -> None:
    """Programs of version 18 wrote what no server of version 15 took, and nobody noticed before the restore."""
    other, server = another
    file, names = tmp_path / "b.dump", [f"convener_{uuid4().hex[:8]}" for _ in range(2)]
    for name in names:
        await run_on(server, f"CREATE DATABASE {name}")
    source, target = (named(server, name) for name in names)
    database = Database(source)
    await schema.migrate(database.engine)
    await holding(database)
    await database.close()
    ours = {"CONVENER_POSTGRES_BIN": str(binaries.directory)}
    refused = await offline("db", "backup", str(file), "--database-url", source, **ours)
    assert (refused.code, file.exists()) == (2, False)
    assert f"postgresql-client-{other.version}" in " ".join(refused.err.split())
    made = await offline("db", "backup", str(file), "--database-url", source)
    assert made.code == 0, made.err
    verified = await offline("db", "verify", str(file), "-o", "json")
    assert (verified.code, verified.json["ok"]) == (0, True), verified.out + verified.err
    restored = await offline("db", "restore", str(file), "--database-url", target, "-o", "json")
    assert (restored.code, restored.json["released"]) == (0, 1), restored.err
    newer = await offline("db", "restore", str(file), "--database-url", empty_url, "-o", "json")
    if other.version < binaries.version:
        assert newer.code == 0, newer.err
    else:
        assert f"restore it into PostgreSQL {other.version} or newer" in newer.err


@pytest.mark.slow
async def test_a_backup_whose_content_is_wrong_does_not_pass(
    console: CommandLine, own_database: Database, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its checksum is right, and only a restore shows what is in it."""
    # Others verify at the same time. Its server may run as another user, and the path of a socket is short.
    own = Path(tempfile.mkdtemp(prefix="convener-test-"))
    own.chmod(0o711)
    monkeypatch.setattr(tempfile, "tempdir", str(own))
    await submitted(own_database, 2)
    await execute(own_database, "DELETE FROM queue_changes")
    file = tmp_path / "b.dump"
    assert (await console("db", "backup", str(file), CONVENER_DATABASE_URL=own_database.url)).code == 0
    verified = await console("db", "verify", str(file), "-o", "json")
    wrong = [check["name"] for check in verified.json["checks"] if not check["ok"]]
    assert (verified.code, wrong) == (1, ["counters"])
    own.rmdir()  # nothing is left in it


@pytest.mark.parametrize("command", ["verify", "restore --bundled"])
def test_a_file_that_is_not_there_is_wrong_usage_and_no_bad_backup(
    offline: CommandLine, tmp_path: Path, command: str
) -> None:
    for file in (tmp_path / "none", tmp_path):
        assert offline.run("db", *command.split(), str(file)).code == 2


def test_a_restore_into_a_new_server_without_room_says_where_to_make_some(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """PostgreSQL ends where its log has no room, and the restore was told that the connection was closed."""

    async def nothing(_: Server) -> None:
        (tmp_path / "postgres" / "start.log").touch()

    monkeypatch.setenv("CONVENER_STATE_DIRECTORY", str(tmp_path))
    monkeypatch.delenv("CONVENER_DATABASE_URL", raising=False)
    monkeypatch.setattr(Cluster, "initialise", lambda _: True)
    monkeypatch.setattr(Server, "start", nothing)
    monkeypatch.setattr(Server, "stop", nothing)
    monkeypatch.setattr(Server, "url", "postgresql://nowhere/nothing")
    for is_full, kind in ((True, Failure), (False, DumpFailed)):
        monkeypatch.setattr(Server, "lacks_room", lambda _, is_full=is_full: is_full)
        with pytest.raises(kind) as failed, new_server():
            raise DumpFailed("pg_restore: error: server closed the connection unexpectedly")
        assert ("make room on the disk" in str(getattr(failed.value, "hint", ""))) is is_full
        assert "closed the connection" in str(failed.value)
        assert not (tmp_path / "postgres" / "restoring").exists()
