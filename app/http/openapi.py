"""Corrects the OpenAPI document: it describes the problems that are answered instead of the framework's own errors."""

import asyncio
import json
import re
from collections.abc import Callable, Iterable
from typing import Any

from fastapi import FastAPI
from starlette.responses import Response
from starlette.routing import Route
from starlette.types import Receive, Scope, Send

from app.http.bodies import body_limit, declared_limit
from app.http.problems import CODES, MEDIA_TYPE, PLAIN, Problem, catalogue
from app.kernel.errors import BodyTooComplex, DatabaseUnavailable, Forbidden, TooManyRequests, Unauthenticated

_PROBLEM = {"$ref": "#/components/schemas/Problem"}
# Of the numbers of JavaScript.
_LARGEST_EXACT = 2**53 - 1
# Those of every route, and those of routes that need a key.
_ANYWHERE = (PLAIN[500][0], DatabaseUnavailable.code)
_WITH_KEY = (Unauthenticated.code, Forbidden.code, TooManyRequests.code)
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
                _show_examples(operation["requestBody"], types)
            _drop_large_defaults(operation)
            _correct_responses(operation["responses"], types)
            # Said also of those that need no key, where it could as well be forgotten.
            operation.setdefault("security", [])
            codes = (*_WITH_KEY, *_ANYWHERE) if operation["security"] else _ANYWHERE
            operation["responses"]["default"] = {
                "description": "Any other problem; `GET /problems` lists them all",
                "content": {MEDIA_TYPE: {"schema": _PROBLEM, "examples": _references(codes)}},
            }
    for kind in types.values():
        for example in kind.get("examples", ()):
            _restore_nulls(example, kind, types)
    schema["components"]["examples"] = {problem["code"]: _example(problem) for problem in catalogue()}
    _drop_unused(schema, "schemas")
    _drop_unused(schema, "examples")


def _drop_large_defaults(operation: dict[str, Any]) -> None:
    """Leave out defaults that a browser rounds: it would fill them in, and send what is not allowed."""
    for parameter in operation.get("parameters", ()):
        default = parameter["schema"].get("default")
        if isinstance(default, int) and abs(default) > _LARGEST_EXACT:
            del parameter["schema"]["default"]


def _restore_nulls(example: Any, kind: Any, types: dict[str, Any]) -> None:
    """Put back what the framework leaves out of examples: required fields whose value is null."""
    # What may hold anything is no dictionary.
    if not (isinstance(example, dict) and isinstance(kind, dict)):
        return
    kind = types[kind["$ref"].rpartition("/")[2]] if "$ref" in kind else kind
    for name in kind.get("required", ()):
        if {"type": "null"} in kind["properties"][name].get("anyOf", ()):
            example.setdefault(name, None)
    for name, value in example.items():
        _restore_nulls(value, kind.get("properties", {}).get(name, kind.get("additionalProperties", {})), types)


def _show_examples(body: dict[str, Any], types: dict[str, Any]) -> None:
    """Show the examples of a model at the body as well: Swagger UI offers each of several only there."""
    for content in body["content"].values():
        for choice in content["schema"].get("anyOf", [content["schema"]]):
            kind = types[choice["$ref"].rpartition("/")[2]] if "$ref" in choice else choice
            examples = kind.get("examples", ())
            if len(examples) == 1:
                content["example"] = examples[0]
            elif examples:
                content["examples"] = {
                    f"example {number}": {"value": value} for number, value in enumerate(examples, 1)
                }


def _references(codes: Iterable[str]) -> dict[str, Any]:
    return {code: {"$ref": f"#/components/examples/{code}"} for code in codes}


def _example(problem: dict[str, Any]) -> dict[str, Any]:
    """The problem as it is answered; a real detail says more."""
    value = {**problem, "detail": problem["title"]}
    if problem["code"] == PLAIN[422][0]:
        fields = [{"path": "limit", "message": "must be 500 or less"}]
        value |= {"detail": f"{fields[0]['path']}: {fields[0]['message']}", "errors": fields}
    return {"summary": problem["title"], "value": value}


def _describe_limit(operation: dict[str, Any]) -> None:
    operation.update(body_limit(declared_limit(operation)))
    code, title = PLAIN[413]
    response = operation["responses"].setdefault("413", {})
    descriptions = [f"`{code}`: {title}.", f"`{BodyTooComplex.code}`: {BodyTooComplex.title()}."]
    response["description"] = " ".join([*descriptions, response.get("description", "")]).strip()
    response[CODES] = [code, BodyTooComplex.code, *response.get(CODES, ())]


def _correct_responses(responses: dict[str, Any], types: dict[str, Any]) -> None:
    if "422" in responses:
        responses["422"]["description"] = _describe_422(responses["422"]["description"])
        responses["422"][CODES] = [PLAIN[422][0], *responses["422"].get(CODES, ())]
    for status, response in responses.items():
        codes = response.pop(CODES, ())
        if status.isdigit() and int(status) >= 400:
            content = response.get("content", {}).get("application/json", {})
            schema: Any = content.get("schema", _PROBLEM)
            schema = _PROBLEM if schema == _FRAMEWORK_ERROR else schema
            choices: list[Any] = [*schema.get("anyOf", [schema])]
            if all(_is_problem(types[choice["$ref"].rpartition("/")[2]]) for choice in choices):
                examples = {**content.get("examples", {}), **_references(codes)}
                response["content"] = {MEDIA_TYPE: {"schema": schema, "examples": examples}}


def _is_problem(kind: dict[str, Any]) -> bool:
    """Whether a schema has all members of a problem; the health report, which also comes with 503, has not."""
    return set(Problem.model_fields) <= set(kind["properties"])


def _drop_unused(schema: dict[str, Any], kind: str) -> None:
    """Drop components that nothing refers to, such as schemas of the framework's own errors."""
    components = schema["components"][kind]
    # Repeated, because a dropped schema may have held the last reference to another.
    while unused_names := components.keys() - set(re.findall(rf'"#/components/{kind}/([^"]+)"', json.dumps(schema))):
        for name in unused_names:
            del components[name]


def _describe_422(description: str) -> str:
    """Description of 422: the problem that every route may have, and the route's own description."""
    code, title = PLAIN[422]
    own_words = "" if description == "Validation Error" else f" {description}"
    return f"`{code}`: {title}.{own_words}"
