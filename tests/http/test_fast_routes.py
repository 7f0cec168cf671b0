"""Lean routes leave FastAPI's general path, but nothing that a caller could notice."""

from typing import Any

import pytest
from pydantic import BaseModel

from app import application
from app.admin.service.keyring import Keyring
from app.http.fast_routes import LeanRoute
from app.http.guard import requires
from app.http.refusals import Refusals
from app.kernel.access import Role, Scope
from app.workers.service.workers import Heartbeats
from tests.support import exchanges
from tests.support.description import DESCRIPTION
from tests.support.routes import routes
from tests.support.service import Service

_APP = application.build()
_LEAN = [route for route in routes(_APP) if isinstance(route, LeanRoute)]
_NAMES = [route.path for route in _LEAN]


def _described(route: LeanRoute) -> dict[str, Any]:
    (method,) = route.methods or {"NONE"}
    described: dict[str, Any] = DESCRIPTION["paths"][route.path][method.lower()]
    return described


def _fields(schema: dict[str, Any]) -> set[str]:
    name = schema["$ref"].rpartition("/")[2]
    return set(DESCRIPTION["components"]["schemas"][name]["properties"])


def test_the_hot_calls_are_lean() -> None:
    calls = {f"/leases/{{task_id}}/{verb}" for verb in ("start", "progress", "complete", "fail", "release")}
    assert {route.path for route in _LEAN} == calls | {"/lease", "/leases/exchange", "/workers/{worker_id}/heartbeat"}


@pytest.mark.parametrize("route", _LEAN, ids=_NAMES)
def test_a_lean_route_is_documented_like_any_other(route: LeanRoute) -> None:
    described = _described(route)
    assert described["security"] == [{"key": []}]
    assert described["summary"]
    assert described["tags"]
    body = described["requestBody"]["content"]["application/json"]["schema"]
    (answer,) = described["responses"]["200"]["content"].values()
    assert _fields(body)
    assert _fields(answer["schema"])
    errors = {status for status in described["responses"] if status >= "400"}
    assert {"404", "409"} & errors or "403" in errors


@pytest.mark.parametrize("route", _LEAN, ids=_NAMES)
def test_identifiers_in_the_path_are_documented(route: LeanRoute) -> None:
    names = {parameter["name"] for parameter in _described(route).get("parameters", [])}
    assert names == set(route.param_convertors)


def test_a_lean_route_without_a_scope_is_a_mistake_at_start() -> None:
    class Nothing(BaseModel):
        pass

    async def endpoint(call: Nothing) -> None: ...

    with pytest.raises(TypeError, match="does not declare what it needs"):
        LeanRoute("/x", endpoint, methods=["POST"])
    LeanRoute("/x", endpoint, methods=["POST"], dependencies=[requires(Scope.LEASE)])


async def _answers(service: Service) -> dict[str, dict[str, Any]]:
    """Everything that lean routes answer with 200."""
    worker = await service.worker()
    beat = await worker.beat()
    answers = {"/workers/{worker_id}/heartbeat": beat}
    answers[exchanges.PATH] = (await worker.ask(exchanges.PATH, {"items": [exchanges.ask(worker)]})).json()
    for verb, fields in _CALLS.items():
        await service.submitted(payload={"a": 1}, labels={"l": "m"}, goal_id="g", trace_context="00-a-b-01")
        lease = await worker.lease(acknowledge=False)
        answers["/lease"] = lease
        answer = await worker.on_lease(lease, verb, **fields)
        assert answer.status_code == 200, answer.text
        answers[f"/leases/{{task_id}}/{verb}"] = answer.json()
        await worker.on_lease(lease, "complete", result={})
    return answers


_CALLS: dict[str, dict[str, Any]] = {
    "start": {},
    "progress": {"percent": 50, "message": "half", "checkpoint": {"step": 1}},
    "complete": {"result": {}},
    "release": {},
    "fail": {"error": {"code": "c", "message": "m", "retryable": False}},
}


async def test_answers_are_what_the_documentation_says(service: Service) -> None:
    """Lean endpoints write their bytes themselves, so that nothing but this holds them to their response model."""
    answers = await _answers(service)
    for route in _LEAN:
        model = route.response_model
        answer = answers[route.path]
        model.model_validate(answer)
        assert set(answer) == set(model.model_fields), route.path


async def test_a_lean_route_reports_the_unexpected_as_a_problem(
    service: Service, monkeypatch: pytest.MonkeyPatch
) -> None:
    worker = await service.worker()

    async def stumble(*_: object) -> None:
        raise RuntimeError("a secret of ours")

    monkeypatch.setattr(service.app.state.services[Heartbeats], "report", stumble)
    answer = await worker.ask(f"/workers/{worker.id}/heartbeat", {"state": "ready"})
    assert (answer.status_code, answer.json()["code"]) == (500, "internal_error")
    assert answer.headers["content-type"] == "application/problem+json"
    assert "secret" not in answer.text


@pytest.mark.parametrize(("method", "path"), [("POST", "/tasks"), ("POST", "/leases/exchange"), ("GET", "/tasks")])
async def test_the_line_about_the_unexpected_names_the_trace_of_its_request(
    service: Service, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, method: str, path: str
) -> None:
    def stumble(*_: object) -> None:
        raise RuntimeError

    for name in ("recognise", "remembered"):
        monkeypatch.setattr(service.app.state.services[Keyring], name, stumble)
    await service.ask(method, path, headers={"traceparent": f"00-{'1' * 32}-{'2' * 16}-01"})
    (record,) = [record for record in caplog.records if record.message == "unexpected error"]
    assert vars(record)["fields"] == {"trace_id": "1" * 32, "span_id": "2" * 16}


async def test_access_is_checked_before_the_body_is_read(service: Service) -> None:
    answer = await service.ask("POST", "/lease", key=None, content="{")
    assert answer.status_code == 401
    assert (await service.ask("POST", "/lease", key=Role.READER, content="{")).status_code == 403


@pytest.mark.parametrize("role", [Role.READER, Role.SUPERVISOR])
async def test_a_service_that_stops_says_so_to_all_and_counts_nobody(
    service: Service, role: Role, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also to a key that it remembers, whatever that may do."""
    assert (await service.ask("POST", "/lease", {}, key=role)).status_code == 403
    refusals = service.app.state.services[Refusals]
    before = dict(refusals.totals)
    # Only for now, as nothing that believes to be stopped would end with the test.
    monkeypatch.setattr(service.app.state.services, "stopping", True)
    for path in ("/lease", "/tasks"):
        answer = await service.ask("POST", path, {}, key=role)
        assert (answer.status_code, answer.json()["code"]) == (503, "shutting_down")
    assert dict(refusals.totals) == before
