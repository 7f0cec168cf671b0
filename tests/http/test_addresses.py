"""Every address answers to its own methods, and tells of them where another one is tried."""

import re
from collections import defaultdict
from uuid import uuid4

import pytest
from fastapi.routing import APIRoute

from app import application
from tests.support.problems import is_problem
from tests.support.routes import routes
from tests.support.service import Service

_METHODS = ("DELETE", "GET", "HEAD", "OPTIONS", "PATCH", "POST", "PUT", "TRACE")


def _by_address(found: list[APIRoute]) -> dict[str, set[str]]:
    methods: dict[str, set[str]] = defaultdict(set)
    for route in found:
        methods[route.path] |= route.methods or set()
    return methods


_ADDRESSES = _by_address(routes(application.build()))


@pytest.mark.parametrize("path", _ADDRESSES)
async def test_other_methods_are_refused_and_those_that_there_are_are_told(service: Service, path: str) -> None:
    address = re.sub("{[a-z_]+}", str(uuid4()), path)
    for method in set(_METHODS) - _ADDRESSES[path]:
        answer = await service.ask(method, address)
        if method != "HEAD":
            is_problem(answer, 405, "method_not_allowed")
        assert answer.status_code == 405
        assert answer.headers["allow"] == ", ".join(sorted(_ADDRESSES[path])), method


async def test_an_address_that_is_not_utf_8_is_refused(service: Service) -> None:
    for method, path in (("PUT", "/goals/%ff/weight"), ("GET", "/goals/%ff/weight"), ("PUT", "/goals/a%C3/weight")):
        is_problem(await service.ask(method, path, {"weight": 5}), 400, "malformed_request")
    # The character that stands for what cannot be read is one like others where somebody writes it.
    for goal in ("%EF%BF%BD", "%C3%A4"):
        assert (await service.get(f"/goals/{goal}/weight"))["weight"] == 1
        assert (await service.ask("PUT", f"/goals/{goal}/weight", {"weight": 5})).status_code == 200
