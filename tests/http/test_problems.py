"""Whatever is wrong with a request, the answer is a problem with a stable code, and nothing has changed."""

import asyncio
from collections.abc import AsyncIterator, Iterator
from typing import Any

import pytest

from app.db.database import Database
from app.http import problems
from app.kernel.access import Role
from app.kernel.errors import ConvenerError
from tests.support.problems import is_problem
from tests.support.service import Service, Worker, registration
from tests.support.sql import value

_NESTED = "[" * 3000 + "]" * 3000
_TASK = '{"agent_type": "generation", "payload": {"x": %s}}'


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
    is_problem(answer, status, code, field)


@pytest.mark.parametrize(
    ("fields", "sentence"),
    [
        ({"priority": "urgent"}, "priority: must be 'low', 'medium', 'high' or 'critical'"),
        ({"prio": "high"}, "prio: there is no such field"),
        ({"timeout_seconds": -1}, "timeout_seconds: must be 1 or more"),
        ({"timeout_seconds": "soon"}, "timeout_seconds: must be a number"),
        ({"deadline": "2026-01-01T00:00:00"}, "deadline: must be a time like 2026-11-24T12:00:00Z"),
        ({"labels": ["kepler"]}, "labels: must be a JSON object"),
        ({"labels": {"run": 1}}, "labels.run: must be text"),
        ({"labels": {"run": "x" * 201}}, "labels.run: must have at most 200 characters"),
        ({"depends_on": "kepler"}, "depends_on: must be a list"),
        ({"depends_on": ["kepler"]}, "depends_on.0: must be a UUID"),
        ({"agent_type": None}, "agent_type: must be the name of an agent type"),
    ],
)
async def test_usual_mistakes_are_told_with_what_is_right(
    service: Service, fields: dict[str, Any], sentence: str
) -> None:
    answer = await service.ask("POST", "/tasks", {"agent_type": "generation", **fields})
    assert (answer.status_code, answer.json()["detail"]) == (422, sentence)


async def test_so_are_those_of_queries_and_of_what_is_left_out(service: Service) -> None:
    asked = [await service.ask("GET", path) for path in ("/tasks/kepler", "/events?limit=501", "/tasks?after=x")]
    asked += [await service.ask("POST", "/tasks", {}), await service.ask("POST", "/goals", {"objective": ""})]
    assert [answer.json()["detail"] for answer in asked] == [
        "task_id: must be a UUID",
        "limit: must be 500 or less",
        "after: must be a whole number",
        "agent_type: is missing",
        "objective: must not be shorter than 1",
    ]


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
        ({"timeout_seconds": "60"}, "timeout_seconds"),
        ({"timeout_seconds": True}, "timeout_seconds"),
        ({"deadline": "tomorrow"}, "deadline"),
        ({"deadline": 1_800_000_000}, "deadline"),
        ({"deadline": "1800000000"}, "deadline"),
        ({"deadline": "0001-01-01T00:00:00Z"}, "deadline"),
        ({"run_at": "9999-12-31T23:59:59.999999Z"}, "run_at"),
        ({"run_at": "2030-01-01T00:00:00"}, "run_at"),
        ({"retry": {"max_attempts": 0}}, "retry.max_attempts"),
        ({"retry": {"max_attempts": 1.5}}, "retry.max_attempts"),
        ({"retry": {"max_attempts": True}}, "retry.max_attempts"),
        ({"retry": {"max_attempts": "3"}}, "retry.max_attempts"),
        ({"retry": {"delays_seconds": [-1]}}, "retry.delays_seconds.0"),
        ({"goal_id": "g" * 201}, "goal_id"),
        ({"goal_id": ""}, "goal_id"),
    ],
)
@pytest.mark.usefixtures("unchanged")
async def test_a_task_with_a_value_that_is_not_allowed(service: Service, fields: dict[str, Any], field: str) -> None:
    is_problem(await service.ask("POST", "/tasks", _general(**fields)), 422, "invalid_request", field)
    batch = {"tasks": [_general(), _general(**fields)]}
    is_problem(await service.ask("POST", "/tasks/batch", batch), 422, "invalid_request", f"tasks.1.{field}")


@pytest.mark.parametrize("path", ["/tasks", "/tasks/batch", "/goals"])
@pytest.mark.parametrize(
    ("body", "media_type"),
    [
        ('{"objective": "x"}', "application/x-www-form-urlencoded"),
        ('[{"agent_type": "generation"}]', "application/json"),
        ("[]", "application/json"),
        ('"x"', "application/json"),
    ],
)
@pytest.mark.usefixtures("unchanged")
async def test_a_body_that_is_no_json_object_says_what_to_send(
    service: Service, path: str, body: str, media_type: str
) -> None:
    answer = await service.ask("POST", path, content=body, headers={"Content-Type": media_type})
    is_problem(answer, 422, "invalid_request", "body")
    assert (
        answer.json()["detail"] == "body: must be a JSON object, sent with the header `Content-Type: application/json`"
    )


@pytest.mark.usefixtures("unchanged")
async def test_a_batch_must_have_one_to_a_thousand_tasks(service: Service) -> None:
    for tasks in ([], [_general()] * 1001):
        is_problem(await service.ask("POST", "/tasks/batch", {"tasks": tasks}), 422, "invalid_request", "tasks")


@pytest.mark.parametrize(
    ("path", "query", "field"),
    [
        ("/tasks", {"limit": "0"}, "limit"),
        ("/tasks", {"limit": "501"}, "limit"),
        ("/tasks", {"limit": "x"}, "limit"),
        ("/tasks", {"after": "-1"}, "after"),
        ("/tasks", {"state": "lost"}, "state.0"),
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
        is_problem(await service.ask("GET", path, params=query), 422, "invalid_request", field)


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


@pytest.mark.usefixtures("unchanged")
async def test_what_is_too_large(service: Service, worker: Worker, lease: Any) -> None:
    large = {"text": "x" * (1 << 20)}
    is_problem(await service.ask("POST", "/tasks", _general(payload=large)), 413, "payload_too_large")
    batch = {"tasks": [_general(), _general(payload=large)]}
    is_problem(await service.ask("POST", "/tasks/batch", batch), 413, "payload_too_large")
    problem = is_problem(await worker.on_lease(lease, "complete", result=large), 413, "payload_too_large")
    assert problem["detail"] == "the result has 1048587 bytes; CONVENER_MAX_PAYLOAD_BYTES allows 1048576 here"
    is_problem(await worker.on_lease(lease, "progress", percent=1, checkpoint=large), 413, "payload_too_large")


@pytest.mark.usefixtures("unchanged")
async def test_size_is_counted_in_bytes(service: Service) -> None:
    umlauts = {"t": "ü" * (1 << 19)}
    is_problem(await service.ask("POST", "/tasks", _general(payload=umlauts)), 413, "payload_too_large")


async def _pieces(count: int) -> AsyncIterator[bytes]:
    for _ in range(count):
        yield b" " * (1 << 20)


@pytest.mark.parametrize("path", ["/tasks", "/tasks/batch", "/lease"])
@pytest.mark.usefixtures("unchanged")
async def test_a_body_that_is_too_large(service: Service, worker: Worker, path: str) -> None:
    key = worker.key if path == "/lease" else service.keys[Role.ADMIN]
    announced = {"Content-Type": "application/json", "Content-Length": str(33 << 20)}
    answer = await service.ask("POST", path, key=key, content=_pieces(1), headers=announced)
    is_problem(answer, 413, "body_too_large")
    # Chunked: its length is known only once it has come.
    headers = {"Content-Type": "application/json"}
    is_problem(await service.ask("POST", path, key=key, content=_pieces(33), headers=headers), 413, "body_too_large")


async def test_registering_with_values_that_are_not_allowed(service: Service, database: Database) -> None:
    cases: dict[str, Any] = {
        "name": "",
        "host": "a\x00",
        "pid": 0,
        "capabilities": [],
        "capabilities.0": ["poetry"],
        "memory_gb": 0,
        "cpu_cores": -1,
        "colour": "red",
    }
    for field, wrong in cases.items():
        said = registration(**{field.partition(".")[0]: wrong})
        is_problem(await service.ask("POST", "/workers", said, key=Role.POOL), 422, "invalid_request", field)
    assert await value(database, "SELECT count(*) FROM workers") == 0


def _below(kind: type[ConvenerError]) -> Iterator[type[ConvenerError]]:
    for error in kind.__subclasses__():
        yield error
        yield from _below(error)


def test_each_error_of_a_request_has_a_code() -> None:
    """Only the kinds, which nothing raises, have none."""
    codeless = {error for error in _below(ConvenerError) if error.code == ConvenerError.code}
    assert codeless <= set(ConvenerError.__subclasses__())
    listed = [problem["code"] for problem in problems.catalogue()]
    assert listed.count("invalid_request") == 1
