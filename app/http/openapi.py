"""What the description of the API says of problems: what is answered, where the framework would describe its own."""

import json
import re
from typing import Any

from fastapi import FastAPI

from app.http.problems import MEDIA_TYPE, PLAIN, Problem

_PROBLEM = {"$ref": "#/components/schemas/Problem"}
_OTHERS = {
    "description": "Any other problem; `GET /problems` lists them all",
    "content": {MEDIA_TYPE: {"schema": _PROBLEM}},
}
_OF_THE_FRAMEWORK = {"$ref": "#/components/schemas/HTTPValidationError"}


def install(app: FastAPI) -> None:
    """Describe every problem of every operation as RFC 9457 has it."""
    describe = app.openapi

    def openapi() -> dict[str, Any]:
        if app.openapi_schema is None:
            _tell_of_problems(describe())
        return describe()

    app.openapi = openapi  # type: ignore[method-assign]  # the place where FastAPI asks for it


def _tell_of_problems(schema: dict[str, Any]) -> None:
    types = schema["components"]["schemas"]
    for operations in schema["paths"].values():
        for operation in operations.values():
            _correct(operation["responses"], types)
    _forget_what_nobody_uses(schema)


def _correct(responses: dict[str, Any], types: dict[str, Any]) -> None:
    for status, response in responses.items():
        if status.isdigit() and int(status) >= 400:
            told = response.get("content", {}).get("application/json", {}).get("schema", _PROBLEM)
            told = _PROBLEM if told == _OF_THE_FRAMEWORK else told
            if _is_problem(types[told["$ref"].rpartition("/")[2]]):
                response["content"] = {MEDIA_TYPE: {"schema": told}}
    if "422" in responses:
        responses["422"]["description"] = _with_invalid(responses["422"]["description"])
    responses["default"] = _OTHERS


def _is_problem(kind: dict[str, Any]) -> bool:
    """A health report comes with 503 too, and stays what it is; some problems tell more than others."""
    return set(Problem.model_fields) <= set(kind["properties"])


def _forget_what_nobody_uses(schema: dict[str, Any]) -> None:
    """Types that stand behind a description of ours, and those of the framework's own problems."""
    types = schema["components"]["schemas"]
    while unused := types.keys() - set(re.findall(r'"#/components/schemas/([^"]+)"', json.dumps(schema))):
        for name in unused:
            del types[name]


def _with_invalid(description: str) -> str:
    """What our routes say of 422 themselves, and the problem that every one of them may have."""
    code, title = PLAIN[422]
    said = "" if description == "Validation Error" else f" {description}"
    return f"`{code}`: {title}.{said}"
