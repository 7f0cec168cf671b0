"""The upgrade from the former release, rehearsed: under traffic, with replicas and workers of both versions."""

import asyncio
import json
import shutil
import signal
import subprocess
import tempfile
from collections import Counter, defaultdict
from collections.abc import Iterator
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import asyncpg
import pytest

from app.db.migration_steps import ONLINE
from tests.support.ports import free_port
from tests.system.conftest import is_ready
from tests.system.releases import Release, former_release, present_release
from tests.system.traffic import Traffic

pytestmark = pytest.mark.slow
_PATIENCE_SECONDS = 200
# Calls that are to be repeated: those that have waited for a lock for half a second, as may happen where the machine is
# slow, and those that read what has got a column.
_REPEATED = {(503, "locked"), (503, "database_unavailable")}
_STRONG = ("ShareLock", "ShareRowExclusiveLock", "ExclusiveLock", "AccessExclusiveLock")
_LOOK = """
SELECT l.pid, l.virtualtransaction, l.relation::regclass::text AS name,
       extract(epoch FROM clock_timestamp())::float8 AS seen_at FROM pg_locks l
WHERE l.granted AND l.locktype = 'relation' AND l.mode = ANY ($1) AND l.pid = ANY (
    SELECT pid FROM pg_stat_activity WHERE datname = current_database() AND query !~ 'autovacuum'
) AND l.relation = ANY ($2)
"""


@pytest.fixture
def former() -> Iterator[Release]:
    """The former release; the test is skipped where the history of this checkout does not have it."""
    # Outside of pytest's directories, which are closed to the user that handlers of root run as.
    directory = Path(tempfile.mkdtemp(prefix="convener-former-"))
    directory.chmod(0o755)
    try:
        release = former_release(directory)
        if release is None:
            pytest.skip("the history of this checkout does not reach back to the former release")
        yield release
    finally:
        shutil.rmtree(directory, ignore_errors=True)


async def test_work_goes_on_while_a_release_takes_the_place_of_the_former(
    former: Release, empty_url: str, tmp_path: Path
) -> None:
    async with asyncio.timeout(4 * _PATIENCE_SECONDS), AsyncExitStack() as cleanup:
        await _rehearse(cleanup, former, empty_url, tmp_path)


async def _rehearse(cleanup: AsyncExitStack, former: Release, url: str, tmp_path: Path) -> None:
    present, ports = present_release(), [free_port() for _ in range(3)]
    urls = [f"http://127.0.0.1:{port}" for port in ports]
    await asyncio.to_thread(former.command, "db", "migrate", database_url=url)
    keys = {}
    for role in ("supervisor", "operator", "pool"):
        made = await asyncio.to_thread(former.command, "key", "create", role, "--label", role, database_url=url)
        keys[role] = made.stdout.strip()

    def start(release: Release, log: str, *arguments: str, **settings: str) -> "subprocess.Popen[bytes]":
        process = release.process(*arguments, log=tmp_path / log, **settings)
        return cleanup.enter_context(process)

    def start_api(release: Release, place: int) -> "subprocess.Popen[bytes]":
        return start(release, f"api-{place}", "app.main", database_url=url, port=str(ports[place]))

    def start_loops(release: Release, log: str) -> "subprocess.Popen[bytes]":
        return start(release, log, "app.background", database_url=url, pool_size="0")

    def start_worker(release: Release, log: str, addresses: list[str]) -> "subprocess.Popen[bytes]":
        own = ["--url", ",".join(addresses), "--name", log, "--handlers", "examples.echo"]
        return start(release, log, "worker_agent", *own, "--capabilities", "generation", key=keys["pool"])

    old_apis, old_loops = [start_api(former, 0), start_api(former, 1)], start_loops(former, "old-loops")
    await _until_ready(*urls[:2])
    old_workers = [start_worker(former, f"old-worker-{n}", urls[n:]) for n in range(2)]
    traffic = Traffic(keys, urls[:2])
    database = await asyncpg.connect(url)
    cleanup.push_async_callback(database.close)
    with traffic.going_on(submitters=2, workers=4):
        await traffic.until_completed(40)

        # The new schema comes while the former release is at work, and that goes on with it.
        is_migrated = asyncio.Event()
        looking = asyncio.create_task(_longest_locks(url, is_migrated))
        steps = await asyncio.to_thread(_migrate, present, url)
        is_migrated.set()
        _check_migration(steps, await looking)
        await traffic.until_completed(40)
        assert [await is_ready(url) for url in urls[:2]] == [True, True]
        assert set(traffic.errors) <= _REPEATED

        # Replicas, loops and workers of both versions beside each other.
        start_api(present, 2)
        await _until_ready(urls[2])
        traffic.urls = urls
        start_loops(present, "new-loops")
        start_worker(present, "new-worker", urls[1:])
        await traffic.until_completed(40)
        assert set(traffic.errors) <= _REPEATED

        # The former ones leave: the loops first, then the replicas, the workers last.
        await _stop(old_loops)
        traffic.urls = urls[2:]
        for process in old_apis:
            await _stop(process)
        await traffic.until_completed(40)
        for process in old_workers:
            await _stop(process)
        await traffic.until_completed(40)
        await traffic.stop()
    # A replica that leaves answers with a 503 what it gets once it has begun to; nothing else may be an error.
    assert set(traffic.errors) <= {*_REPEATED, (503, "shutting_down")}
    await _check_work(database, traffic)


async def _until_ready(*urls: str) -> None:
    async with asyncio.timeout(_PATIENCE_SECONDS):
        for url in urls:
            while not await is_ready(url):
                await asyncio.sleep(0.1)


async def _stop(process: "subprocess.Popen[bytes]") -> None:
    process.send_signal(signal.SIGTERM)
    assert await asyncio.to_thread(process.wait, 40) in (0, -signal.SIGTERM), process.args


async def _longest_locks(url: str, is_over: asyncio.Event) -> dict[str, float]:
    """Table -> the longest time in seconds that one transaction was seen with a strong lock on it."""
    connection = await asyncpg.connect(url)
    first_seen: dict[tuple[Any, ...], float] = {}
    longest: dict[str, float] = defaultdict(float)
    try:
        there = [row["oid"] for row in await connection.fetch("SELECT oid FROM pg_class WHERE relkind IN ('r', 'p')")]
        while not is_over.is_set():
            for row in await connection.fetch(_LOOK, _STRONG, there):
                since = first_seen.setdefault(tuple(row)[:3], row["seen_at"])
                longest[row["name"]] = max(longest[row["name"]], row["seen_at"] - since)
            await asyncio.sleep(0.01)
        return longest
    finally:
        await connection.close()


def _migrate(present: Release, url: str) -> list[dict[str, Any]]:
    """Migrate and return the steps; where the machine is too slow for short locks the command is repeated."""
    for _ in range(3):
        try:
            return list(json.loads(present.command("db", "migrate", "-o", "json", database_url=url).stdout)["steps"])
        except subprocess.CalledProcessError as error:
            if "gave up after" not in error.stderr:
                raise AssertionError(error.stderr) from None
    raise AssertionError("the schema could not be migrated beside the traffic")


def _check_migration(steps: list[dict[str, Any]], locks: dict[str, float]) -> None:
    """Assert that no step kept others waiting: the server ends the transaction of each after 0.4 s."""
    assert all(step["seconds"] < ONLINE.transaction_seconds + 0.1 for step in steps), steps
    assert all(seconds < 0.5 for seconds in locks.values()), locks


async def _check_work(database: Any, traffic: Traffic) -> None:
    async with asyncio.timeout(_PATIENCE_SECONDS):
        while await database.fetchval("SELECT count(*) FROM tasks"):
            await asyncio.sleep(0.2)
    rows = await database.fetch("SELECT id::text, state FROM task_history")
    assert {row["state"] for row in rows} == {"completed"}
    assert Counter(row["id"] for row in rows) == Counter(traffic.submitted)
    completions = await database.fetch("SELECT task_id::text FROM every_event WHERE kind = 'task.completed'")
    assert Counter(row["task_id"] for row in completions) == Counter(traffic.submitted)
    assert set(traffic.completed.values()) == {1}
