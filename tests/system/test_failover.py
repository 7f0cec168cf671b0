"""A primary is killed under load and its standby promoted: nothing acknowledged is lost, and all go on as they are."""

import asyncio
import os
import shutil
import tempfile
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any

import httpx
import pytest
from sqlalchemy.ext.asyncio import AsyncConnection

from app.db import connections, schema
from app.db.database import Database
from app.diagnosis.store.facts import blocking
from app.health.rules.checks import locks_held
from app.health.rules.snapshot import FOR_REPORT, BlockingSession
from app.health.store.observations import blocking_session
from app.kernel.access import Role
from app.kernel.errors import DatabaseUnavailable
from app.memory.service import backups
from app.postgres.binaries import Binaries
from app.queue.rules.status import OpenWriter
from app.queue.store import open_writers
from tests.support.factories import submitted
from tests.support.journal import Client, Journal, compare, completed_by_others, submit, work
from tests.support.replicas import Replicas, replicas
from tests.support.standby import Node
from tests.system.conftest import is_ready, make_keys, until
from tests.system.relaying import workers

pytestmark = pytest.mark.slow
_ROUNDS, _CLIENTS = int(os.environ.get("CONVENER_TEST_FAILOVERS", "2")), 3
# Tasks that are completed before the primary is killed, and once its standby has been promoted.
_BEFORE, _AFTER = 30, 20
# As long as a call may take on a machine that has other things to do.
_CALL_SECONDS, _PATIENCE_SECONDS = 40.0, 180.0


@pytest.fixture
async def nodes(binaries: Binaries) -> AsyncIterator[list[Node]]:
    """A primary with an empty schema, and a standby that follows it."""
    directory = Path(tempfile.mkdtemp(prefix="convener-failover-"))
    directory.chmod(0o711)
    nodes = [Node(directory=directory / name, binaries=binaries) for name in ("one", "two")]
    primary, standby = nodes
    try:
        await primary.make_primary()
        database = Database(primary.url)
        await schema.migrate(database.engine)
        await database.close()
        await standby.follow(primary)
        yield nodes
    finally:
        for node in nodes:
            await node.stop()
        shutil.rmtree(directory, ignore_errors=True)


@asynccontextmanager
async def _service(nodes: list[Node], directory: Path) -> AsyncIterator[tuple[Replicas, dict[Role, str]]]:
    primary, standby = nodes
    keys = await make_keys(primary.url)
    places = f"{primary.url.rpartition(':')[0]}:{primary.port},127.0.0.1:{standby.port}"
    with replicas(primary.url, directory, direct_url=f"{places}/convener?target_session_attrs=read-write") as running:
        async with asyncio.timeout(_PATIENCE_SECONDS):
            while not await is_ready(running.url):
                await asyncio.sleep(0.05)
        yield running, keys


async def _fail_over(running: Replicas, primary: Node, standby: Node) -> None:
    """What docs/how-to/replicas.md tells to do."""
    await primary.kill()
    standby.promote()
    await asyncio.to_thread(running.lead_to, standby.port)


async def _until_the_daemon_works(url: str, journal: Journal) -> None:
    before = await completed_by_others(url, journal)
    async with asyncio.timeout(_PATIENCE_SECONDS):
        while await completed_by_others(url, journal) == before:
            await asyncio.sleep(0.2)


async def test_whoever_waits_for_a_standby_is_not_to_be_ended(nodes: list[Node]) -> None:
    """It was: repeated submits were then acknowledged by rows that no standby had, and a failover lost them."""
    primary, standby = nodes
    await primary.wait_for_standbys()
    await standby.kill()
    database = Database(primary.url)
    waiting = asyncio.create_task(submitted(database))
    readers: list[Callable[[AsyncConnection], Awaitable[object]]] = [
        blocking_session,
        lambda connection: blocking(connection, timedelta(seconds=1)),
        open_writers.read,
    ]
    try:
        for read in readers:
            session: Any = None
            async with asyncio.timeout(_PATIENCE_SECONDS):
                while session is None or not session.awaits_standby:
                    async with database.transaction() as connection:
                        found = await read(connection)
                    session = next(iter(found), None) if isinstance(found, list) else found
        assert isinstance(session, OpenWriter)
        assert "synchronous_standby_names" in session.sentence
        assert "pg_terminate_backend" not in session.sentence
        (reason,) = locks_held(BlockingSession(pid=7, application="", seconds=60, awaits_standby=True), FOR_REPORT)
        assert "synchronous_standby_names" in reason.advice
        assert not waiting.done()
    finally:
        waiting.cancel()
        await asyncio.gather(waiting, return_exceptions=True)
        await database.close()


async def test_a_process_leaves_a_former_primary_that_nobody_has_stopped(
    nodes: list[Node], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """It stayed there for good, ready and without a word, while those that were started anew worked on the other."""
    monkeypatch.setattr(connections, "_WATCH_SECONDS", 0.2)
    primary, standby = nodes
    several = f"{primary.url.rpartition(':')[0]}:{primary.port},127.0.0.1:{standby.port}/convener"
    # As with a pooler that still leads to the former primary.
    database, pooled = Database(several), Database(primary.url, direct_url=several)
    try:
        for process in (database, pooled):
            process.start()
        assert await _port(database) == await _port(pooled) == primary.port
        await primary.wait_for_standbys()
        async with pooled.transaction() as connection:
            assert not await pooled.is_former_primary(connection)
        assert await _follow_promotion(database) == {}
        session = await database.connect()
        standby.promote()
        async with asyncio.timeout(_PATIENCE_SECONDS):
            while not session.is_closed():
                await asyncio.sleep(0.05)
        assert await _port(database) == standby.port
        assert (await _follow_promotion(database))["transaction_offset"] > 0
        async with asyncio.timeout(_PATIENCE_SECONDS):
            while True:
                async with pooled.transaction() as connection:
                    if await pooled.is_former_primary(connection):
                        break
        assert f":{primary.port} (timeline 1) and 127.0.0.1:{standby.port} (timeline 2)" in caplog.text
        assert f"to 127.0.0.1:{standby.port}, which was promoted" in caplog.text
        await standby.kill()
        for _ in range(3):
            with pytest.raises(DatabaseUnavailable):
                await _port(database)
    finally:
        await database.close()
        await pooled.close()


async def _follow_promotion(database: Database) -> dict[str, int]:
    async with database.transaction() as connection:
        return await backups.follow_promotion(connection)


async def _port(database: Database) -> int:
    async with database.transaction() as connection:
        return int((await connection.exec_driver_sql("SELECT current_setting('port')")).scalar_one())


async def test_nothing_acknowledged_is_lost_with_a_synchronous_standby(nodes: list[Node], tmp_path: Path) -> None:
    journal, done = Journal(), asyncio.Event()
    clients: list[asyncio.Task[None]] = []

    def more(count: int) -> Callable[[], bool]:
        goal = len(journal.completed) + count
        # One that has failed says why once it is gathered.
        return lambda: len(journal.completed) >= goal or any(client.done() for client in clients)

    primary, standby = nodes
    await primary.wait_for_standbys()
    limits = httpx.Limits(max_connections=None, max_keepalive_connections=0)
    async with (
        _service(nodes, tmp_path) as (running, keys),
        httpx.AsyncClient(base_url=running.url, trust_env=False, timeout=_CALL_SECONDS, limits=limits) as http,
    ):
        supervisor = Client(http=http, key=keys[Role.SUPERVISOR], journal=journal)
        pool = Client(http=http, key=keys[Role.POOL], journal=journal)
        clients.append(asyncio.create_task(submit(supervisor, done)))
        clients += [asyncio.create_task(work(pool, done)) for _ in range(_CLIENTS)]
        with workers(running.url, keys[Role.POOL], tmp_path, 1) as daemons:
            for number in range(_ROUNDS):
                await until(more(_BEFORE), _PATIENCE_SECONDS, f"work before the failover ({journal})")
                await _fail_over(running, primary, standby)
                primary, standby = standby, primary
                await until(more(_AFTER), _PATIENCE_SECONDS, "work after the failover")
                lost = await compare(primary.url, journal)
                assert lost.count == 0, lost
                await _until_the_daemon_works(primary.url, journal)
                if number + 1 < _ROUNDS:
                    await standby.follow(primary)
                    await primary.wait_for_standbys()
            done.set()
            await asyncio.gather(*clients)
            # By themselves: none of them has ended and come again.
            assert all(child.poll() is None for child in [*running.children, *daemons])
        lost = await compare(primary.url, journal)
        assert lost.count == 0, lost
        assert not journal.twice
        print(f"\n{len(journal.submitted)} submits, {len(journal.leased)} leases, {len(journal.completed)} completions")
        print(f"not acknowledged: {journal.errors}; longest gap {journal.longest_gap:.1f} s")
