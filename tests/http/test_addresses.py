"""Every address answers to its own methods, and tells of them where another one is tried."""

import re
from uuid import uuid4

import pytest

from app import application
from app.kernel.access import Role
from tests.support.problems import is_problem
from tests.support.routes import routes
from tests.support.service import Service

_METHODS = ("DELETE", "GET", "HEAD", "OPTIONS", "PATCH", "POST", "PUT", "TRACE")


_ROUTES = routes(application.build())


def _methods_of(address: str) -> set[str]:
    """Those of the routes of a fixed address; else of all that take it, as a name of a model may end like another."""
    exact = [route for route in _ROUTES if route.path == address]
    matching = exact or [route for route in _ROUTES if route.path_regex.match(address)]
    return set().union(*(route.methods or set() for route in matching))


@pytest.mark.parametrize("path", dict.fromkeys(route.path for route in _ROUTES))
async def test_other_methods_are_refused_and_those_that_there_are_are_told(service: Service, path: str) -> None:
    address = re.sub("{[a-z_]+(:path)?}", str(uuid4()), path)
    own_methods = _methods_of(address)
    for method in set(_METHODS) - own_methods:
        answer = await service.ask(method, address)
        if method != "HEAD":
            is_problem(answer, 405, "method_not_allowed")
        assert answer.status_code == 405
        assert answer.headers["allow"] == ", ".join(sorted(own_methods)), method


async def test_an_address_that_is_not_utf_8_is_refused(service: Service) -> None:
    for method, path in (("PUT", "/goals/%ff/weight"), ("GET", "/goals/%ff/weight"), ("PUT", "/goals/a%C3/weight")):
        is_problem(await service.ask(method, path, {"weight": 5}), 400, "malformed_request")
    # The character that stands for what cannot be read is one like others where somebody writes it.
    for goal in ("%EF%BF%BD", "%C3%A4"):
        assert (await service.get(f"/goals/{goal}/weight"))["weight"] == 1
        assert (await service.ask("PUT", f"/goals/{goal}/weight", {"weight": 5})).status_code == 200


async def test_nor_is_one_of_a_hot_call(service: Service) -> None:
    worker = await service.worker()
    for path in ("/leases/%ff/start", "/leases/a%C3/complete", "/workers/%ff/heartbeat"):
        is_problem(await worker.ask(path, {}), 400, "malformed_request")
    # The answer to any other id that is none.
    is_problem(await worker.ask("/leases/%EF%BF%BD/start", {"token": 1}), 422, "invalid_request")


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("POST", "/lease"),
        ("POST", "/workers/{worker}/heartbeat"),
        ("POST", "/tasks"),
        ("GET", "/tasks"),
        ("GET", "/goals/{worker}/weight"),
        ("GET", "/llm/models/x"),
        ("GET", "/livez"),
        ("GET", "/docs"),
        ("GET", "/metrics"),
        ("GET", "/dashboard"),
    ],
)
async def test_an_address_ends_where_it_ends(service: Service, method: str, path: str) -> None:
    """One more line end makes it another address, which there is not: nothing is leased or submitted there."""
    worker = await service.worker()
    await service.submitted()
    key = worker.key if method == "POST" and path != "/tasks" else Role.ADMIN
    for ending in ("%0A", "%0D%0A", "%0A%0A"):
        answer = await service.ask(method, path.format(worker=worker.id) + ending, {"agent_type": "ranking"}, key=key)
        is_problem(answer, 404, "not_found")
        assert len(answer.headers.get_list("x-content-type-options")) == 1
    assert len((await service.get("/tasks"))["items"]) == 1
    assert (await worker.lease())["token"]


async def test_an_id_may_end_in_a_line_end(service: Service) -> None:
    await service.post("/goals", {"id": "a\n", "objective": "what moves the planets?"})
    assert (await service.get("/goals/a%0A"))["id"] == "a\n"
    assert (await service.get("/goals/a%0A/weight"))["weight"] == 1
    is_problem(await service.ask("GET", "/goals/a"), 404, "goal_not_found")


async def test_an_address_with_very_many_parameters_is_refused_before_they_are_read(service: Service) -> None:
    is_problem(await service.ask("GET", "/events?" + "&".join(["kind=x"] * 501)), 400, "malformed_request")
    assert (await service.ask("GET", "/tasks?" + "&".join(["label=a:b"] * 30))).status_code != 400
