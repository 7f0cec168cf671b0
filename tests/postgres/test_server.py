"""A running server: it starts, keeps its data over restarts and crashes, and never outlives its supervisor."""

import asyncio
import os
import re
import shutil
import signal
import socket
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import asyncpg
import psutil
import pytest
from sqlalchemy import text

from app.db.database import Database
from app.postgres.binaries import Binaries
from app.postgres.cluster import Cluster
from app.postgres.configuration import HOST, socket_directory
from app.postgres.errors import ClusterBusy, StartFailed
from app.postgres.server import Server, processes_of
from tests.postgres.supervise import supervised

PATIENCE_SECONDS = 30.0


async def run_sql(url: str, statement: str) -> Any:
    connection = await asyncpg.connect(url)
    try:
        return await connection.fetchval(statement)
    finally:
        await connection.close()


async def store_a_row(server: Server) -> None:
    await run_sql(server.url, "DROP TABLE IF EXISTS kept")
    await run_sql(server.url, "CREATE TABLE kept AS SELECT 42 AS answer")


async def stored_row(server: Server) -> Any:
    return await run_sql(server.url, "SELECT answer FROM kept")


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(PATIENCE_SECONDS):
        while not condition():
            await asyncio.sleep(0.02)


async def test_keeps_data_and_address_over_an_orderly_restart(server: Server) -> None:
    await server.start()
    first_url = server.url
    await store_a_row(server)
    await server.stop()
    assert server.pid is None
    assert await server.wait() == 0
    assert processes_of(server.cluster.data) == []

    await server.start()
    assert server.url == first_url
    assert await stored_row(server) == 42


async def test_has_the_settings_it_should(server: Server) -> None:
    await server.start()
    expected = {
        "listen_addresses": HOST,
        "synchronous_commit": "on",
        "autovacuum_naptime": "20s",
        "idle_in_transaction_session_timeout": "1min",
        "max_connections": "100",
        "jit": "off",
        "server_encoding": "UTF8",
        "data_checksums": "on",
        "fsync": "off",
    }
    assert {name: await run_sql(server.url, f"SHOW {name}") for name in expected} == expected


async def test_can_be_reached_by_socket_and_by_port(server: Server) -> None:
    await server.start()
    socket_url = server.cluster.socket_url
    assert socket_url is not None
    assert await run_sql(socket_url, "SELECT inet_server_port()") is None
    for url in (server.cluster.url, socket_url):
        database = Database(url)
        async with database.transaction() as connection:
            assert (await connection.execute(text("SELECT 1"))).scalar_one() == 1
        await database.close()


async def test_variables_for_other_servers_keep_nobody_out(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    await server.start()
    for name, value in (("PGSSLMODE", "verify-full"), ("PGTARGETSESSIONATTRS", "standby")):
        with monkeypatch.context() as patch:
            patch.setenv(name, value)
            for url in (server.cluster.url, server.url):
                assert await run_sql(url, "SELECT 1") == 1


async def test_of_its_log_the_newest_files_are_kept(server: Server, tmp_path: Path) -> None:
    """Full files are followed by others of 8 MiB; those with the names of earlier versions go first."""
    logs = server.cluster.directory / "log"
    for number in range(12):
        (logs / f"postgresql-2025-01-{number + 1:02}T000000.log").touch()
    names = sorted(path.name for path in logs.iterdir())
    assert all(re.fullmatch(r"postgresql-\d{4}-\d\d-\d\dT\d{6}\.log", name) for name in names)
    (logs / "postgresql-Mon.log").touch()
    server.prune_logs()
    assert sorted(path.name for path in logs.iterdir()) == names[-8:]
    other = tmp_path / "other"
    other.mkdir()
    (other / "a.log").touch()
    moved = logs.rename(tmp_path / "moved")
    logs.symlink_to(other)
    for number in range(9):
        (other / f"b{number}.log").touch()
    server.prune_logs()
    assert (other / "a.log").exists(), "a link in place of the directory leads nowhere else"
    logs.unlink()
    moved.rename(logs)


async def test_a_wrong_password_is_refused(server: Server) -> None:
    await server.start()
    with pytest.raises(asyncpg.InvalidPasswordError):
        await asyncpg.connect(server.url, password="wrong")


async def test_starting_and_stopping_twice_is_harmless(server: Server) -> None:
    await server.stop()
    assert await server.wait() is None
    await server.start()
    pid = server.pid
    await server.start()
    assert server.pid == pid
    await server.stop()
    await server.stop()


async def test_moves_to_another_port_when_its_own_is_taken(server: Server) -> None:
    await server.start()
    port = server.cluster.port
    await server.stop()
    with socket.create_server((HOST, port or 0)):
        await server.start()
        assert server.cluster.port != port
        assert await run_sql(server.url, "SELECT 1") == 1


async def test_whoever_takes_the_port_meanwhile_learns_no_password(server: Server) -> None:
    await server.start()
    await server.stop()
    connections: list[object] = []
    rogue = await asyncio.start_server(lambda reader, _: connections.append(reader), HOST, server.cluster.port)
    async with rogue:
        with pytest.raises((ConnectionError, FileNotFoundError)):
            await asyncpg.connect(server.url, timeout=5)
    assert connections == []


async def test_a_failed_start_tells_why(cluster: Cluster) -> None:
    broken = Server(cluster=replace(cluster, settings={"shared_buffers": "plenty"}))
    with cluster.lock(), pytest.raises(StartFailed, match='invalid value for parameter "shared_buffers"'):
        await broken.start()


async def test_the_reason_of_a_failed_start_is_not_hidden_by_refusals(cluster: Cluster) -> None:
    log = cluster.directory / "log" / "postgresql-2999-01-01.log"
    log.parent.mkdir(exist_ok=True)
    refusal = "2999-01-01 00:00:00.000 UTC [7] FATAL:  the database system is starting up\n"
    log.write_text(f"{'chatter ' * 300}\n2999-01-01 PANIC:  could not write\n{refusal * 50}")
    os.utime(log, (2**33, 2**33))
    broken = Server(cluster=replace(cluster, settings={"shared_buffers": "plenty"}))
    with cluster.lock(), pytest.raises(StartFailed) as failure:
        await broken.start()
    assert str(failure.value).endswith("did not start: 2999-01-01 PANIC:  could not write")


async def test_recovers_from_kill_9_of_the_postmaster(server: Server) -> None:
    await server.start()
    await store_a_row(server)
    assert server.pid is not None
    os.kill(server.pid, signal.SIGKILL)
    assert await asyncio.wait_for(server.wait(), PATIENCE_SECONDS) == -signal.SIGKILL

    await asyncio.wait_for(server.start(), PATIENCE_SECONDS)
    assert await stored_row(server) == 42


async def test_recovers_although_a_session_goes_on_without_its_postmaster(server: Server) -> None:
    await server.start()
    connection = await asyncpg.connect(server.url)
    backend = psutil.Process(await connection.fetchval("SELECT pg_backend_pid()"))
    # Busy in the processor, where a backend does not notice that its postmaster is gone.
    endless = asyncio.create_task(connection.execute("DO $$ BEGIN LOOP END LOOP; END $$"))
    await until(lambda: backend.cpu_times().user > 0.2)
    assert server.pid is not None
    os.kill(server.pid, signal.SIGKILL)
    await server.wait()
    assert backend.is_running()

    await asyncio.wait_for(server.start(), PATIENCE_SECONDS)
    assert not backend.is_running() or backend.status() == psutil.STATUS_ZOMBIE
    with pytest.raises((asyncpg.PostgresError, ConnectionError, asyncpg.InterfaceError)):
        await endless
    connection.terminate()
    assert await run_sql(server.url, "SELECT 1") == 1


@pytest.mark.parametrize("content", ["{pid}\n", ""])
async def test_ignores_the_pid_file_of_a_former_life(server: Server, content: str) -> None:
    """After a reboot the recorded pid may belong to anybody: here, to a program that must survive."""
    stranger = await asyncio.create_subprocess_exec("sleep", "600")
    try:
        stale = content.format(pid=stranger.pid)
        (server.cluster.data / "postmaster.pid").write_text(stale)
        (socket_directory(server.cluster.directory) / ".s.PGSQL.23456.lock").write_text(stale)
        await server.start()
        assert stranger.returncode is None
        assert await run_sql(server.url, "SELECT 1") == 1
    finally:
        stranger.kill()
        await stranger.wait()


async def test_dies_with_a_killed_supervisor_and_starts_again(cluster: Cluster) -> None:
    with supervised(cluster.directory) as first:
        assert first.pid in [process.pid for process in processes_of(cluster.data)]
        with pytest.raises(ClusterBusy, match=f"process {first.supervisor.pid}"):
            cluster.lock()
    await until(lambda: not processes_of(cluster.data))
    with supervised(cluster.directory) as second:
        assert second.url == first.url
    await until(lambda: not processes_of(cluster.data))


async def test_a_server_that_outlived_its_supervisor_is_replaced(server: Server) -> None:
    """As where the kernel does not stop it with its parent: a new supervisor ends it in order and starts its own."""
    await server.start()
    await store_a_row(server)
    survivor = server.pid
    successor = Server(cluster=server.cluster)
    await successor.start()
    try:
        assert successor.pid not in (None, survivor)
        assert await server.wait() == 0
        assert await stored_row(successor) == 42
    finally:
        await successor.stop()


def test_a_disk_without_room_is_told_by_its_free_space_or_by_the_end_of_the_log(
    tmp_path: Path, binaries: Binaries, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A restore into a new server said only that the server had closed the connection."""
    server = Server(cluster=Cluster(directory=tmp_path, binaries=binaries))
    (tmp_path / "start.log").write_text("LOG:  database system is shut down\n")
    assert not server.lacks_room()
    (tmp_path / "log").mkdir()
    (tmp_path / "log" / "postgresql-2.log").write_text('PANIC:  could not write to file "x": No space left on device\n')
    assert server.lacks_room()
    (tmp_path / "log" / "postgresql-2.log").unlink()
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=8 << 20))
    assert server.lacks_room()


async def test_a_start_that_fails_tells_its_reason_and_not_what_clients_were_told(
    tmp_path: Path, binaries: Binaries
) -> None:
    server = Server(cluster=Cluster(directory=tmp_path, binaries=binaries))
    told = [
        "FATAL:  the database system is not yet accepting connections",
        "DETAIL:  Consistent recovery state has not been yet reached.",
    ]
    reason = 'FATAL:  could not write to file "pg_wal/xlogtemp.1": No space left on device'
    (tmp_path / "start.log").write_text("\n".join([reason, *told * 100]))
    assert server._log_end() == reason
