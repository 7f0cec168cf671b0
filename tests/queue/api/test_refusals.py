"""What does not exist, is somebody else's or is over: each refusal has its own code and changes nothing."""

from typing import Any
from uuid import uuid4

import pytest

from app.db.database import Database
from tests.support.problems import everything, is_problem
from tests.support.service import Service, Worker
from tests.support.sql import execute


@pytest.mark.usefixtures("unchanged")
async def test_the_token_of_another_task_opens_nothing(service: Service, worker: Worker, lease: Any) -> None:
    for token in (lease["token"] + 1, 2**63 - 1):
        for verb, fields in _CALLS.items():
            answer = await worker.on_lease(lease | {"token": token}, verb, **fields)
            is_problem(answer, 404, "lease_not_found")


_CALLS: dict[str, dict[str, Any]] = {
    "start": {},
    "progress": {"percent": 1},
    "complete": {"result": {}},
    "fail": {"error": {"code": "c", "message": "m"}},
    "release": {},
}


@pytest.mark.parametrize("verb", _CALLS)
async def test_another_workers_lease_looks_like_none(
    service: Service, lease: Any, database: Database, verb: str
) -> None:
    other = await service.worker()
    before = await everything(database)
    is_problem(await other.on_lease(lease, verb, **_CALLS[verb]), 404, "lease_not_found")
    nothing = {"task_id": str(uuid4()), "token": 1}
    is_problem(await other.on_lease(nothing, verb, **_CALLS[verb]), 404, "lease_not_found")
    assert await everything(database) == before


@pytest.mark.parametrize("verb", _CALLS)
async def test_an_expired_lease_changes_nothing(worker: Worker, lease: Any, database: Database, verb: str) -> None:
    await execute(database, "UPDATE tasks SET lease_expires_at = now() - interval '1 s'")
    before = await everything(database)
    answer = await worker.on_lease(lease, verb, **_CALLS[verb])
    assert is_problem(answer, 409, "lease_expired")["reason"] == "expired"
    assert await everything(database) == before


@pytest.mark.parametrize("verb", _CALLS)
async def test_a_cancelled_task_changes_no_more(
    service: Service, worker: Worker, lease: Any, database: Database, verb: str
) -> None:
    await service.post(f"/tasks/{lease['task_id']}/cancel", {"reason": "enough"})
    before = await everything(database)
    is_problem(await worker.on_lease(lease, verb, **_CALLS[verb]), 409, "task_cancelled")
    assert await everything(database) == before


async def test_a_lease_that_was_given_back_and_leased_again_is_superseded(
    service: Service, worker: Worker, lease: Any, database: Database
) -> None:
    assert (await worker.on_lease(lease, "release")).status_code == 200
    assert (await (await service.worker()).lease())["task_id"] == lease["task_id"]
    before = await everything(database)
    for verb in ("start", "progress", "complete"):
        is_problem(await worker.on_lease(lease, verb, **_CALLS[verb]), 409, "lease_superseded")
    assert await everything(database) == before


@pytest.mark.parametrize(
    ("method", "path", "status", "code"),
    [
        ("GET", "/nowhere", 404, "not_found"),
        ("POST", "/leases", 404, "not_found"),
        ("GET", f"/tasks/{uuid4()}", 404, "task_not_found"),
        ("POST", f"/tasks/{uuid4()}/cancel", 404, "task_not_found"),
        ("GET", f"/workers/{uuid4()}", 404, "worker_not_found"),
        ("POST", f"/workers/{uuid4()}/drain", 404, "worker_not_found"),
        ("POST", f"/workers/{uuid4()}/stop", 404, "worker_not_found"),
        ("DELETE", "/keys/nobody", 404, "key_not_found"),
        ("GET", "/lease", 405, "method_not_allowed"),
        ("GET", f"/leases/{uuid4()}/start", 405, "method_not_allowed"),
        ("PUT", f"/workers/{uuid4()}/heartbeat", 405, "method_not_allowed"),
        ("DELETE", "/tasks", 405, "method_not_allowed"),
        ("PUT", f"/tasks/{uuid4()}", 405, "method_not_allowed"),
        ("POST", "/events", 405, "method_not_allowed"),
        ("POST", "/livez", 405, "method_not_allowed"),
    ],
)
@pytest.mark.usefixtures("unchanged")
async def test_there_is_nothing_here(service: Service, method: str, path: str, status: int, code: str) -> None:
    body: object = None if method in ("GET", "DELETE") else {}
    answer = await service.ask(method, path, body)
    is_problem(answer, status, code)
    if status == 405:
        assert answer.headers["allow"]


@pytest.mark.parametrize(
    ("method", "path", "allowed"),
    [
        ("OPTIONS", "/config", "GET, PATCH, PUT"),
        ("DELETE", "/checkpoints", "GET, POST"),
        ("GET", "/lease", "POST"),
        ("TRACE", "/context/a/b", "DELETE, GET, PUT"),
    ],
)
async def test_a_refused_method_names_the_allowed_ones(service: Service, method: str, path: str, allowed: str) -> None:
    assert (await service.ask(method, path)).headers["allow"] == allowed


@pytest.mark.usefixtures("unchanged")
async def test_the_catalogue_lists_every_code_once_with_its_status(service: Service) -> None:
    problems = (await service.get("/problems"))["problems"]
    codes = [problem["code"] for problem in problems]
    assert len(codes) == len(set(codes))
    assert {"lease_expired", "body_too_large", "invalid_request", "shutting_down"} <= set(codes)


async def test_a_lease_that_was_renewed_is_not_given_back_by_who_knows_its_former_end(
    service: Service, database: Database
) -> None:
    """As a relay does whose worker has hung up, and got the same lease again elsewhere."""
    await service.submitted()
    worker, request_id = await service.worker(), str(uuid4())
    lost = await worker.lease(request_id=request_id)
    again = await worker.lease(request_id=request_id)
    assert (again["task_id"], again["token"]) == (lost["task_id"], lost["token"])
    before = await everything(database)
    answer = await worker.on_lease(lost, "release", expires_at=lost["expires_at"])
    is_problem(answer, 409, "lease_superseded")
    assert await everything(database) == before
    assert (await worker.on_lease(again, "release", expires_at=again["expires_at"])).status_code == 200
