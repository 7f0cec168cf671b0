"""A result with a call for the next task: its commit does not wait for the disk, and its answer does."""

import asyncio
import hashlib
import os
import signal
import tempfile
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any
from uuid import UUID

import asyncpg
import pytest

from app.db import schema
from app.db.asynchronous_commits import AsynchronousCommit
from app.db.database import Database
from app.kernel.ids import TaskId, WorkerId
from app.postgres.accounts import choose_account
from app.postgres.binaries import Binaries
from app.postgres.cluster import INCLUDED_FILE
from app.queue.service.leases import LeaseService
from app.queue.store import claims
from app.queue.store.claims import ClaimRequest
from app.queue.store.completions import Completion
from tests.support.exchanges import exchanged, hand_in
from tests.support.service import Service, Worker, make_keys, serving
from tests.support.sql import until
from tests.support.standby import Node

_PATIENCE_SECONDS = 20.0
_STATE = """
SELECT (SELECT count(*) FROM task_history WHERE id = $1), (SELECT state FROM tasks WHERE id = $1)
"""
_KEPT, _LOST = (1, None), (0, "executing")
# With the rights of a superuser, whom nobody can be while the server runs.
_CHANGE_SYSTEM = (
    "CREATE FUNCTION change_system(change text) RETURNS void LANGUAGE plpgsql SECURITY DEFINER "
    "AS 'BEGIN EXECUTE change; END'\n"
)
_POSITION, _MESSAGE = "pg_current_wal_flush_lsn()", "pg_logical_emit_message(boolean, text, text, boolean)"
# What takes a function away, and what gives it back.
_REFUSED = ("REVOKE EXECUTE ON FUNCTION {0} FROM PUBLIC", "GRANT EXECUTE ON FUNCTION {0} TO PUBLIC")
_MISSING = ("ALTER FUNCTION {0} RENAME TO elsewhere", "ALTER FUNCTION elsewhere{2} RENAME TO {1}")


def _configure(node: Node, lines: str) -> None:
    with (node.cluster.data / INCLUDED_FILE).open("a") as file:
        file.write(lines)
    node._signal(signal.SIGHUP)


@pytest.fixture(scope="module")
async def node(binaries: Binaries) -> AsyncIterator[Node]:
    """A server that writes what is not waited for to the disk after ten seconds, which it may lose until then."""
    with tempfile.TemporaryDirectory(prefix="convener-test-") as name:
        Path(name).chmod(0o711)
        node = Node(directory=Path(name) / "server", binaries=binaries)
        await node.make_primary()
        try:
            database = Database(node.url)
            await schema.migrate(database.engine)
            await database.close()
            await node.stop()
            node.cluster.maintain(choose_account(node.directory, binaries), _CHANGE_SYSTEM, "convener")
            await node._start({})
            _configure(node, "wal_writer_delay = '10s'\nautovacuum = off\nsynchronous_commit = local\n")
            yield node
        finally:
            await node.stop()


@pytest.fixture
async def service(node: Node) -> AsyncIterator[Service]:
    database = Database(node.url)
    keys = await make_keys(database)
    await database.close()
    async with serving(node.url, keys) as service:
        yield service


async def _change_system(node: Node, change: str) -> None:
    connection = await asyncpg.connect(node.url)
    try:
        await connection.execute("SELECT change_system($1)", change)
    finally:
        await connection.close()


@asynccontextmanager
async def _without(node: Node, function: str, change: tuple[str, str]) -> AsyncIterator[None]:
    """The server without this function, or without the right to call it."""
    name, bracket, arguments = function.partition("(")
    removal, restoration = (one.format(function, name, f"{bracket}{arguments}") for one in change)
    await _change_system(node, removal)
    try:
        yield
    finally:
        await _change_system(node, restoration)


async def _crash(node: Node) -> None:
    """One of its processes dies, so that it forgets what it has in memory, and recovers."""
    connection = await asyncpg.connect(node.url)
    os.kill(await connection.fetchval("SELECT pg_backend_pid()"), signal.SIGKILL)
    with suppress(Exception):
        await connection.fetchval("SELECT 1")
    connection.terminate()


async def _fate(node: Node, task_id: str) -> tuple[int, str | None]:
    """How often the task is in history, and its state where it is live, by a server that may be recovering."""
    async with asyncio.timeout(_PATIENCE_SECONDS):
        while True:
            try:
                connection = await asyncpg.connect(node.url)
                try:
                    kept, state = await connection.fetchrow(_STATE, UUID(task_id)) or (0, None)
                    return kept, state
                finally:
                    await connection.close()
            except (OSError, asyncpg.PostgresError):
                await asyncio.sleep(0.05)


async def _leases(service: Service, count: int) -> tuple[Worker, Any]:
    """A worker and its lease, with so many tasks behind it."""
    worker = await service.worker()
    await service.submitted()
    lease = await worker.lease()
    for _ in range(count):
        await service.submitted()
    return worker, lease


async def _hand_in(service: Service, worker: Worker, lease: Any, *, by_exchange: bool) -> tuple[int, Any]:
    """The status and the body of the answer to a result that asks for the next task."""
    handed_in = hand_in(worker, lease, and_next=True)
    if by_exchange:
        answer = (await exchanged(service, handed_in))[0]
        return answer["status"], answer["body"]
    response = await worker.ask(f"/leases/{lease['task_id']}/complete", handed_in["body"])
    return response.status_code, response.json()


async def _accepted(service: Service, worker: Worker, lease: Any) -> AsynchronousCommit | None:
    """The commit of a result that nobody has been told of."""
    completion = Completion(
        task_id=TaskId(UUID(lease["task_id"])),
        token=lease["token"],
        worker_id=WorkerId(UUID(str(worker.id))),
        result="{}",
        result_hash=hashlib.sha256(b"{}").digest()[:16],
        usage=None,
        precedes_claim=True,
    )
    desk: LeaseService = service.app.state.services[LeaseService]
    return await desk.complete(completion)


async def test_a_server_that_crashes_loses_a_result_that_nobody_was_told_of(node: Node, service: Service) -> None:
    """What makes sense of the tests below."""
    worker, lease = await _leases(service, 0)
    commit = await _accepted(service, worker, lease)
    assert commit is not None
    assert not commit.is_flushed
    assert await _fate(node, lease["task_id"]) == _KEPT
    await _crash(node)
    assert await _fate(node, lease["task_id"]) == _LOST


@pytest.mark.parametrize("by_exchange", [False, True], ids=["plain", "exchange"])
@pytest.mark.parametrize("tasks", [1, 0], ids=["with a next task", "without"])
async def test_a_server_that_crashes_loses_no_result_that_was_answered(
    node: Node, service: Service, tasks: int, by_exchange: bool
) -> None:
    worker, lease = await _leases(service, tasks)
    status, body = await _hand_in(service, worker, lease, by_exchange=by_exchange)
    await _crash(node)
    assert (status, body["lease"] is not None) == (200, bool(tasks))
    assert await _fate(node, lease["task_id"]) == _KEPT
    if tasks:
        assert await _fate(node, body["lease"]["task_id"]) == (0, "executing")


@pytest.mark.parametrize("by_exchange", [False, True], ids=["plain", "exchange"])
async def test_a_result_that_a_crash_has_taken_before_the_claim_is_accepted_once_more(
    node: Node, service: Service, monkeypatch: pytest.MonkeyPatch, by_exchange: bool
) -> None:
    worker, lease = await _leases(service, 1)
    claim = claims.claim
    numbers: list[int | None] = []

    async def after_crash(connection: Any, requests: Sequence[ClaimRequest], policy: Any) -> Any:
        if not numbers:
            await _crash(node)
            assert await _fate(node, lease["task_id"]) == _LOST
        numbers.extend(request.last_number for request in requests)
        return await claim(connection, requests, policy)

    monkeypatch.setattr(claims, "claim", after_crash)
    status, body = await _hand_in(service, worker, lease, by_exchange=by_exchange)
    assert (status, body["state"], body["lease"]) == (200, "completed", None)
    assert await _fate(node, lease["task_id"]) == _KEPT
    await _crash(node)
    assert await _fate(node, lease["task_id"]) == _KEPT


async def test_a_repeated_result_is_answered_when_the_first_is_on_the_disk(node: Node, service: Service) -> None:
    worker, lease = await _leases(service, 0)
    await _accepted(service, worker, lease)
    response = await worker.on_lease(lease, "complete", result={})
    await _crash(node)
    assert response.status_code == 200
    assert await _fate(node, lease["task_id"]) == _KEPT


@pytest.mark.parametrize("path", ["/events", "/events?after=now", "/outputs"])
async def test_a_reader_with_a_cursor_is_told_only_of_what_is_on_the_disk(
    node: Node, service: Service, path: str
) -> None:
    """Its number would be given to another transaction, whose events the reader never sees."""
    worker, lease = await _leases(service, 0)
    await _accepted(service, worker, lease)
    told = await service.ask("GET", path)
    await _crash(node)
    assert told.status_code == 200
    assert await _fate(node, lease["task_id"]) == _KEPT


@pytest.mark.parametrize(("standbys", "fate"), [("*", _KEPT), ("", _LOST)])
async def test_a_result_waits_where_there_are_synchronous_standbys(
    node: Node, service: Service, standbys: str, fate: tuple[int, str | None]
) -> None:
    """For the disk alone here, as the server is told not to wait for those, which it does not have."""
    worker, lease = await _leases(service, 0)
    async with service.app.state.services.database.asynchronous as connection:

        async def is_set() -> bool:
            return bool(await connection.fetchval("SHOW synchronous_standby_names") == standbys)

        try:
            _configure(node, f"synchronous_standby_names = '{standbys}'\n")
            await until(is_set)
            await _accepted(service, worker, lease)
            await _crash(node)
            assert await _fate(node, lease["task_id"]) == fate
        finally:
            _configure(node, "synchronous_standby_names = ''\n")


@pytest.mark.parametrize(
    ("function", "change"),
    [(_POSITION, _REFUSED), (_MESSAGE, _REFUSED), (_POSITION, _MISSING)],
    ids=["position refused", "message refused", "position missing"],
)
async def test_a_server_without_the_functions_of_its_log_waits_and_serves_all(
    node: Node, service: Service, function: str, change: tuple[str, str]
) -> None:
    """As some of clouds are."""
    async with _without(node, function, change):
        worker, lease = await _leases(service, 0)
        commit = await _accepted(service, worker, lease)
        repeated = await worker.on_lease(lease, "complete", result={})
        told = [await service.ask("GET", path) for path in ("/events", "/outputs")]
        await _crash(node)
        assert (commit, repeated.status_code, [one.status_code for one in told]) == (None, 200, [200, 200])
        assert await _fate(node, lease["task_id"]) == _KEPT


async def test_functions_of_the_log_that_are_taken_away_cost_one_call_and_none_the_next(
    node: Node, service: Service
) -> None:
    worker, lease = await _leases(service, 0)
    assert await _accepted(service, worker, lease)
    await service.submitted()
    other = await worker.lease()
    async with _without(node, _MESSAGE, _REFUSED):
        statuses = [(await service.ask("GET", "/events")).status_code for _ in range(2)]
        assert statuses == [500, 200]
        assert await _accepted(service, worker, other) is None
