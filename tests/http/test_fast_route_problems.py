"""The problems of lean routes, which read their bodies with another parser, are those of all others."""

from typing import Any
from uuid import uuid4

import pytest

from tests.support.problems import is_problem
from tests.support.service import Service, Worker

_NESTED = "[" * 3000 + "]" * 3000
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
    is_problem(answer, status, code, field)


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
        ("complete", {"result": {}, "quality": 1.1}, "quality"),
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
    is_problem(await worker.on_lease(lease, verb, **fields), 422, "invalid_request", field)


@pytest.mark.parametrize("number", ["NaN", "Infinity", "-Infinity", "1e999"])
@pytest.mark.usefixtures("unchanged")
async def test_numbers_that_are_none_are_no_result(service: Service, worker: Worker, lease: Any, number: str) -> None:
    body = f'{{"token": {lease["token"]}, "result": {{"elo": [{number}]}}}}'
    answer = await service.ask("POST", f"/leases/{lease['task_id']}/complete", key=worker.key, content=body)
    is_problem(answer, 422, "invalid_request", "result")


@pytest.mark.usefixtures("unchanged")
async def test_a_path_of_a_lean_route_must_hold_an_identifier(worker: Worker) -> None:
    is_problem(await worker.ask("/leases/nonsense/start", {"token": 1}), 422, "invalid_request", "task_id")
    beat = await worker.ask("/workers/nonsense/heartbeat", {"state": "ready"})
    is_problem(beat, 422, "invalid_request", "worker_id")
