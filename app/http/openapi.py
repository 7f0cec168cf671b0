"""Corrects the OpenAPI document: it describes the problems that are answered instead of the framework's own errors."""

import json
import re
from typing import Any

from fastapi import FastAPI

from app.http.problems import MEDIA_TYPE, PLAIN, Problem

_PROBLEM = {"$ref": "#/components/schemas/Problem"}
_OTHER_PROBLEMS = {
    "description": "Any other problem; `GET /problems` lists them all",
    "content": {MEDIA_TYPE: {"schema": _PROBLEM}},
}
_FRAMEWORK_ERROR = {"$ref": "#/components/schemas/HTTPValidationError"}


def install(app: FastAPI) -> None:
    """Describe every problem of every operation as RFC 9457 has it."""
    describe = app.openapi

    def openapi() -> dict[str, Any]:
        if app.openapi_schema is None:
            _describe_problems(describe())
        return describe()

    app.openapi = openapi  # type: ignore[method-assign]  # the place where FastAPI asks for it


def _describe_problems(schema: dict[str, Any]) -> None:
    types = schema["components"]["schemas"]
    for operations in schema["paths"].values():
        for operation in operations.values():
            _correct_responses(operation["responses"], types)
    _drop_unused_schemas(schema)


def _correct_responses(responses: dict[str, Any], types: dict[str, Any]) -> None:
    for status, response in responses.items():
        if status.isdigit() and int(status) >= 400:
            schema = response.get("content", {}).get("application/json", {}).get("schema", _PROBLEM)
            schema = _PROBLEM if schema == _FRAMEWORK_ERROR else schema
            if _is_problem(types[schema["$ref"].rpartition("/")[2]]):
                response["content"] = {MEDIA_TYPE: {"schema": schema}}
    if "422" in responses:
        responses["422"]["description"] = _describe_422(responses["422"]["description"])
    responses["default"] = _OTHER_PROBLEMS


def _is_problem(kind: dict[str, Any]) -> bool:
    """A health report comes with 503 too, and stays what it is; some problems tell more than others."""
    return set(Problem.model_fields) <= set(kind["properties"])


def _drop_unused_schemas(schema: dict[str, Any]) -> None:
    """Drop schemas that nothing refers to any more, as those of the framework's own errors."""
    types = schema["components"]["schemas"]
    while unused := types.keys() - set(re.findall(r'"#/components/schemas/([^"]+)"', json.dumps(schema))):
        for name in unused:
            del types[name]


def _describe_422(description: str) -> str:
    """Description of 422: the problem that every route may have, and what the route says of its own."""
    code, title = PLAIN[422]
    own_words = "" if description == "Validation Error" else f" {description}"
    return f"`{code}`: {title}.{own_words}"
