"""Each example of the document can be sent as it is, and each problem in it is one that the service answers with."""

import re
from collections.abc import Iterator
from typing import Any

import jsonschema_rs
import pytest

from app.db.database import Database
from app.http.problems import catalogue
from app.kernel.access import SCOPES, Role, Scope
from tests.http.access_table import TABLE
from tests.support.description import DESCRIPTION
from tests.support.pools import decided
from tests.support.service import Service, Worker
from tests.support.sql import execute, value

# Of the task and of the requests in the examples.
_ID = "8f14e45f-ceea-467f-ab8a-1d2e3f4a5b6c"
_NAMES = {"agent_type": "ranking", "scope": "agent", "name": "ranking", "model": "gpt-4.1", "permit_id": _ID}
_ENTRY = {"namespace": "kepler", "key": "law"}
_ALERT = """INSERT INTO alerts (rule, subject, state, severity, summary, advice, facts, opened_at, updated_at)
    VALUES ('oldest_task', '', 'open', 'warning', 'late', '', '{}', now(), now())"""
# What an example cannot know makes the service refuse it, as the document says.
_REFUSED = {
    "renew_permit": "permit_not_found",
    "settle_permit": "permit_not_found",
    # No host of this service starts workers.
    "start_workers": "start_refused",
}
_PEOPLE = (Role.ADMIN, Role.POOL)
Operation = dict[str, Any]


def _operations() -> Iterator[tuple[str, str, Operation]]:
    for path, operations in DESCRIPTION["paths"].items():
        for method, operation in operations.items():
            yield method.upper(), path, operation


def _examples() -> Iterator[tuple[str, str, Operation, Any]]:
    """Every example of a body, with its operation."""
    for method, path, operation in _operations():
        for content in operation.get("requestBody", {"content": {}})["content"].values():
            examples = [content["example"]] if "example" in content else []
            examples += [example["value"] for example in content.get("examples", {}).values()]
            yield from ((method, path, operation, example) for example in examples)


def test_every_body_has_an_example_that_fits_its_schema() -> None:
    shown = {operation["operationId"] for _, _, operation, _ in _examples()}
    assert shown == {operation["operationId"] for _, _, operation in _operations() if "requestBody" in operation}
    for _, _, operation, body in _examples():
        [content] = operation["requestBody"]["content"].values()
        jsonschema_rs.validate({**content["schema"], "components": DESCRIPTION["components"]}, body)


def test_every_problem_is_one_of_the_service() -> None:
    real = {problem["code"]: problem for problem in catalogue()}
    for _, _, operation in _operations():
        for status, response in operation["responses"].items():
            content = response.get("content", {}).get("application/problem+json")
            if content is None:
                continue
            assert content["examples"], f"{operation['operationId']} {status}"
            for code, example in content["examples"].items():
                problem = _value(example)
                jsonschema_rs.validate({**content["schema"], "components": DESCRIPTION["components"]}, problem)
                assert problem.items() >= real[code].items()
                assert status in ("default", str(problem["status"])), operation["operationId"]
                assert status == "default" or f"`{code}`" in response["description"]


def _value(example: dict[str, Any]) -> Any:
    name = example.get("$ref", "").rpartition("/")[2]
    return (DESCRIPTION["components"]["examples"][name] if name else example)["value"]


def test_every_operation_has_a_name_of_its_own_and_a_place() -> None:
    names = [operation["operationId"] for _, _, operation in _operations()]
    assert len(set(names)) == len(names)
    # A route without an `operation_id` has one that FastAPI makes of its path.
    assert [name for name in names if not re.fullmatch("[a-z]+(_[a-z]+)+", name) or "__" in name] == []
    assert [name for name in names if name.endswith(("_get", "_post", "_put", "_patch", "_delete"))] == []
    assert {"submit_task", "submit_tasks", "lease_task"} <= set(names)
    tags = {tag["name"]: tag["description"] for tag in DESCRIPTION["tags"]}
    assert all(tags.values())
    used = [operation["tags"] for _, _, operation in _operations()]
    assert all(len(own) == 1 for own in used)
    assert {tag for own in used for tag in own} == set(tags)
    assert [server["url"] for server in DESCRIPTION["servers"]] == ["/"]


async def test_every_read_can_be_sent_with_the_defaults_that_are_filled_in(service: Service) -> None:
    await service.get("/config")
    for method, path, operation in _operations():
        parameters = [each for each in operation.get("parameters", []) if each["in"] == "query"]
        if method != "GET" or "{" in path or path == "/events/stream" or any(each["required"] for each in parameters):
            continue
        # A browser reads every number as a float.
        defaults = {each["name"]: each["schema"].get("default") for each in parameters}
        numbers = {name: float(value) for name, value in defaults.items() if type(value) is int}
        query = {name: value for name, value in defaults.items() if value is not None}
        answer = await service.ask(
            "GET", path, params=query | {name: f"{value:.0f}" for name, value in numbers.items()}
        )
        assert answer.is_success, f"{path} {query} {answer.text}"


@pytest.mark.parametrize(
    ("method", "path", "operation", "body"),
    [pytest.param(*example, id=f"{example[2]['operationId']}-{number}") for number, example in enumerate(_examples())],
)
async def test_every_example_can_be_sent_as_it_is(
    service: Service, database: Database, method: str, path: str, operation: Operation, body: Any
) -> None:
    name, needs = operation["operationId"], set(TABLE[f"{method} {path.replace('{model}', '{model:path}')}"].scopes)
    worker = await service.worker()
    # A permit for a task is for the worker that holds it.
    is_workers = Scope.LEASE in needs or "task_id" in body
    key = worker.key if is_workers else next(service.keys[role] for role in _PEOPLE if needs <= SCOPES[role])
    names = await _prepare(service, database, worker, name, path)
    headers = await _condition(service, name, path.format(**names))
    [media_type] = operation["requestBody"]["content"]
    answer = await service.ask(
        method, path.format(**names), body, key=key, headers={**headers, "Content-Type": media_type}
    )
    if name in _REFUSED:
        assert answer.json()["code"] == _REFUSED[name]
        assert _REFUSED[name] in operation["responses"][str(answer.status_code)]["description"]
    else:
        assert answer.is_success, answer.text


async def _prepare(service: Service, database: Database, worker: Worker, name: str, path: str) -> dict[str, str]:
    """Make what the example is about; the parts of its path."""
    names = _NAMES | _ENTRY
    await _prepare_ids(service, worker, name)
    if name == "try_what_if":
        await decided(database)
    if "{task_id}" in path:
        names["task_id"] = await _task(service, worker, path)
    if "{goal_id}" in path:
        names["goal_id"] = (await service.post("/goals", {"objective": "to know"}))["id"]
    if "{worker_id}" in path:
        names["worker_id"] = worker.id
    if "{key_id}" in path:
        names["key_id"] = (await service.post("/keys", {"role": "reader", "label": "x"}))["id"]
    if "{alert_id}" in path:
        await execute(database, _ALERT)
        names["alert_id"] = str(await value(database, "SELECT max(id) FROM alerts"))
    return names


async def _prepare_ids(service: Service, worker: Worker, name: str) -> None:
    """Make what examples name by an id of their own."""
    if name == "acquire_permit":
        limits = await service.ask("PUT", "/llm/models/gpt-4.1", {}, headers={"If-Match": '"0"'})
        assert limits.is_success
    if name in ("acquire_permit", "judge_results"):
        await _lease(service, worker, id=_ID, agent_type="ranking")
    if name == "judge_results":
        assert (await worker.ask(f"/leases/{_ID}/complete", {"token": 1, "result": {}})).is_success


async def _task(service: Service, worker: Worker, path: str) -> str:
    """The id of a task in the state that the path is for."""
    if path.startswith("/tasks"):
        return await service.submitted()
    task_id = await _lease(service, worker)
    if path.startswith("/dead-letters"):
        error = {"code": "timeout", "message": "late", "retryable": False}
        assert (await worker.ask(f"/leases/{task_id}/fail", {"token": 1, "error": error})).is_success
    return task_id


async def _lease(service: Service, worker: Worker, **fields: Any) -> str:
    task_id = await service.submitted(**fields)
    lease = await worker.lease()
    assert (lease["task_id"], lease["token"]) == (task_id, 1)
    return task_id


async def _condition(service: Service, name: str, address: str) -> dict[str, str]:
    """The headers by which a change says on what it builds."""
    if name == "put_context_entry":
        return {"If-None-Match": "*"}
    if name.endswith(("_config", "_mode", "_limits")):
        current = await service.ask("GET", address if name.endswith("_limits") else "/config")
        return {"If-Match": current.headers["etag"]}
    return {}
