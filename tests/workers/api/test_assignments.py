"""Who works on what and with how much reaches the worker: told until it is known, within every limit, in each lease."""

from typing import Any
from uuid import uuid4

import pytest

from app.db.database import Database
from tests.support.config_calls import changed
from tests.support.service import Service, Worker
from tests.support.sql import execute, value


async def _assign(database: Database, worker: Worker, agent: str | None, *amounts: float | None) -> None:
    await execute(
        database,
        """UPDATE workers SET assigned_agent = $2, assigned_memory_gb = $3, assigned_cpu_cores = $4,
           assigned_compute_seconds = $5 WHERE id = $1::uuid""",
        worker.id,
        agent,
        *(amounts or (None, None, None)),
    )


async def _told(worker: Worker, known: str | None = None) -> Any:
    return (await worker.beat(**({"assignment": known} if known else {})))["assignment"]


async def test_what_is_assigned_is_told_until_the_worker_names_it(service: Service, database: Database) -> None:
    worker = await service.worker(memory_gb=8, cpu_cores=4)
    await _assign(database, worker, "ranking", 2.5, 1.5, 1200)
    first = await _told(worker)
    named = {"agent": "ranking", "memory_gb": 2.5, "cpu_cores": 1.5, "compute_seconds": 1200}
    assert {key: part for key, part in first.items() if key != "version"} == named
    assert await _told(worker) == first, "the answer was lost, so it must come again"
    assert await _told(worker, first["version"]) is None
    await _assign(database, worker, "evolution", 2.5, 1.5, 1200)
    second = await _told(worker, first["version"])
    assert (second["agent"], second["version"] != first["version"]) == ("evolution", True)
    shown = await service.get(f"/workers/{worker.id}")
    assert (shown["assigned_agent"], shown["assigned_memory_gb"]) == ("evolution", 2.5)
    assert (shown["assigned_cpu_cores"], shown["assigned_compute_seconds"]) == (1.5, 1200)


async def test_nobody_is_told_of_more_than_it_has_or_than_is_allowed(service: Service, database: Database) -> None:
    small = await service.worker(memory_gb=2, cpu_cores=1)
    large = await service.worker(memory_gb=64, cpu_cores=32)
    for worker in (small, large):
        await _assign(database, worker, "ranking", 100, 100, 600)
    told = await _told(small)
    assert (told["memory_gb"], told["cpu_cores"]) == (2, 1)
    before = await _told(large)
    assert (before["memory_gb"], before["cpu_cores"]) == (4, 2)
    await changed(service, {"resource_limits": {"max_memory_per_worker_gb": 3, "max_cpu_per_worker": 0.5}}, 1)
    after = await _told(large, before["version"])
    assert (after["memory_gb"], after["cpu_cores"]) == (3, 0.5)


async def test_the_limits_of_the_configuration_hold_before_anything_is_decided(service: Service) -> None:
    worker = await service.worker(memory_gb=64, cpu_cores=32)
    told = await _told(worker)
    assert (told["agent"], told["memory_gb"], told["cpu_cores"], told["compute_seconds"]) == (None, 4, 2, None)


@pytest.mark.parametrize(
    ("assigned", "seconds", "timeout"),
    [("ranking", 1200, 120), ("ranking", 600, 60), ("ranking", 60, 60), ("ranking", None, 60), ("evolution", 1200, 60)],
)
async def test_a_task_of_the_assigned_agent_gets_more_time_and_never_less_than_its_own(
    service: Service, database: Database, assigned: str, seconds: float | None, timeout: float
) -> None:
    await service.submitted(agent_type="ranking", timeout_seconds=60)
    worker = await service.worker()
    await _assign(database, worker, assigned, 1, 1, seconds)
    request = str(uuid4())
    lease = await worker.lease(request_id=request)
    assert lease["timeout_seconds"] == timeout
    stood = "SELECT extract(epoch FROM deadline_at - leased_at)::float8 FROM tasks"
    assert await value(database, stood) == timeout
    await _assign(database, worker, assigned, 1, 1, 3600)
    again = await worker.lease(request_id=request)
    assert again | {"expires_at": lease["expires_at"]} == lease, "a lease is what it was when it was given"
    assert (await service.get(f"/tasks/{lease['task_id']}"))["timeout_seconds"] == 60


async def test_an_attempt_elsewhere_has_the_tasks_own_time_again(service: Service, database: Database) -> None:
    await service.submitted(agent_type="ranking", timeout_seconds=60)
    first, second = await service.worker(), await service.worker()
    await _assign(database, first, "ranking", 1, 1, 2400)
    lease = await first.lease()
    assert lease["timeout_seconds"] == 240
    await first.on_lease(lease, "release", reason="draining")
    assert (await second.lease())["timeout_seconds"] == 60
