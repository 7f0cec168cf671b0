"""A commit that does not wait for the disk is flushed by one on a connection to the same server, open before."""

import asyncio
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from uuid import uuid4

import asyncpg
import pytest

from app.db.asynchronous_commits import WRITE_LOG_IF_BEHIND, AsynchronousCommit, Origin
from app.db.database import Database
from app.kernel.agents import AgentType
from app.kernel.ids import TaskId, WorkerId
from app.postgres.binaries import Binaries
from app.queue.broker import calls
from app.queue.broker.calls import LeaseCall, Waiter
from app.queue.rules.fair_queueing import FairQueue
from app.queue.rules.tasks import LeasePolicy
from app.queue.service.leases import LeaseService
from app.queue.store import claims, completions
from app.queue.store.claims import ClaimOutcome, ClaimRequest
from app.queue.store.completions import Completion, ServiceTime
from tests.support.standby import Node

_STARTED = datetime(2026, 1, 1, tzinfo=UTC)


@dataclass
class _Connection:
    origin: Origin | None


def _commit(origin: Origin | None) -> AsynchronousCommit:
    return AsynchronousCommit(_Connection(origin))  # type: ignore[arg-type]


def _precedes(commit: AsynchronousCommit, origin: Origin | None) -> bool:
    return commit.precedes(_Connection(origin))  # type: ignore[arg-type]


def test_only_a_connection_that_was_open_before_sees_that_the_server_has_not_crashed() -> None:
    commit = _commit(Origin(_STARTED, 0.0))
    assert _precedes(commit, Origin(_STARTED, 1.0))
    assert not _precedes(commit, Origin(_STARTED, float("inf")))
    assert not _precedes(commit, Origin(_STARTED + timedelta(seconds=1), 0.0))
    assert not _precedes(commit, None)
    assert not _precedes(_commit(None), Origin(_STARTED, 0.0))


@pytest.mark.parametrize("is_open_before", [True, False])
@pytest.mark.parametrize("has_lease", [True, False])
async def test_a_claim_flushes_results_where_it_leases_and_trusts_them_where_it_sees_them(
    monkeypatch: pytest.MonkeyPatch, is_open_before: bool, has_lease: bool
) -> None:
    numbers: list[int | None] = []

    async def claim(_: Any, requests: Sequence[ClaimRequest], __: LeasePolicy) -> list[ClaimOutcome]:
        numbers.extend(request.last_number for request in requests)
        lease: Any = "a lease" if has_lease else None
        return [ClaimOutcome("ready", None, False, False, None, lease)]

    monkeypatch.setattr(claims, "claim", claim)
    commit = _commit(Origin(_STARTED, 0.0))
    worker_id, request_id = WorkerId(uuid4()), uuid4()
    call = LeaseCall(worker_id, request_id, frozenset(), follows=TaskId(uuid4()), result_commit=commit)
    waiter = Waiter(call=call, answer=None, may_wait=False, idle_since=0.0)  # type: ignore[arg-type]
    connection: Any = _Connection(Origin(_STARTED, 0.0 if is_open_before else float("inf")))
    request = ClaimRequest(worker_id, request_id, None, acknowledge=False, last_number=7)
    await calls.claim(connection, [waiter], [request], LeasePolicy())
    assert numbers == [7 if is_open_before else None]
    assert commit.is_flushed == (is_open_before and has_lease)


async def test_a_process_knows_the_origin_of_its_connections(own_database: Database) -> None:
    async with own_database.asynchronous as asynchronous, (await own_database.hot.open()).acquire() as hot:
        commit = AsynchronousCommit(asynchronous)
        assert commit.precedes(hot)  # type: ignore[arg-type]
    async with own_database.asynchronous as same:
        assert same is asynchronous
        same.terminate()
    async with own_database.asynchronous as other:
        assert other is not asynchronous
        assert not commit.precedes(other)


@pytest.mark.parametrize(("results", "is_asynchronous"), [(1, True), (128, True), (129, False)])
async def test_a_large_batch_waits_for_the_disk_itself(
    own_database: Database, monkeypatch: pytest.MonkeyPatch, results: int, is_asynchronous: bool
) -> None:
    async def complete(_: Any, batch: Sequence[Completion], *, waits: bool = True) -> dict[TaskId, ServiceTime]:
        return {one.task_id: ServiceTime(AgentType.RANKING, 1.0) for one in batch}

    monkeypatch.setattr(completions, "complete", complete)
    desk = LeaseService(own_database, LeasePolicy(), FairQueue())
    batch = [
        Completion(TaskId(uuid4()), 1, WorkerId(uuid4()), "{}", b"", None, precedes_claim=True) for _ in range(results)
    ]
    acceptances = await asyncio.gather(*desk.begin_completions(batch))
    assert {one is not None and one.result_commit is not None for one in acceptances} == {is_asynchronous}


async def test_a_standby_tells_readers_of_events(binaries: Binaries) -> None:
    """It has no log of its own to look at, and serves reads while there is no primary."""
    with tempfile.TemporaryDirectory(prefix="convener-test-", ignore_cleanup_errors=True) as name:
        Path(name).chmod(0o711)
        primary = Node(directory=Path(name) / "primary", binaries=binaries)
        standby = Node(directory=Path(name) / "standby", binaries=binaries)
        await primary.make_primary()
        try:
            await standby.follow(primary)
            connection = await asyncpg.connect(standby.url)
            assert await connection.fetchval("SELECT pg_is_in_recovery()")
            assert await connection.fetchval(f"SELECT {WRITE_LOG_IF_BEHIND}") is None
            await connection.close()
        finally:
            await standby.stop()
            await primary.stop()
