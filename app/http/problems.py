"""RFC 9457 problem details: every error of the domain, mapped to HTTP once."""

import json
import logging
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from pydantic import BaseModel, ValidationError
from starlette.exceptions import HTTPException
from starlette.responses import Response
from starlette.routing import Match

from app.kernel import errors
from app.kernel.errors import ConvenerError
from app.kernel.text import plain_message
from worker_agent.tracing.context import read_traceparent

log = logging.getLogger(__name__)
MEDIA_TYPE = "application/problem+json"
# Where a described response keeps the codes of its problems, until `app/http/openapi.py` makes examples of them.
CODES = "x-codes"

# The first of these classes that an error is derived from decides its status.
STATUS: Mapping[type[ConvenerError], int] = {
    errors.Unauthenticated: 401,
    errors.NotPermitted: 403,
    errors.NotFound: 404,
    errors.Conflict: 409,
    errors.Gone: 410,
    errors.VersionStale: 412,
    errors.TooLarge: 413,
    errors.Invalid: 422,
    errors.PreconditionRequired: 428,
    errors.Exhausted: 429,
    errors.Unavailable: 503,
}
# Problems of HTTP itself, without an error of the domain: status, code, title.
PLAIN: Mapping[int, tuple[str, str]] = {
    400: ("malformed_request", "The request cannot be read"),
    404: ("not_found", "There is nothing at this address"),
    405: ("method_not_allowed", "This address does not answer to this method"),
    408: ("request_timeout", "The request did not come in time"),
    413: ("body_too_large", "The body of the request is larger than this service accepts"),
    422: ("invalid_request", "The request is well-formed, but a value in it is not allowed"),
    500: ("internal_error", "Something went wrong here; it has been logged"),
}
_RETRY_AFTER_SECONDS = 1
# What Pydantic says of a body that is no object, or that came as another type than JSON.
_NO_OBJECT = frozenset({"model_type", "model_attributes_type"})
WHAT_A_BODY_IS = "must be a JSON object, sent with the header `Content-Type: application/json`"
_METHODS = ("DELETE", "GET", "PATCH", "POST", "PUT")


class FieldProblem(BaseModel):
    """One value that is not allowed."""

    path: str
    message: str


class Problem(BaseModel):
    """RFC 9457 problem details; `code` is stable."""

    type: str
    title: str
    status: int
    detail: str
    code: str
    reason: str | None = None
    depth: int | None = None
    limit: int | None = None
    errors: list[FieldProblem] | None = None


def catalogue() -> list[dict[str, Any]]:
    """Every problem that this service can answer with."""
    domain = {(status_of(kind), kind.code, kind.title()) for kind in _with_codes(ConvenerError)}
    plain = {(status, code, title) for status, (code, title) in PLAIN.items()}
    return [{"status": s, "code": c, "title": t, "type": f"/problems#{c}"} for s, c, t in sorted(domain | plain)]


def status_of(kind: type[ConvenerError]) -> int:
    """The HTTP status of a class of errors; 500 for one without a mapping."""
    return next((status for base, status in STATUS.items() if issubclass(kind, base)), 500)


def _with_codes(base: type[ConvenerError]) -> Iterator[type[ConvenerError]]:
    """Every error class below `base` with a code of its own, as far as features are imported."""
    for kind in base.__subclasses__():
        if "code" in vars(kind):
            yield kind
        yield from _with_codes(kind)


def from_error(error: ConvenerError) -> Response:
    """The response for an error of the domain."""
    status = status_of(type(error))
    headers = {"WWW-Authenticate": "Bearer"} if status == 401 else {}
    if status in (429, 503):
        headers["Retry-After"] = str(error.retry_after_seconds or _RETRY_AFTER_SECONDS)
    members = dict(error.facts)
    if error.reason is not None:
        members["reason"] = error.reason
    if error.fields:
        members["errors"] = [{"path": path, "message": message} for path, message in error.fields]
    return _render(status, error.code, error.title(), error.detail, members, headers)


def from_validation(problems: Sequence[Any]) -> Response:
    """422 that names each field; 400 where the body is not JSON at all."""
    if any(problem["type"] == "json_invalid" for problem in problems):
        code, title = PLAIN[400]
        return _render(400, code, title, "The body is not valid JSON: " + _cause(problems[0]))
    fields = [
        {"path": _path(problem["loc"]), "message": _message(problem)}
        for problem in problems[:20]  # a list of thousands of wrong items must not give an answer as long
    ]
    code, title = PLAIN[422]
    return _render(422, code, title, "; ".join(f"{f['path']}: {f['message']}" for f in fields[:3]), {"errors": fields})


def from_status(status: int, detail: str | None = None, headers: Mapping[str, str] | None = None) -> Response:
    """The response for a problem of HTTP itself."""
    code, title = PLAIN.get(status, ("http_error", "The request failed"))
    return _render(status, code, title, detail or title, headers=headers)


def from_raised(error: Exception, request: Request | None = None) -> Response:
    """The response for whatever a route has raised, to this request if it came by itself."""
    if isinstance(error, ConvenerError):
        return from_error(error)
    if isinstance(error, RequestValidationError):
        return from_validation(error.errors())
    if isinstance(error, HTTPException):
        return from_status(error.status_code, error.detail, error.headers)
    return from_exception(error, request)


def from_exception(error: Exception, request: Request | None = None) -> Response:
    """500 for an unexpected error, which is logged in full and not described to the caller."""
    context = None if request is None else read_traceparent(request.headers.get("traceparent"))
    log.error("unexpected error", exc_info=error, extra={"fields": {} if context is None else context.fields})
    return from_status(500)


def install(app: FastAPI) -> None:
    """Answer every error of this application as a problem."""

    async def domain_error(_: Request, error: Exception) -> Response:
        assert isinstance(error, ConvenerError)
        return from_error(error)

    async def validation_error(_: Request, error: Exception) -> Response:
        assert isinstance(error, (RequestValidationError, ValidationError))
        return from_validation(error.errors())

    async def http_error(request: Request, error: Exception) -> Response:
        assert isinstance(error, HTTPException)
        headers = dict(error.headers or {})
        if error.status_code == 405:
            headers["Allow"] = ", ".join(_allowed_methods(request))
        return from_status(error.status_code, error.detail, headers)

    async def any_error(request: Request, error: Exception) -> Response:
        return from_exception(error, request)

    app.add_exception_handler(ConvenerError, domain_error)
    app.add_exception_handler(RequestValidationError, validation_error)
    app.add_exception_handler(HTTPException, http_error)
    app.add_exception_handler(Exception, any_error)


def _allowed_methods(request: Request) -> list[str]:
    """The methods of this address; the framework knows only those of the first route that it tried."""
    routes = request.app.routes
    return [
        method
        for method in _METHODS
        if any(route.matches({**request.scope, "method": method})[0] is Match.FULL for route in routes)
    ]


def responses_for(*kinds: type[ConvenerError]) -> dict[int | str, dict[str, Any]]:
    """The `responses` of a route that may answer with these errors."""
    by_status: dict[int | str, dict[str, Any]] = {}
    for kind in kinds:
        entry = by_status.setdefault(status_of(kind), {"model": Problem, "description": "", CODES: []})
        entry["description"] = f"{entry['description']} `{kind.code}`: {kind.title()}.".strip()
        entry[CODES].append(kind.code)
    return by_status


def _render(
    status: int,
    code: str,
    title: str,
    detail: str,
    members: Mapping[str, Any] | None = None,
    headers: Mapping[str, str] | None = None,
) -> Response:
    problem = {"type": f"/problems#{code}", "title": title, "status": status, "detail": detail, "code": code}
    text = json.dumps({**problem, **(members or {})})
    return Response(text, status_code=status, media_type=MEDIA_TYPE, headers=dict(headers or {}))


def _message(problem: Any) -> str:
    # Where the type is another, the framework takes the body for text.
    if tuple(problem["loc"]) == ("body",) and problem["type"] in _NO_OBJECT:
        return WHAT_A_BODY_IS
    return plain_message(problem)


def _path(location: Sequence[Any]) -> str:
    names = location[1:] if location and location[0] in ("body", "query", "path") and len(location) > 1 else location
    return ".".join(str(name) for name in names)


def _cause(problem: Any) -> str:
    context = problem.get("ctx") or {}
    return str(context.get("error") or problem["msg"])
