"""Tasks that ask for resources go to workers that offer them, and those that ask for nothing to anybody."""

import asyncio
from dataclasses import replace
from datetime import timedelta
from typing import Any
from uuid import uuid4

import pytest

from app.db.database import Database
from app.kernel.agents import AgentType
from app.kernel.lanes import Lane, Priority, class_of
from app.kernel.resources import MAX_CLASSES
from app.queue.broker.broker import Broker
from app.queue.errors import TooManyResourceClasses
from app.queue.rules.tasks import LeasePolicy
from app.queue.service import resource_classes
from app.queue.store import aging
from app.queue.store.lanes import TagIssuer
from tests.support.factories import submitted
from tests.support.service import Service, Worker
from tests.support.sql import execute, fetch, value
from tests.support.waiting import until_waiting

GPU = {"gpus": 1}


async def _task(worker: Worker, **fields: Any) -> str | None:
    lease = await worker.lease(**fields)
    return str(lease["task_id"]) if lease else None


async def test_a_task_goes_to_a_worker_that_offers_what_it_asks_for(service: Service) -> None:
    plain, small = await service.worker(), await service.worker(gpus=1)
    large = await service.worker(gpus=2, memory_gb=64, resources={"laser": 1})
    two = await service.submitted(resources={"gpus": 2})
    one = await service.submitted(resources=GPU)
    laser = await service.submitted(resources={"named": {"laser": 1}, "memory_gb": 32})
    assert await _task(plain) is None
    lease = await small.lease()
    assert (lease["task_id"], lease["resources"]) == (one, {"gpus": 1})
    assert await _task(large) == two
    shown = await service.get(f"/tasks/{laser}")
    assert shown["resources"] == {"cores": 0, "memory_gb": 32, "gpus": 0, "named": {"laser": 1}}
    free = await service.submitted()
    assert (await service.get(f"/tasks/{free}"))["resources"] is None
    assert await _task(plain) == free


@pytest.fixture
def no_poll(monkeypatch: pytest.MonkeyPatch) -> None:
    """Only news wakes those that wait."""
    monkeypatch.setattr("app.queue.broker.broker.random.uniform", lambda *_: 600.0)


@pytest.mark.usefixtures("no_poll")
async def test_waiting_workers_are_woken_for_what_they_offer(service: Service) -> None:
    plain, gpu = await service.worker(), await service.worker(gpus=1)
    calls = [asyncio.create_task(_task(worker, wait_seconds=30)) for worker in (plain, gpu)]
    await until_waiting(service.app.state.services[Broker], 2)
    asking = await service.submitted(resources=GPU)
    assert await calls[1] == asking
    assert not calls[0].done()
    free = await service.submitted()
    assert await calls[0] == free


@pytest.mark.usefixtures("no_poll")
async def test_another_process_learns_of_a_new_class(service: Service, replica: Database) -> None:
    other = Broker(replica, LeasePolicy())
    other.start()
    try:
        gpu = await service.worker(gpus=1)
        call = asyncio.create_task(_task(gpu, wait_seconds=30))
        await until_waiting(service.app.state.services[Broker])
        # From a process that knows the broker by its announcements alone.
        (asking,) = await submitted(replica, resources='{"gpus": 1}')
        assert await call == str(asking)
    finally:
        await other.stop()


async def test_who_asks_for_nothing_has_a_share_of_workers_that_offer_much(service: Service) -> None:
    gpu = await service.worker(gpus=1)
    asking = [await service.submitted(resources=GPU) for _ in range(12)]
    free = [await service.submitted() for _ in range(2)]
    order = []
    for _ in range(14):
        lease = await gpu.lease()
        order.append(lease["task_id"])
        await gpu.on_lease(lease, "complete", result={})
    assert set(order) == {*asking, *free}
    assert order[0] == asking[0]
    assert order.index(free[0]) < 12


async def test_a_task_keeps_its_class_whatever_happens_to_it(service: Service, database: Database) -> None:
    """Handed back, failed, raised, held, displaced to another priority and requeued: never for a plain worker."""
    plain, gpu = await service.worker(), await service.worker(gpus=1)
    retry = {"max_attempts": 2, "delays_seconds": [0]}
    task = await service.submitted(resources=GPU, goal_id="orbits", retry=retry)

    async def still_asks() -> Any:
        assert await _task(plain) is None
        lease = await gpu.lease()
        assert lease["task_id"] == task
        return lease

    await gpu.on_lease(await still_asks(), "release", reason="no room")
    await execute(database, "UPDATE tasks SET avoid_worker_id = NULL, run_at = NULL")
    await gpu.on_lease(await still_asks(), "fail", error={"code": "x", "message": "x", "retryable": True})
    await execute(database, "UPDATE tasks SET avoid_worker_id = NULL, run_at = NULL")
    await service.ask("PATCH", f"/tasks/{task}", {"priority": "high", "reason": "soon"})
    tag = await value(database, "SELECT tag FROM tasks")
    assert class_of(tag) == await value(database, "SELECT resource_class FROM tasks") == 1
    await gpu.on_lease(await still_asks(), "fail", error={"code": "x", "message": "x", "retryable": False})
    assert await value(database, "SELECT state FROM task_history") == "failed"
    await execute(database, "DELETE FROM resource_classes")
    await service.post(f"/dead-letters/{task}/requeue", {"reason": "again"})
    await still_asks()


async def test_a_dependent_that_asks_for_resources_is_unblocked_into_its_lane(service: Service) -> None:
    plain, gpu = await service.worker(), await service.worker(gpus=1)
    first = await service.submitted()
    then = await service.submitted(resources=GPU, depends_on=[first])
    lease = await plain.lease()
    await plain.on_lease(lease, "complete", result={})
    assert await _task(plain) is None
    assert await _task(gpu) == then


async def test_equal_requests_of_two_connections_share_a_class(database: Database, replica: Database) -> None:
    async with database.transaction() as one:
        (first,) = (await resource_classes.classes(one, ['{"gpus": 7}'])).values()

        async def same() -> int:
            async with replica.transaction() as two:
                return (await resource_classes.classes(two, ['{"gpus": 7.0}'])).popitem()[1]

        other = asyncio.create_task(same())
        await asyncio.sleep(0.2)
        assert not other.done(), "two transactions made a class for one request"
    assert await other == first


async def test_beyond_the_limit_unused_classes_give_way_and_used_ones_do_not(database: Database) -> None:
    for number in range(1, MAX_CLASSES):
        await submitted(database, resources=f'{{"cores": {number}}}')
    async with database.transaction() as connection:
        await resource_classes.classes(connection, ['{"gpus": 1}'])
    # The last is of no task, so another takes its place.
    await submitted(database, resources='{"gpus": 2}')
    assert await value(database, "SELECT count(*) FROM resource_classes") == MAX_CLASSES
    with pytest.raises(TooManyResourceClasses, match=r'64 different amounts.*"gpus": 3'):
        await submitted(database, resources='{"gpus": 3}')
    await submitted(database, resources='{"cores": 1}')
    assert await value(database, "SELECT count(*) FROM tasks WHERE resource_class IS NULL") == 0


def test_times_of_a_class_that_has_gone_are_not_stored_again() -> None:
    """Else the next class of that number would begin with them."""
    issuer = TagIssuer()
    lane = Lane(agent_type=AgentType.RANKING, priority=Priority.LOW, resource_class=1)
    other = replace(lane, resource_class=2)
    issuer.advance(lane, lane.bottom + 7)
    issuer.advance(other, other.bottom + 1)
    assert issuer.unstored_times() == {lane: lane.bottom + 7, other: other.bottom + 1}
    issuer.merge_stored_times(issuer.unstored_times())
    issuer.merge_stored_times({other: other.bottom + 2})
    assert issuer.unstored_times() == {}
    issuer.advance(lane, lane.bottom + 3)
    assert issuer.unstored_times() == {lane: lane.bottom + 3}


async def test_goals_share_a_lane_of_a_class_as_they_share_any(service: Service, database: Database) -> None:
    gpu = await service.worker(gpus=1)
    many = [await service.submitted(resources=GPU, goal_id="many") for _ in range(6)]
    for _ in range(2):
        lease = await gpu.lease()
        await gpu.on_lease(lease, "complete", result={})
    few = [await service.submitted(resources=GPU, goal_id="few") for _ in range(2)]
    order = []
    for _ in range(4):
        lease = await gpu.lease()
        order.append(lease["task_id"])
        await gpu.on_lease(lease, "complete", result={})
    assert few[0] in order[:2]
    assert few[1] in order
    assert many[2] in order
    tags = [row["tag"] for row in await fetch(database, "SELECT tag FROM tasks")]
    assert {class_of(tag) for tag in tags} == {1}


@pytest.mark.parametrize(
    ("resources", "field"),
    [
        ({"gpus": -1}, "gpus"),
        ({"named": {"gpus": 1}}, "named"),
        ({"named": {f"n{number}": 1 for number in range(17)}}, "named"),
        ({"tpus": 1}, "tpus"),
    ],
)
async def test_what_cannot_be_asked_for(service: Service, resources: Any, field: str) -> None:
    answer = await service.ask("POST", "/tasks", {"agent_type": "generation", "resources": resources})
    assert answer.status_code == 422
    assert field in answer.text


async def test_a_task_that_ages_stays_in_its_class(service: Service, database: Database) -> None:
    plain, gpu = await service.worker(), await service.worker(gpus=1)
    tasks = {await service.submitted(resources=GPU, priority="low"), await service.submitted(priority="low")}
    async with database.transaction() as connection:
        moved = await aging.age(connection, Priority.LOW, timedelta(0), None)
    assert moved.tasks == 2
    assert {await _task(plain), await _task(gpu)} == tasks
    assert await _task(await service.worker(str(uuid4()))) is None
