"""Plain requests are answered past FastAPI, and nobody can tell from the answer."""

import re
from typing import Any
from uuid import uuid4

import pytest

from app import application
from app.health.service.snapshot_cache import CachePolicy, SnapshotCache
from app.http.fast_routes import PlainRoute
from app.kernel.access import Role
from tests.support.description import DESCRIPTION
from tests.support.routes import routes
from tests.support.service import Service

_TASK: dict[str, Any] = {"agent_type": "generation", "payload": {"n": 1}}
_ID = str(uuid4())
# FastAPI answers the same request with this header.
_GENERAL = {"Content-Type": "application/json; charset=utf-8"}
_TRACE = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"
_UNUSUAL: list[tuple[str, Any, dict[str, str]]] = [
    ("/tasks", _TASK, {}),
    ("/tasks", _TASK | {"agent_type": "nobody"}, {}),
    ("/tasks", _TASK | {"unknown": 1, "priority": "urgent"}, {}),
    ("/tasks", _TASK | {"id": str(uuid4()), "idempotency_key": "k"}, {}),
    ("/tasks", [], {}),
    ("/tasks", _TASK, {"Idempotency-Key": ""}),
    ("/tasks", _TASK, {"Idempotency-Key": "x" * 201}),
    ("/tasks", _TASK, {"traceparent": "x" * 201}),
    ("/tasks", _TASK, {"traceparent": _TRACE}),
    ("/tasks", _TASK | {"idempotency_key": "one"}, {"Idempotency-Key": "another"}),
    ("/tasks", _TASK | {"depends_on": [str(uuid4())]}, {}),
    ("/tasks/batch", {"tasks": [_TASK, _TASK | {"priority": 3}]}, {}),
    ("/tasks/batch", {"tasks": []}, {}),
    ("/tasks/batch", {"tasks": [_TASK, {}]}, {}),
    ("/tasks/batch", {"tasks": [_TASK | {"id": _ID}, _TASK | {"id": _ID, "priority": "low"}]}, {}),
    ("/tasks/batch", None, {}),
]


def test_submits_are_plain_and_documented() -> None:
    application_ = application.build()
    plain = [route for route in routes(application_) if isinstance(route, PlainRoute)]
    assert {route.path for route in plain} == {"/tasks", "/tasks/batch"}
    described = DESCRIPTION["paths"]
    for route in plain:
        names = {parameter["name"].lower() for parameter in described[route.path]["post"]["parameters"]}
        assert names == {"namespace", "idempotency-key", "traceparent"}
        assert "$ref" in described[route.path]["post"]["responses"]["201"]["content"]["application/json"]["schema"]


@pytest.mark.parametrize(("path", "body", "headers"), _UNUSUAL)
async def test_answers_are_those_of_fastapi(service: Service, path: str, body: Any, headers: dict[str, str]) -> None:
    plain = await service.ask("POST", path, body, key=Role.SUPERVISOR, headers=headers)
    general = await service.ask("POST", path, body, key=Role.SUPERVISOR, headers=headers | _GENERAL)
    assert _shape(plain) == _shape(general)


@pytest.mark.parametrize("key", [None, "cvn_0123456789ab_unknown", Role.POOL])
async def test_refusals_are_the_same(service: Service, key: Role | str | None) -> None:
    plain = await service.ask("POST", "/tasks", _TASK, key=key)
    assert plain.status_code in (401, 403)
    assert _shape(plain) == _shape(await service.ask("POST", "/tasks", _TASK, key=key, headers=_GENERAL))


@pytest.mark.parametrize("length", ["0", "00"])
async def test_a_body_is_required(service: Service, length: str) -> None:
    headers = {"Content-Type": "application/json", "Content-Length": length}
    answer = await service.ask("POST", "/tasks", headers=headers)
    assert (answer.status_code, answer.json()["errors"]) == (422, [{"path": "body", "message": "is missing"}])


_TYPES = [("application/json", "text/plain"), ("text/plain", "application/json")]
# Short, but dear to parse.
_HEAVY = b'{"agent_type": "generation", "payload": {"a": [' + b",".join([b"[]"] * 400_000) + b"]}}"
_BODIES = {"valid": b'{"agent_type": "generation"}', "broken": b"{", "heavy": _HEAVY}


@pytest.mark.parametrize("types", _TYPES, ids=lambda types: str(types[0]))
@pytest.mark.parametrize("body", _BODIES)
async def test_of_several_types_the_first_counts(service: Service, types: tuple[str, str], body: str) -> None:
    """For both ways, so that no body goes unweighed to the parser."""
    lines = [("Authorization", f"Bearer {service.keys[Role.SUPERVISOR]}"), *[("Content-Type", kind) for kind in types]]
    answer = await service.client.post("/tasks", content=_BODIES[body], headers=lines)
    as_json = {"valid": (201, None), "broken": (400, "malformed_request"), "heavy": (413, "body_too_complex")}
    expected = as_json[body] if types[0] == "application/json" else (422, "invalid_request")
    assert (answer.status_code, answer.json().get("code")) == expected


async def test_what_is_not_json_goes_the_general_way(service: Service) -> None:
    answer = await service.ask("POST", "/tasks", _TASK, headers={"Content-Type": "text/plain"})
    assert (answer.status_code, answer.json()["code"]) == (422, "invalid_request")


async def test_an_idempotency_key_makes_a_plain_submit_repeatable(service: Service) -> None:
    headers = {"Idempotency-Key": uuid4().hex}
    answers = [await service.ask("POST", "/tasks", _TASK, headers=headers) for _ in range(2)]
    assert [answer.status_code for answer in answers] == [201, 200]
    assert answers[0].headers["location"] == answers[1].headers["location"] == f"/tasks/{answers[0].json()['id']}"


async def test_plain_requests_are_counted(service: Service) -> None:
    async def counts() -> list[float]:
        services = service.app.state.services
        services[SnapshotCache].policy = CachePolicy(fresh_seconds=0)
        page = (await service.ask("GET", "/metrics")).text
        lines = [line for line in page.splitlines() if line.startswith("http_requests_total{") and '"/tasks"' in line]
        return [sum(float(line.split()[-1]) for line in lines if status in line) for status in ('"2xx"', '"4xx"')]

    earlier = await counts()
    await service.ask("POST", "/tasks", _TASK)
    await service.ask("POST", "/tasks", {})
    assert await counts() == [count + 1 for count in earlier]


def _shape(answer: Any) -> tuple[int, Any, set[str]]:
    """Status, body and names of headers, without the ids of new tasks."""
    text = re.sub(r"[0-9a-f]{8}-[0-9a-f-]{27}", "ID", answer.text)
    return answer.status_code, text, set(answer.headers) - {"content-length"}
