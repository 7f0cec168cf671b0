"""Corrects the OpenAPI document: it describes the problems that are answered instead of the framework's own errors."""

import asyncio
import json
import re
from collections.abc import Callable
from typing import Any

from fastapi import FastAPI
from starlette.responses import Response
from starlette.routing import Route
from starlette.types import Receive, Scope, Send

from app.http.bodies import body_limit, declared_limit
from app.http.problems import MEDIA_TYPE, PLAIN, Problem
from app.kernel.errors import BodyTooComplex

_PROBLEM = {"$ref": "#/components/schemas/Problem"}
_OTHER_PROBLEMS = {
    "description": "Any other problem; `GET /problems` lists them all",
    "content": {MEDIA_TYPE: {"schema": _PROBLEM}},
}
_FRAMEWORK_ERROR = {"$ref": "#/components/schemas/HTTPValidationError"}


def install(app: FastAPI) -> None:
    """Describe the errors of every operation as problem details (RFC 9457), and serve the document as bytes."""
    describe = app.openapi

    # FastAPI caches the document that it returns, so correcting it in place once is enough.
    def openapi() -> dict[str, Any]:
        if app.openapi_schema is None:
            _describe_problems(describe())
        return describe()

    app.openapi = openapi  # type: ignore[method-assign]  # the place where FastAPI asks for it
    route = next(route for route in app.router.routes if getattr(route, "path", None) == app.openapi_url)
    assert isinstance(route, Route)
    route.app = DocumentPage(openapi)


class DocumentPage:
    """Answers with the document, which is made at the first request and then kept as bytes."""

    def __init__(self, describe: Callable[[], dict[str, Any]]) -> None:
        self._describe = describe
        self._lock = asyncio.Lock()
        self._page = b""

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """ASGI."""
        async with self._lock:
            # It takes seconds, in which others are served.
            self._page = self._page or await asyncio.to_thread(self._render)
        await Response(self._page, media_type="application/json")(scope, receive, send)

    def _render(self) -> bytes:
        return json.dumps(self._describe()).encode()


def _describe_problems(schema: dict[str, Any]) -> None:
    types = schema["components"]["schemas"]
    for operations in schema["paths"].values():
        for operation in operations.values():
            if "requestBody" in operation:
                _describe_limit(operation)
            _correct_responses(operation["responses"], types)
    _drop_unused_schemas(schema)


def _describe_limit(operation: dict[str, Any]) -> None:
    operation.update(body_limit(declared_limit(operation)))
    code, title = PLAIN[413]
    response = operation["responses"].setdefault("413", {"content": {MEDIA_TYPE: {"schema": _PROBLEM}}})
    descriptions = [f"`{code}`: {title}.", f"`{BodyTooComplex.code}`: {BodyTooComplex.title()}."]
    response["description"] = " ".join([*descriptions, response.get("description", "")]).strip()


def _correct_responses(responses: dict[str, Any], types: dict[str, Any]) -> None:
    for status, response in responses.items():
        if status.isdigit() and int(status) >= 400:
            schema: Any = response.get("content", {}).get("application/json", {}).get("schema", _PROBLEM)
            schema = _PROBLEM if schema == _FRAMEWORK_ERROR else schema
            choices: list[Any] = [*schema.get("anyOf", [schema])]
            if all(_is_problem(types[choice["$ref"].rpartition("/")[2]]) for choice in choices):
                response["content"] = {MEDIA_TYPE: {"schema": schema}}
    if "422" in responses:
        responses["422"]["description"] = _describe_422(responses["422"]["description"])
    responses["default"] = _OTHER_PROBLEMS


def _is_problem(kind: dict[str, Any]) -> bool:
    """Whether a schema has all members of a problem; the health report, which also comes with 503, has not."""
    return set(Problem.model_fields) <= set(kind["properties"])


def _drop_unused_schemas(schema: dict[str, Any]) -> None:
    """Drop schemas that nothing refers to any more, such as those of the framework's own errors."""
    types = schema["components"]["schemas"]
    # Repeated, because a dropped schema may have held the last reference to another.
    while unused_names := types.keys() - set(re.findall(r'"#/components/schemas/([^"]+)"', json.dumps(schema))):
        for name in unused_names:
            del types[name]


def _describe_422(description: str) -> str:
    """Description of 422: the problem that every route may have, and the route's own description."""
    code, title = PLAIN[422]
    own_words = "" if description == "Validation Error" else f" {description}"
    return f"`{code}`: {title}.{own_words}"
