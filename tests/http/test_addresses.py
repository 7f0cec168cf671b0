"""Every address answers to its own methods, and tells of them where another one is tried."""

import re
from uuid import uuid4

import pytest

from app import application
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


async def test_an_address_with_very_many_parameters_is_refused_before_they_are_read(service: Service) -> None:
    is_problem(await service.ask("GET", "/events?" + "&".join(["kind=x"] * 501)), 400, "malformed_request")
    assert (await service.ask("GET", "/tasks?" + "&".join(["label=a:b"] * 30))).status_code != 400
