"""Numbers at the ends of what a double holds: none of them makes a later answer null, infinite or fail."""

from collections.abc import Iterator
from typing import Any
from uuid import uuid4

import httpx
import pytest
from fastapi import FastAPI
from fastapi.routing import APIRoute
from pydantic import BaseModel, TypeAdapter

from app import application
from app.db.database import Database
from app.kernel.access import Role
from tests.support.description import DESCRIPTION
from tests.support.permit_callers import list_models
from tests.support.permit_calls import acquired
from tests.support.pools import decided
from tests.support.routes import routes
from tests.support.service import Service, registration
from tests.support.sql import execute

_APP: FastAPI = application.build()
_EXTREMES = (5e-324, -5e-324, 1e-320, 1e-200, 1e-99, 1e-12, -0.0, 0.5, 1e15, 1e16, 1e150, 1.7e308, -1.7e308)
# Fields of requests that must be new each time.
_UNIQUE = {
    "/lease": "request_id",
    "/metrics/performance": "request_id",
    "/metrics/samples": "batch_id",
}
_SECTIONS = ("worker_pool", "resource_limits", "agent_weights", "test_time_compute")


def _floats(schema: Any, types: dict[str, Any], path: str = "") -> Iterator[str]:
    """Dotted names of the numbers in a body, `*` for an item of a list or map."""
    if "$ref" in schema:
        yield from _floats(types[schema["$ref"].rpartition("/")[2]], types, path)
    for part in schema.get("anyOf", ()):
        yield from _floats(part, types, path)
    if schema.get("type") == "number":
        yield path
    for name, part in schema.get("properties", {}).items():
        yield from _floats(part, types, f"{path}.{name}" if path else name)
    for part in (schema.get("items"), schema.get("additionalProperties")):
        if isinstance(part, dict):
            yield from _floats(part, types, f"{path}.*")


def _all_floats() -> set[tuple[str, str]]:
    types = DESCRIPTION["components"]["schemas"]
    return {
        (f"{method.upper()} {path}", name)
        for path, operations in DESCRIPTION["paths"].items()
        for method, operation in operations.items()
        for name in _floats(
            operation.get("requestBody", {}).get("content", {}).get("application/json", {}).get("schema", {}), types
        )
    }


# What an address needs besides.
_QUERIES = {"/metrics/series": {"name": "a"}}
_SHARES = {"generation_agent": 0.3}
_TASK = {"agent_type": "generation"}
_USAGE = {"wall_seconds": 1.0, "cpu_seconds": 1.0, "max_memory_mb": 1.0}
_LIMITS = {
    "requests_per_window": 5,
    "window_seconds": 60,
    "input_price_per_million_tokens": 1.0,
    "output_price_per_million_tokens": 1.0,
}
_CONSTRAINTS = {
    "time_limit_seconds": 60.0,
    "compute_budget_seconds": 60.0,
    "money_budget": 5.0,
    "improvement_threshold": 0.01,
}
_SCORES = {"quality": 1.0, "top_quality": 1.0}
_CACHED = {"key": "a" * 64, "answer": {}, "ttl_seconds": 5.0}
_SETTLEMENT = {
    "outcome": "success",
    "prompt_tokens": 5,
    "completion_tokens": 5,
    "cost_usd": 1.0,
    "latency_ms": 1.0,
    "retry_after_seconds": 0.0,
    "reset_requests_seconds": 0.0,
    "reset_tokens_seconds": 0.0,
}
# A body of each route that takes numbers, with every number in it; whatever changes with each call is added below.
_BODIES: dict[str, Any] = {
    "POST /tasks": _TASK | {"timeout_seconds": 60.0, "retry": {"delays_seconds": [0.0]}},
    "POST /tasks/batch": {"tasks": [_TASK | {"timeout_seconds": 60.0, "retry": {"delays_seconds": [0.0]}}]},
    "POST /goals": {"objective": "to know", "constraints": _CONSTRAINTS, "weight": 1.0},
    "POST /goals/{goal_id}/extend": {"constraints": _CONSTRAINTS},
    "POST /goals/{goal_id}/iterations": {
        "iteration": 1,
        "quality": 1.0,
        "top_quality": 1.0,
        "compute_seconds": 1.0,
        "money": 1.0,
    },
    "PUT /goals/{goal_id}/weight": {"weight": 1.0},
    "POST /workers": registration() | {"memory_gb": 1.0, "cpu_cores": 1.0},
    "POST /workers/{worker_id}/heartbeat": {"state": "ready", "cpu_percent": 5.0, "memory_mb": 5.0},
    "POST /lease": {"wait_seconds": 0.0},
    "POST /leases/{task_id}/progress": {"percent": 5.0},
    "POST /leases/{task_id}/complete": {"result": {}, "quality": 0.5, "usage": _USAGE},
    "POST /leases/{task_id}/fail": {"error": {"code": "x", "message": "y", "retryable": True}, "usage": _USAGE},
    "POST /leases/{task_id}/release": {"reason": "why", "delay_seconds": 0.0},
    "PUT /config": None,
    "PUT /weights": {"weights": _SHARES},
    "PUT /weights/override": {"weights": _SHARES, "expires_in_seconds": 5.0},
    "POST /scaling/what-if": {"wait_target_seconds": 5.0},
    "POST /metrics/performance": {"items": [{"agent_type": "generation", "quality": 0.5}]},
    "POST /metrics/samples": {"samples": [{"name": "a", "kind": "counter", "value": 1.0}]},
    "POST /llm/permits/{permit_id}/settle": _SETTLEMENT
    | {"cache": {"key": "a" * 64, "answer": {}, "ttl_seconds": 5.0}},
    "PUT /llm/budgets/{scope}/{name}": {"money_budget": 5.0},
    "PUT /llm/models/{model}": _LIMITS,
    "PUT /degradation": {"step": 1, "minutes": 5.0},
}


def _replaced(body: Any, path: list[str], value: float) -> Any:
    if not path:
        return value
    head, rest = path[0], path[1:]
    if head == "*":
        return (
            [_replaced(body[0], rest, value)]
            if isinstance(body, list)
            else {name: _replaced(part, rest, value) for name, part in body.items()}
        )
    return {**body, head: _replaced(body.get(head, {}), rest, value)}


def test_every_number_of_a_body_has_a_case() -> None:
    for route, name in _all_floats():
        assert route in _BODIES, (route, name)


@pytest.mark.slow
@pytest.mark.parametrize("route", _BODIES)
async def test_no_number_makes_an_answer_null_or_fail(service: Service, database: Database, route: str) -> None:
    await decided(database)
    caller = _Caller(service, route)
    await caller.prepare()
    accepted = 0
    for name in sorted(name for place, name in _all_floats() if place == route):
        for extreme in _EXTREMES:
            answer = await caller.send(name, extreme)
            assert answer.status_code < 500, (name, extreme, answer.text)
            accepted += answer.is_success
    assert accepted, f"no case was valid: {answer.text}"
    await caller.read_everything()


def _check(route: APIRoute, answer: httpx.Response) -> None:
    """Hold an answer against its description: an infinite number comes out as null, where a number is described."""
    assert not any(word in answer.text for word in ("Infinity", ":inf", ":nan")), (route.path, answer.text)
    model = route.response_model
    if answer.is_success and isinstance(model, type) and issubclass(model, BaseModel):
        TypeAdapter(model).validate_json(answer.content)


class _Caller:
    """Sends requests to a route that are valid but for one number, and reads what came of them."""

    def __init__(self, service: Service, route: str) -> None:
        self._service, self._name = service, route
        self._method, _, self._path = route.partition(" ")
        self._route = next(
            found
            for found in routes(_APP)
            if found.path.replace(":path", "") == self._path and self._method in (found.methods or ())
        )
        self._iteration = 0

    async def prepare(self) -> None:
        self._worker = await self._service.worker()
        self._ids = {"worker_id": self._worker.id, "agent_type": "generation", "model": "m", "number": "1"}
        self._ids |= {"version": "1", "scope": "agent", "name": "generation"}
        await self._new_goal()

    async def _new_goal(self) -> None:
        goal = await self._service.post("/goals", {"objective": "to know", "constraints": {"min_iterations": 1000}})
        self._ids["goal_id"], self._iteration = goal["id"], 0

    async def send(self, name: str, value: float) -> httpx.Response:
        """The answer to the request with this value at this place, held against its description."""
        body = _replaced(await self._body(), name.split("."), value)
        headers = {"If-Match": await self._version()} if self._method == "PUT" else {}
        answer = await self._service.ask(
            self._method, self._path.format(**self._ids), body, key=self._key(), headers=headers
        )
        _check(self._route, answer)
        await self._clean_up(body, answer)
        return answer

    def _key(self) -> Role | str:
        if self._path.startswith(("/lease", "/workers/")):
            return self._worker.key
        return Role.POOL if self._path == "/workers" else Role.ADMIN

    async def _version(self) -> str:
        address = {"/llm/models/{model}": "/llm/models/m", "/config": "/config", "/weights": "/weights"}
        answer = await self._service.ask("GET", address.get(self._path, "/weights"))
        return str(answer.headers.get("etag", '"0"'))

    async def _body(self) -> Any:
        body = await self._config() if self._path == "/config" else dict(_BODIES[self._name])
        if self._path.startswith("/lease"):
            await self._service.submitted()
        if self._path.startswith("/leases"):
            lease = await self._worker.lease()
            self._ids["task_id"], body["token"] = lease["task_id"], lease["token"]
        if self._path.startswith("/llm/permits"):
            await list_models(self._service.app.state.services.database, "m")
            permit = await acquired(self._service, model="m", cache_key="a" * 64)
            self._ids["permit_id"], body["token"] = permit["permit_id"], permit["token"]
        if "/goals/" in self._path:
            await self._new_goal()
        if name := _UNIQUE.get(self._path):
            body[name] = str(uuid4())
        return body

    async def _config(self) -> Any:
        config = await self._service.get("/config")
        return {name: config[name] for name in _SECTIONS}

    async def _clean_up(self, body: Any, answer: httpx.Response) -> None:
        """End the lease or permit of the request, where it has not."""
        if self._path.startswith("/lease"):
            held = answer.json() if self._path == "/lease" and answer.status_code == 200 else body | self._ids
            if "token" in held:
                fields = {"token": held["token"], "reason": "enough"}
                await self._worker.ask(f"/leases/{held['task_id']}/release", fields)
        if self._path.startswith("/llm/permits"):
            path = f"/llm/permits/{self._ids['permit_id']}"
            await self._service.ask("DELETE", path, params={"token": body["token"]})
            await execute(self._service.app.state.services.database, "UPDATE llm_models SET callers = '{}'")

    async def read_everything(self) -> None:
        """Read every address that can be read; the pages ask these, with a session."""
        for route in routes(_APP):
            readable = set(route.param_convertors) <= self._ids.keys() and not route.path.endswith("/stream")
            readable = readable and not route.path.startswith("/dashboard")
            if "GET" in (route.methods or ()) and readable:
                path = route.path.replace(":path", "").format(**self._ids)
                answer = await self._service.ask("GET", path, params=_QUERIES.get(route.path))
                assert answer.status_code in (200, 404, 503), (route.path, answer.text)
                _check(route, answer)
