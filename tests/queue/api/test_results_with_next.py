"""A result with a call for the next task: both are done by one statement, or the result alone."""

import asyncio
import os
import signal
import tempfile
from collections.abc import AsyncIterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any
from uuid import UUID

import asyncpg
import pytest

from app.db import schema
from app.db.database import Database
from app.postgres.binaries import Binaries
from app.postgres.cluster import INCLUDED_FILE
from app.queue.broker.broker import Broker
from app.queue.rules.tasks import LeasePolicy
from app.queue.service.leases import LeaseService
from app.queue.store import claims
from app.queue.store.claims import ClaimRequest
from app.queue.store.completions import Completion
from tests.support.exchanges import exchanged, hand_in
from tests.support.service import Service, Worker, make_keys, serving
from tests.support.standby import Node

_PATIENCE_SECONDS = 20.0
_STATE = """
SELECT (SELECT count(*) FROM task_history WHERE id = $1), (SELECT state FROM tasks WHERE id = $1)
"""
_KEPT = (1, None)


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


async def _hand_in(service: Service, worker: Worker, item: Any, *, by_exchange: bool) -> tuple[int, Any]:
    """The status and the body of the answer to a result that asks for the next task."""
    if by_exchange:
        answer = (await exchanged(service, item))[0]
        return answer["status"], answer["body"]
    response = await worker.ask(f"/leases/{item['task_id']}/complete", item["body"])
    return response.status_code, response.json()


@pytest.mark.parametrize("by_exchange", [False, True], ids=["plain", "exchange"])
@pytest.mark.parametrize("tasks", [1, 0], ids=["with a next task", "without"])
async def test_a_server_that_crashes_loses_no_result_that_was_answered(
    node: Node, service: Service, tasks: int, by_exchange: bool
) -> None:
    worker, lease = await _leases(service, tasks)
    status, body = await _hand_in(service, worker, hand_in(worker, lease, and_next=True), by_exchange=by_exchange)
    await _crash(node)
    assert (status, body["lease"] is not None) == (200, bool(tasks))
    assert await _fate(node, lease["task_id"]) == _KEPT
    if tasks:
        assert await _fate(node, body["lease"]["task_id"]) == (0, "executing")


@pytest.mark.parametrize("by_exchange", [False, True], ids=["plain", "exchange"])
@pytest.mark.parametrize("is_committed", [False, True], ids=["before", "after"])
async def test_a_result_whose_answer_a_crash_has_taken_is_accepted_once_and_goes_on(
    node: Node, service: Service, monkeypatch: pytest.MonkeyPatch, is_committed: bool, by_exchange: bool
) -> None:
    """The server crashes before or after the commit of both; what was done is found, and the rest is done."""
    worker, lease = await _leases(service, 2)
    claim, crashes = claims.claim, 0

    async def and_crash(connection: Any, requests: Sequence[ClaimRequest], policy: LeasePolicy) -> Any:
        nonlocal crashes
        crashes += 1
        if crashes > 1:
            return await claim(connection, requests, policy)
        if is_committed:
            await claim(connection, requests, policy)
        await _crash(node)
        raise ConnectionResetError

    monkeypatch.setattr(claims, "claim", and_crash)
    item = hand_in(worker, lease, and_next=True)
    async with asyncio.timeout(_PATIENCE_SECONDS):
        while (answer := await _hand_in(service, worker, item, by_exchange=by_exchange))[0] == 503:
            await asyncio.sleep(0.05)
        while answer[1]["lease"] is None:
            answer = await _hand_in(service, worker, item, by_exchange=by_exchange)
    assert (answer[0], answer[1]["state"]) == (200, "completed")
    assert await _fate(node, lease["task_id"]) == _KEPT
    assert await _fate(node, answer[1]["lease"]["task_id"]) == (0, "executing")
    connection = await asyncpg.connect(node.url)
    assert await connection.fetchval("SELECT count(*) FROM tasks WHERE worker_id = $1", UUID(str(worker.id))) == 1
    await connection.close()


@pytest.mark.parametrize("by_exchange", [False, True], ids=["plain", "exchange"])
async def test_a_refused_result_says_why_and_brings_no_task(service: Service, by_exchange: bool) -> None:
    worker, lease = await _leases(service, 1)
    wrong = hand_in(worker, lease | {"token": lease["token"] + 1}, and_next=True)
    status, problem = await _hand_in(service, worker, wrong, by_exchange=by_exchange)
    assert (status, problem["code"]) == (404, "lease_not_found")
    status, body = await _hand_in(service, worker, hand_in(worker, lease, and_next=True), by_exchange=by_exchange)
    assert (status, body["lease"]["attempt"]) == (200, 1)


@pytest.mark.parametrize("by_exchange", [False, True], ids=["plain", "exchange"])
async def test_a_result_for_which_others_wait_is_accepted_alone_and_goes_on(
    service: Service, by_exchange: bool
) -> None:
    worker = await service.worker()
    first = await service.submitted()
    lease = await worker.lease()
    await service.submitted(depends_on=[first])
    status, body = await _hand_in(service, worker, hand_in(worker, lease, and_next=True), by_exchange=by_exchange)
    assert (status, body["state"], body["lease"] is None) == (200, "completed", False)


@pytest.mark.parametrize("by_exchange", [False, True], ids=["plain", "exchange"])
async def test_other_workers_need_not_wait_for_a_large_result(
    service: Service, monkeypatch: pytest.MonkeyPatch, by_exchange: bool
) -> None:
    worker, lease = await _leases(service, 1)
    claim = claims.claim
    asked: list[ClaimRequest] = []

    async def and_note(connection: Any, requests: Sequence[ClaimRequest], policy: LeasePolicy) -> Any:
        asked.extend(requests)
        return await claim(connection, requests, policy)

    monkeypatch.setattr(claims, "claim", and_note)
    item = hand_in(worker, lease, and_next=True, result={"text": "x" * (64 << 10)})
    status, body = await _hand_in(service, worker, item, by_exchange=by_exchange)
    assert (status, body["state"], body["lease"] is None) == (200, "completed", False)
    assert [request.completion for request in asked] == [None]


@pytest.mark.parametrize("by_exchange", [False, True], ids=["plain", "exchange"])
async def test_a_result_at_which_a_claim_fails_hinders_no_other(
    service: Service, monkeypatch: pytest.MonkeyPatch, by_exchange: bool
) -> None:
    """Whatever the database has against it, the others of its batch have their tasks, and it is tried alone."""
    (worker, lease), (other, its_lease) = await _leases(service, 0), await _leases(service, 2)
    claim = claims.claim

    async def and_fail(connection: Any, requests: Sequence[ClaimRequest], policy: LeasePolicy) -> Any:
        if any(request.completion and str(request.worker_id) == worker.id for request in requests):
            raise asyncpg.DataError("no such number")
        return await claim(connection, requests, policy)

    monkeypatch.setattr(claims, "claim", and_fail)
    answers = await asyncio.gather(
        _hand_in(service, worker, hand_in(worker, lease, and_next=True), by_exchange=by_exchange),
        _hand_in(service, other, hand_in(other, its_lease, and_next=True), by_exchange=by_exchange),
    )
    told = [(status, body["state"], body["lease"] is None) for status, body in answers]
    assert told == [(200, "completed", False)] * 2


@pytest.mark.parametrize("by_exchange", [False, True], ids=["plain", "exchange"])
async def test_a_result_whose_claim_finds_no_task_goes_on_with_another_lane(
    node: Node, service: Service, by_exchange: bool
) -> None:
    """It is accepted once: what has been handed in with one claim is not handed in again with the next."""
    worker, lease = await _leases(service, 1)
    urgent = await service.submitted(priority="high")
    connection = await asyncpg.connect(node.url)
    try:
        async with connection.transaction():
            await connection.fetchval("SELECT id FROM tasks WHERE id = $1 FOR UPDATE", UUID(urgent))
            async with asyncio.timeout(_PATIENCE_SECONDS):
                answer = await _hand_in(service, worker, hand_in(worker, lease, and_next=True), by_exchange=by_exchange)
    finally:
        await connection.close()
    status, body = answer
    assert (status, body["lease"]["priority"]) == (200, "medium")
    assert await _fate(node, lease["task_id"]) == _KEPT


@pytest.mark.parametrize("by_exchange", [False, True], ids=["plain", "exchange"])
async def test_a_broker_that_stumbles_costs_no_result(
    service: Service, monkeypatch: pytest.MonkeyPatch, by_exchange: bool
) -> None:
    worker, lease = await _leases(service, 1)

    def stumble(*_: Any) -> Any:
        raise RuntimeError

    monkeypatch.setattr(Broker, "_next_batch", stumble)
    status, body = await _hand_in(service, worker, hand_in(worker, lease, and_next=True), by_exchange=by_exchange)
    assert (status, body["state"], body["lease"]) == (200, "completed", None)


@pytest.mark.parametrize("by_exchange", [False, True], ids=["plain", "exchange"])
async def test_a_repetition_during_the_claim_is_answered_with_its_outcome(
    service: Service, monkeypatch: pytest.MonkeyPatch, by_exchange: bool
) -> None:
    """By that alone: what it would ask once more might be refused, and its worker have a task without hearing of it."""
    worker, lease = await _leases(service, 1)
    claim, is_committed, go_on = claims.claim, asyncio.Event(), asyncio.Event()
    claimed = 0

    async def slowly(*arguments: Any) -> Any:
        nonlocal claimed
        claimed += 1
        outcomes = await claim(*arguments)
        is_committed.set()
        await go_on.wait()
        return outcomes

    monkeypatch.setattr(claims, "claim", slowly)
    item = hand_in(worker, lease, and_next=True)
    first = asyncio.create_task(_hand_in(service, worker, item, by_exchange=by_exchange))
    await is_committed.wait()
    second = asyncio.create_task(_hand_in(service, worker, item, by_exchange=by_exchange))
    assert (await first)[1]["lease"] is None
    go_on.set()
    status, body = await second
    assert (status, body["state"], body["lease"] is None, claimed) == (200, "completed", False, 1)


async def test_a_call_that_was_delayed_takes_no_task_from_the_one_that_repeats_it(
    service: Service, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its result goes alone, as others wait for it, and its client has given up meanwhile."""
    worker = await service.worker()
    first_id = await service.submitted()
    lease = await worker.lease()
    await service.submitted(depends_on=[first_id])
    complete, is_alone, go_on = LeaseService.complete, asyncio.Event(), asyncio.Event()

    async def slowly(self: LeaseService, completion: Completion) -> None:
        await complete(self, completion)
        if not is_alone.is_set():
            is_alone.set()
            await go_on.wait()

    claim, is_claiming, may_claim = claims.claim, asyncio.Event(), asyncio.Event()

    async def late(*arguments: Any) -> Any:
        if is_alone.is_set():
            is_claiming.set()
            await may_claim.wait()
        return await claim(*arguments)

    monkeypatch.setattr(LeaseService, "complete", slowly)
    monkeypatch.setattr(claims, "claim", late)
    item = hand_in(worker, lease, and_next=True)
    older = asyncio.create_task(_hand_in(service, worker, item, by_exchange=False))
    await is_alone.wait()
    newer = asyncio.create_task(_hand_in(service, worker, item, by_exchange=False))
    await is_claiming.wait()
    go_on.set()
    assert (await older)[1]["lease"] is None
    may_claim.set()
    status, body = await newer
    assert (status, body["lease"] is None) == (200, False)


async def test_a_call_that_is_repeated_meanwhile_has_the_one_task(
    service: Service, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The first one accepts the result alone at most: it takes no task away from the second, which is listened to."""
    worker, lease = await _leases(service, 3)
    claim, has_begun, go_on = claims.claim, asyncio.Event(), asyncio.Event()

    async def slowly(connection: Any, requests: Sequence[ClaimRequest], policy: LeasePolicy) -> Any:
        has_begun.set()
        await go_on.wait()
        return await claim(connection, requests, policy)

    monkeypatch.setattr(claims, "claim", slowly)
    item = hand_in(worker, lease, and_next=True)
    first = asyncio.create_task(_hand_in(service, worker, item, by_exchange=False))
    await has_begun.wait()
    second = asyncio.create_task(_hand_in(service, worker, item, by_exchange=False))
    done, _ = await asyncio.wait([first], timeout=_PATIENCE_SECONDS)
    assert done
    go_on.set()
    assert first.result()[1]["lease"] is None
    status, body = await second
    assert (status, body["state"], body["lease"] is None) == (200, "completed", False)
    connection = await asyncpg.connect(service.app.state.services.database.url)
    held = await connection.fetch("SELECT id FROM tasks WHERE worker_id = $1", UUID(str(worker.id)))
    assert [str(row["id"]) for row in held] == [body["lease"]["task_id"]]
    await connection.close()
