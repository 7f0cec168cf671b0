"""What the description of the API says of problems: what is answered, where the framework would describe its own."""

from typing import Any

from fastapi import FastAPI

from app.api.problems import MEDIA_TYPE, PLAIN

_CONTENT = {MEDIA_TYPE: {"schema": {"$ref": "#/components/schemas/Problem"}}}
_OTHERS = {"description": "Any other problem; `GET /problems` lists them all", "content": _CONTENT}
_OF_THE_FRAMEWORK = ("HTTPValidationError", "ValidationError")


def install(app: FastAPI) -> None:
    """Describe every problem of every operation as RFC 9457 has it."""
    describe = app.openapi

    def openapi() -> dict[str, Any]:
        if app.openapi_schema is None:
            _tell_of_problems(describe())
        return describe()

    app.openapi = openapi  # type: ignore[method-assign]  # the place where FastAPI asks for it


def _tell_of_problems(schema: dict[str, Any]) -> None:
    for operations in schema["paths"].values():
        for operation in operations.values():
            _correct(operation["responses"])
    for name in _OF_THE_FRAMEWORK:
        schema["components"]["schemas"].pop(name, None)


def _correct(responses: dict[str, Any]) -> None:
    for status, response in responses.items():
        if status.isdigit() and int(status) >= 400:
            response["content"] = _CONTENT
    if "422" in responses:
        responses["422"]["description"] = _with_invalid(responses["422"]["description"])
    responses["default"] = _OTHERS


def _with_invalid(description: str) -> str:
    """What our routes say of 422 themselves, and the problem that every one of them may have."""
    code, title = PLAIN[422]
    said = "" if description == "Validation Error" else f" {description}"
    return f"`{code}`: {title}.{said}"
