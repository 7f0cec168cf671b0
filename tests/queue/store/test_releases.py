"""Releases of leases that no worker has heard of: all of them at once, and none that its worker knows of by now."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import suppress
from typing import Any
from uuid import UUID, uuid4

import pytest

from app.db import hot_path
from app.db.database import Database
from app.db.hot_path import HotConnection
from app.kernel.errors import Locked
from app.kernel.ids import WorkerId
from app.kernel.lanes import Priority
from app.queue.rules.tasks import LeasePolicy
from app.queue.service.leases import LeaseService
from app.queue.store import claims, counters, releases
from app.queue.store.claims import ClaimRequest, Lease
from app.queue.store.completions import Renewal
from tests.support.factories import GENERATION, leased, ready_worker, submitted
from tests.support.sql import fetch, value

_POLICY = LeasePolicy()


@pytest.fixture
async def connections(database: Database) -> AsyncIterator[list[HotConnection]]:
    connections = [await database.connect_for_statements() for _ in range(2)]
    yield connections
    for connection in connections:
        await connection.close()


async def _claimed(database: Database) -> tuple[WorkerId, UUID, Lease]:
    """A worker, its request, and the lease on a new task that a claim has brought."""
    worker_id, request_id = await ready_worker(database), uuid4()
    await submitted(database)
    ask = ClaimRequest(worker_id=worker_id, request_id=request_id, lane=GENERATION, acknowledge=False)
    outcomes = await hot_path.run(database, lambda c: claims.claim(c, [ask], _POLICY))
    assert outcomes[0].lease is not None
    return worker_id, request_id, outcomes[0].lease


async def _state(database: Database) -> Any:
    return await value(database, "SELECT state FROM tasks")


async def test_tasks_go_back_to_their_lanes_and_it_counts_as_no_attempt(
    database: Database, connections: list[HotConnection]
) -> None:
    leases = {}
    for place in range(4):
        await submitted(database, priority=Priority.HIGH if place % 2 else Priority.MEDIUM)
        worker_id = await ready_worker(database)
        priority = Priority.HIGH if place % 2 else Priority.MEDIUM
        leases[worker_id] = await leased(database, worker_id, acknowledge=place > 1, priority=priority)
    locked, tags = await releases.release(connections[0], leases, "nobody wants it")
    assert not locked
    assert {lane.priority for lane in tags} == {Priority.HIGH, Priority.MEDIUM}
    rows = await fetch(database, "SELECT state, failures, rescues, returns, unacknowledged, tag FROM tasks")
    assert {tuple(row)[:5] for row in rows} == {("pending", 0, 0, 0, 0)}
    assert min(row["tag"] for row in rows) == min(tags.values())
    attempts = await fetch(database, "SELECT worker_id, token, attempt, outcome FROM task_attempts")
    assert {tuple(row) for row in attempts} == {(worker, 1, 1, "released") for worker in leases}
    query = "SELECT worker_id, detail ->> 'reason' FROM every_event WHERE kind = 'task.released'"
    assert {tuple(row) for row in await fetch(database, query)} == {(worker, "nobody wants it") for worker in leases}
    async with database.transaction() as connection:
        assert await counters.differences(connection) == []
    assert (await leased(database, await ready_worker(database))).token == 2


async def test_a_lease_that_was_started_stays(
    database: Database, desk: LeaseService, connections: list[HotConnection]
) -> None:
    worker_id, _, lease = await _claimed(database)
    await desk.renew(Renewal(task_id=lease.task_id, token=lease.token, worker_id=worker_id))
    assert await releases.release(connections[0], {worker_id: lease}, "test") == (set(), {})
    assert await _state(database) == "executing"


async def test_a_lease_that_is_repeated_is_not_released(database: Database, connections: list[HotConnection]) -> None:
    worker_id, request_id, lease = await _claimed(database)
    transaction = connections[0].transaction()
    await transaction.start()
    repeated = await claims.lease_of_request(connections[0], worker_id, request_id, _POLICY)
    assert repeated is not None
    assert repeated.expires_at > lease.expires_at
    assert await releases.release(connections[1], {worker_id: lease}, "test") == ({worker_id}, {})
    await transaction.commit()
    assert await releases.release(connections[1], {worker_id: lease}, "test") == (set(), {})
    assert await _state(database) == "assigned"


async def test_a_lease_that_is_released_is_not_repeated(database: Database, connections: list[HotConnection]) -> None:
    worker_id, request_id, lease = await _claimed(database)
    transaction = connections[0].transaction()
    await transaction.start()
    assert (await releases.release(connections[0], {worker_id: lease}, "test"))[1]
    with pytest.raises(Locked):
        await claims.lease_of_request(connections[1], worker_id, request_id, _POLICY)
    await transaction.commit()
    assert await claims.lease_of_request(connections[1], worker_id, request_id, _POLICY) is None
    assert await _state(database) == "pending"


async def test_of_a_release_and_a_repetition_at_once_one_has_the_lease(
    database: Database, connections: list[HotConnection]
) -> None:
    for _ in range(20):
        worker_id, request_id, lease = await _claimed(database)
        repeating = asyncio.create_task(claims.lease_of_request(connections[1], worker_id, request_id, _POLICY))
        _, tags = await releases.release(connections[0], {worker_id: lease}, "test")
        repeated: Lease | None = None
        with suppress(Locked):
            repeated = await repeating
        state = await value(database, "SELECT state FROM tasks WHERE id = $1", lease.task_id)
        assert state == ("pending" if tags else "assigned")
        assert (repeated is not None) == (state == "assigned")
