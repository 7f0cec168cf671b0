"""Whatever is wrong with a request, the answer is a problem with a stable code, and nothing has changed."""

import asyncio
from collections.abc import AsyncIterator
from typing import Any
from uuid import uuid4

import httpx
import pytest

from app.domain.access import Role
from app.store.database import Database
from tests.api.service import Service, Worker, registration
from tests.sql import execute, value

_TABLES = ("tasks", "task_history", "task_attempts", "events", "workers", "keys", "replacements")
# All that a refused call could have changed, timestamps and tokens included.
_ALL = " || '/' || ".join(f"(SELECT count(*) || md5(coalesce(string_agg(t::text, '' ORDER BY t::text), '')) FROM {t} t)"
                          for t in _TABLES)  # fmt: skip
_NESTED = "[" * 3000 + "]" * 3000
_TASK = '{"agent_type": "generation", "payload": {"x": %s}}'


async def _everything(database: Database) -> str:
    return str(await value(database, f"SELECT {_ALL}"))


@pytest.fixture
async def worker(service: Service) -> Worker:
    return await service.worker()


@pytest.fixture
async def lease(service: Service, worker: Worker) -> Any:
    await service.submitted()
    return await worker.lease()


@pytest.fixture
async def unchanged(lease: Any, database: Database) -> AsyncIterator[None]:
    """The whole database is the same after the test as before."""
    before = await _everything(database)
    yield
    assert await _everything(database) == before


def _is_problem(answer: httpx.Response, status: int, code: str, field: str | None = None) -> dict[str, Any]:
    assert answer.status_code == status, answer.text
    assert answer.headers["content-type"] == "application/problem+json"
    problem: dict[str, Any] = answer.json()
    assert problem["status"] == status
    assert problem["code"] == code, problem
    assert problem["type"] == f"/problems#{code}"
    assert problem["title"]
    assert problem["detail"]
    if field is not None:
        assert field in [error["path"] for error in problem["errors"]], problem
        assert field in problem["detail"]
        assert all(error["message"] for error in problem["errors"])
    return problem


def _general(**fields: Any) -> dict[str, Any]:
    return {"agent_type": "generation"} | fields


@pytest.mark.parametrize(
    ("body", "status", "code", "field"),
    [
        ("{", 400, "malformed_request", None),
        ('{"agent_type": generation}', 400, "malformed_request", None),
        (b'{"agent_type": "\xff"}', 400, "malformed_request", None),
        (_TASK % _NESTED, 400, "malformed_request", None),
        ("", 422, "invalid_request", "body"),
        ("[]", 422, "invalid_request", "body"),
        ("3", 422, "invalid_request", "body"),
        ("{}", 422, "invalid_request", "agent_type"),
        ('{"agent_type": "poetry"}', 422, "invalid_request", "agent_type"),
        ('{"agent_type": 3}', 422, "invalid_request", "agent_type"),
        ('{"agent_type": ["generation"]}', 422, "invalid_request", "agent_type"),
        ('{"agent_type": "generation", "agent": 1}', 422, "invalid_request", "agent"),
        ('{"agent_type": "generation", "retry": {"max": 1}}', 422, "invalid_request", "retry.max"),
        (_TASK % "NaN", 422, "invalid_request", "payload"),
        (_TASK % "-Infinity", 422, "invalid_request", "payload"),
        (_TASK % "1e999", 422, "invalid_request", "payload"),
        (_TASK % '{"y": [1e999]}', 422, "invalid_request", "payload"),
        (_TASK % '"a\\u0000b"', 422, "invalid_request", "payload"),
        (_TASK % '{"a\\u0000b": 1}', 422, "invalid_request", "payload"),
        (_TASK % '"\\ud800"', 422, "invalid_request", "payload"),
        ('{"agent_type": "generation", "goal_id": "\\ud800"}', 422, "invalid_request", "goal_id"),
        ('{"agent_type": "generation", "goal_id": "a\\u0000"}', 422, "invalid_request", "goal_id"),
        ('{"agent_type": "generation", "timeout_seconds": NaN}', 422, "invalid_request", "timeout_seconds"),
        ('{"agent_type": "generation", "timeout_seconds": 1e999}', 422, "invalid_request", "timeout_seconds"),
    ],
)
@pytest.mark.usefixtures("unchanged")
async def test_a_task_that_cannot_be_read(
    service: Service, body: str | bytes, status: int, code: str, field: str | None
) -> None:
    answer = await service.ask("POST", "/tasks", content=body, headers={"Content-Type": "application/json"})
    _is_problem(answer, status, code, field)


@pytest.mark.parametrize(
    ("fields", "field"),
    [
        ({"priority": -1}, "priority"),
        ({"priority": 0}, "priority"),
        ({"priority": 4}, "priority"),
        ({"priority": True}, "priority"),
        ({"priority": 2.0}, "priority"),
        ({"priority": "urgent"}, "priority"),
        ({"priority": ["high"]}, "priority"),
        ({"priority": None}, "priority"),
        ({"id": "not-a-uuid"}, "id"),
        ({"payload": []}, "payload"),
        ({"payload": "text"}, "payload"),
        ({"labels": {"a": 1}}, "labels.a"),
        ({"labels": {"": "x"}}, "labels..[key]"),
        ({"labels": {str(n): "x" for n in range(65)}}, "labels"),
        ({"timeout_seconds": 0}, "timeout_seconds"),
        ({"timeout_seconds": -1}, "timeout_seconds"),
        ({"timeout_seconds": 86_401}, "timeout_seconds"),
        ({"deadline": "tomorrow"}, "deadline"),
        ({"run_at": "2030-01-01T00:00:00"}, "run_at"),
        ({"retry": {"max_attempts": 0}}, "retry.max_attempts"),
        ({"retry": {"max_attempts": 1.5}}, "retry.max_attempts"),
        ({"retry": {"delays_seconds": [-1]}}, "retry.delays_seconds.0"),
        ({"goal_id": "g" * 201}, "goal_id"),
        ({"goal_id": ""}, "goal_id"),
    ],
)
@pytest.mark.usefixtures("unchanged")
async def test_a_task_with_a_value_that_is_not_allowed(service: Service, fields: dict[str, Any], field: str) -> None:
    _is_problem(await service.ask("POST", "/tasks", _general(**fields)), 422, "invalid_request", field)
    batch = {"tasks": [_general(), _general(**fields)]}
    _is_problem(await service.ask("POST", "/tasks/batch", batch), 422, "invalid_request", f"tasks.1.{field}")


@pytest.mark.usefixtures("unchanged")
async def test_a_batch_must_have_one_to_a_thousand_tasks(service: Service) -> None:
    for tasks in ([], [_general()] * 1001):
        _is_problem(await service.ask("POST", "/tasks/batch", {"tasks": tasks}), 422, "invalid_request", "tasks")


@pytest.mark.parametrize(
    ("path", "query", "field"),
    [
        ("/tasks", {"limit": "0"}, "limit"),
        ("/tasks", {"limit": "501"}, "limit"),
        ("/tasks", {"limit": "x"}, "limit"),
        ("/tasks", {"after": "-1"}, "after"),
        ("/tasks", {"state": "lost"}, "state"),
        ("/tasks", {"agent_type": "poetry"}, "agent_type"),
        ("/workers", {"after": "x"}, "after"),
        ("/events", {"wait_seconds": "31"}, "wait_seconds"),
        ("/events", {"wait_seconds": "-1"}, "wait_seconds"),
        ("/events", {"wait_seconds": "nan"}, "wait_seconds"),
        ("/events", {"after": "yesterday"}, "after"),
        ("/events", {"after": "1-2-3"}, "after"),
        ("/replacements", {"after": "x"}, "after"),
        ("/tasks/not-a-uuid", {}, "task_id"),
        ("/workers/not-a-uuid", {}, "worker_id"),
    ],
)
@pytest.mark.usefixtures("unchanged")
async def test_a_query_that_is_not_allowed(service: Service, path: str, query: dict[str, str], field: str) -> None:
    async with asyncio.timeout(20):
        _is_problem(await service.ask("GET", path, params=query), 422, "invalid_request", field)


@pytest.mark.parametrize(
    ("path", "query"),
    [
        ("/tasks", {"after": str(10**30)}),
        ("/tasks", {"goal_id": "a\x00"}),
        ("/workers", {"after": f"x/{10**20}"}),
        ("/workers", {"after": "a\x00/1"}),
        ("/replacements", {"after": str(10**30)}),
        ("/keys", {"after": "a\x00"}),
    ],
)
@pytest.mark.usefixtures("unchanged")
async def test_a_query_that_the_database_cannot_hold(service: Service, path: str, query: dict[str, str]) -> None:
    answer = await service.ask("GET", path, params=query)
    assert answer.status_code == 422, answer.text
    assert answer.json()["code"] in ("unstorable_value", "invalid_request")


_HUGE = '{"request_id": "%s", "wait_seconds": %s}'


@pytest.mark.parametrize(
    ("body", "status", "code", "field"),
    [
        ("{", 400, "malformed_request", None),
        (_HUGE % (uuid4(), _NESTED), 400, "malformed_request", None),
        (b'{"request_id": "\xff"}', 400, "malformed_request", None),
        (_HUGE % ("\\ud800", "0"), 400, "malformed_request", None),
        ("[]", 422, "invalid_request", "body"),
        ("", 422, "invalid_request", "request_id"),
        ("{}", 422, "invalid_request", "request_id"),
        (_HUGE % ("x", "0"), 422, "invalid_request", "request_id"),
        (_HUGE % ("a\\u0000", "0"), 422, "invalid_request", "request_id"),
        (_HUGE % (uuid4(), "31"), 422, "invalid_request", "wait_seconds"),
        (_HUGE % (uuid4(), "-1"), 422, "invalid_request", "wait_seconds"),
        (_HUGE % (uuid4(), "1e999"), 422, "invalid_request", "wait_seconds"),
        (_HUGE % (uuid4(), "NaN"), 422, "invalid_request", "wait_seconds"),
        (_HUGE % (uuid4(), '"soon"'), 422, "invalid_request", "wait_seconds"),
        (_HUGE % (uuid4(), '0, "agent_types": []'), 422, "invalid_request", "agent_types"),
        (_HUGE % (uuid4(), '0, "agent_types": ["poetry"]'), 422, "invalid_request", "agent_types.0"),
        (_HUGE % (uuid4(), '0, "patience": 3'), 422, "invalid_request", "patience"),
    ],
)
@pytest.mark.usefixtures("unchanged")
async def test_a_call_on_a_lean_route_that_cannot_be_read(
    service: Service, worker: Worker, body: str | bytes, status: int, code: str, field: str | None
) -> None:
    headers = {"Content-Type": "application/json"}
    answer = await service.ask("POST", "/lease", key=worker.key, content=body, headers=headers)
    _is_problem(answer, status, code, field)


@pytest.mark.parametrize(
    ("verb", "fields", "field"),
    [
        ("start", {"token": 0}, "token"),
        ("start", {"token": 2**63}, "token"),
        ("start", {"token": "a"}, "token"),
        ("start", {"token": None}, "token"),
        ("progress", {"percent": 101}, "percent"),
        ("progress", {}, "percent"),
        ("progress", {"percent": 1, "checkpoint": []}, "checkpoint"),
        ("progress", {"percent": 1, "checkpoint": {"a": "\x00"}}, "checkpoint"),
        ("progress", {"percent": 1, "message": "m" * 2001}, "message"),
        ("complete", {}, "result"),
        ("complete", {"result": None}, "result"),
        ("complete", {"result": [1]}, "result"),
        ("complete", {"result": {"a": "\x00"}}, "result"),
        ("complete", {"result": {}, "usage": {"wall_seconds": -1}}, "usage.wall_seconds"),
        ("complete", {"result": {}, "next": {}}, "next.request_id"),
        ("complete", {"result": {}, "done": True}, "done"),
        ("fail", {}, "error"),
        ("fail", {"error": {"code": "", "message": "m"}}, "error.code"),
        ("fail", {"error": {"code": "c", "message": "a\x00"}}, "error.message"),
        ("release", {"reason": "\x00"}, "reason"),
        ("release", {"reason": 3}, "reason"),
    ],
)
@pytest.mark.usefixtures("unchanged")
async def test_a_call_on_a_lease_with_a_value_that_is_not_allowed(
    worker: Worker, lease: Any, verb: str, fields: dict[str, Any], field: str
) -> None:
    _is_problem(await worker.on_lease(lease, verb, **fields), 422, "invalid_request", field)


@pytest.mark.parametrize("number", ["NaN", "Infinity", "-Infinity", "1e999"])
@pytest.mark.usefixtures("unchanged")
async def test_numbers_that_are_none_are_no_result(service: Service, worker: Worker, lease: Any, number: str) -> None:
    body = f'{{"token": {lease["token"]}, "result": {{"elo": [{number}]}}}}'
    answer = await service.ask("POST", f"/leases/{lease['task_id']}/complete", key=worker.key, content=body)
    _is_problem(answer, 422, "invalid_request", "result")


@pytest.mark.usefixtures("unchanged")
async def test_a_path_of_a_lean_route_must_hold_an_identifier(worker: Worker) -> None:
    _is_problem(await worker.ask("/leases/nonsense/start", {"token": 1}), 422, "invalid_request", "task_id")
    beat = await worker.ask("/workers/nonsense/heartbeat", {"state": "ready"})
    _is_problem(beat, 422, "invalid_request", "worker_id")


@pytest.mark.usefixtures("unchanged")
async def test_what_is_too_large(service: Service, worker: Worker, lease: Any) -> None:
    large = {"text": "x" * (1 << 20)}
    _is_problem(await service.ask("POST", "/tasks", _general(payload=large)), 413, "payload_too_large")
    batch = {"tasks": [_general(), _general(payload=large)]}
    _is_problem(await service.ask("POST", "/tasks/batch", batch), 413, "payload_too_large")
    _is_problem(await worker.on_lease(lease, "complete", result=large), 413, "payload_too_large")
    _is_problem(await worker.on_lease(lease, "progress", percent=1, checkpoint=large), 413, "payload_too_large")
    error = {"code": "c", "message": "m", "detail": large}
    _is_problem(await worker.on_lease(lease, "fail", error=error), 413, "payload_too_large")


@pytest.mark.usefixtures("unchanged")
async def test_size_is_counted_in_bytes(service: Service) -> None:
    umlauts = {"t": "ü" * (1 << 19)}
    _is_problem(await service.ask("POST", "/tasks", _general(payload=umlauts)), 413, "payload_too_large")


async def _pieces(count: int, size: int = 1 << 20) -> AsyncIterator[bytes]:
    for _ in range(count):
        yield b" " * size


@pytest.mark.parametrize("path", ["/tasks", "/tasks/batch", "/lease"])
@pytest.mark.usefixtures("unchanged")
async def test_a_body_that_is_too_large(service: Service, worker: Worker, path: str) -> None:
    key = worker.key if path == "/lease" else service.keys[Role.ADMIN]
    announced = {"Content-Type": "application/json", "Content-Length": str(33 << 20)}
    answer = await service.ask("POST", path, key=key, content=_pieces(1), headers=announced)
    _is_problem(answer, 413, "body_too_large")
    # Chunked: its length is known only once it has come.
    headers = {"Content-Type": "application/json"}
    _is_problem(await service.ask("POST", path, key=key, content=_pieces(33), headers=headers), 413, "body_too_large")


@pytest.mark.usefixtures("unchanged")
async def test_the_token_of_another_task_opens_nothing(service: Service, worker: Worker, lease: Any) -> None:
    for token in (lease["token"] + 1, 2**63 - 1):
        for verb, fields in _CALLS.items():
            answer = await worker.on_lease(lease | {"token": token}, verb, **fields)
            _is_problem(answer, 404, "lease_not_found")


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
    before = await _everything(database)
    _is_problem(await other.on_lease(lease, verb, **_CALLS[verb]), 404, "lease_not_found")
    nothing = {"task_id": str(uuid4()), "token": 1}
    _is_problem(await other.on_lease(nothing, verb, **_CALLS[verb]), 404, "lease_not_found")
    assert await _everything(database) == before


@pytest.mark.parametrize("verb", _CALLS)
async def test_an_expired_lease_changes_nothing(worker: Worker, lease: Any, database: Database, verb: str) -> None:
    await execute(database, "UPDATE tasks SET lease_expires_at = now() - interval '1 s'")
    before = await _everything(database)
    answer = await worker.on_lease(lease, verb, **_CALLS[verb])
    assert _is_problem(answer, 409, "lease_expired")["reason"] == "expired"
    assert await _everything(database) == before


@pytest.mark.parametrize("verb", _CALLS)
async def test_a_cancelled_task_changes_no_more(
    service: Service, worker: Worker, lease: Any, database: Database, verb: str
) -> None:
    await service.post(f"/tasks/{lease['task_id']}/cancel", {"reason": "enough"})
    before = await _everything(database)
    _is_problem(await worker.on_lease(lease, verb, **_CALLS[verb]), 409, "task_cancelled")
    assert await _everything(database) == before


async def test_a_lease_that_was_given_back_and_leased_again_is_superseded(
    service: Service, worker: Worker, lease: Any, database: Database
) -> None:
    assert (await worker.on_lease(lease, "release")).status_code == 200
    assert (await (await service.worker()).lease())["task_id"] == lease["task_id"]
    before = await _everything(database)
    for verb in ("start", "progress", "complete"):
        _is_problem(await worker.on_lease(lease, verb, **_CALLS[verb]), 409, "lease_superseded")
    assert await _everything(database) == before


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
        ("PATCH", f"/tasks/{uuid4()}", 405, "method_not_allowed"),
        ("POST", "/events", 405, "method_not_allowed"),
        ("POST", "/livez", 405, "method_not_allowed"),
    ],
)
@pytest.mark.usefixtures("unchanged")
async def test_there_is_nothing_here(service: Service, method: str, path: str, status: int, code: str) -> None:
    body = None if method in ("GET", "DELETE") else {}
    answer = await service.ask(method, path, body)
    _is_problem(answer, status, code)
    if status == 405:
        assert answer.headers["allow"]


@pytest.mark.usefixtures("unchanged")
async def test_the_catalogue_lists_every_code_once_with_its_status(service: Service) -> None:
    problems = (await service.get("/problems"))["problems"]
    codes = [problem["code"] for problem in problems]
    assert len(codes) == len(set(codes))
    assert {"lease_expired", "body_too_large", "invalid_request", "shutting_down"} <= set(codes)


async def test_registering_with_values_that_are_not_allowed(service: Service, database: Database) -> None:
    cases: dict[str, Any] = {
        "name": "",
        "host": "a\x00",
        "pid": 0,
        "capabilities": [],
        "capabilities.0": ["poetry"],
        "memory_gb": 0,
        "cpu_cores": -1,
        "launch_token": "x",
        "colour": "red",
    }
    for field, wrong in cases.items():
        said = registration(**{field.partition(".")[0]: wrong})
        _is_problem(await service.ask("POST", "/workers", said), 422, "invalid_request", field)
    assert await value(database, "SELECT count(*) FROM workers") == 0
