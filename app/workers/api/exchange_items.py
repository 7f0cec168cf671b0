"""Items of an exchange: each a call of one worker, admitted, read and refused as if it had come alone."""

import asyncio
from collections import defaultdict
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any
from uuid import UUID

from fastapi.exceptions import RequestValidationError
from pydantic_core import to_json
from starlette.exceptions import HTTPException

from app.db.turns import Turns
from app.http.bodies import SMALL_BYTES, have_unknown, too_long, validate_known, validate_value
from app.http.fast_routes import LeanRoute, uuid_of
from app.http.guard import admit, admit_remembered, worker_of
from app.http.problems import WHAT_A_BODY_IS
from app.http.services import Services
from app.kernel.access import Principal, Scope
from app.kernel.errors import ConvenerError
from app.kernel.ids import WorkerId
from app.queue.api.leases import router as leases_router
from app.workers.api.heartbeats import router as heartbeats_router

_ROUTES = [route for route in (*leases_router.routes, *heartbeats_router.routes) if isinstance(route, LeanRoute)]
# By the last part of their paths.
OPERATIONS: Mapping[str, LeanRoute] = {route.path.rpartition("/")[2]: route for route in _ROUTES}
_MEMBERS = frozenset({"authorization", "operation", "body"})
_ALLOWED = {operation: _MEMBERS.union(route.from_path) for operation, route in OPERATIONS.items()}
MAX_AUTHORIZATION = 1000
# Keys that are looked up together; others are served between them.
_KEYS_AT_ONCE = 32
Admission = Principal | BaseException


@dataclass(slots=True)
class Item:
    """A valid call of a worker; `path` are the identifiers that the plain route has in its path."""

    index: int
    operation: str
    principal: Principal
    worker_id: WorkerId
    path: dict[str, UUID]
    call: Any


async def admissions(services: Services, values: Iterable[Any]) -> dict[str, Admission]:
    """For each Authorization in the items the holder of its key, or the error with which it is refused."""
    admitted: dict[str, Admission] = {}
    unremembered = []
    for text in dict.fromkeys(map(authorization_of, values)):
        try:
            principal = admit_remembered(services, text, Scope.LEASE)
        except ConvenerError as error:
            admitted[text] = error
        else:
            if principal is None:
                unremembered.append(text)
            else:
                admitted[text] = principal
    turns = services.database.shared(Turns)
    for start in range(0, len(unremembered), _KEYS_AT_ONCE):
        await turns.wait()
        texts = unremembered[start : start + _KEYS_AT_ONCE]
        lookups = (admit(services, text, Scope.LEASE) for text in texts)
        admitted |= zip(texts, await asyncio.gather(*lookups, return_exceptions=True), strict=True)
    return admitted


def authorization_of(value: Any) -> str:
    """The Authorization in an item, "" for one that can be none."""
    text = value.get("authorization") if isinstance(value, dict) else None
    return text if isinstance(text, str) and text.isascii() and len(text) <= MAX_AUTHORIZATION else ""


def read(values: Sequence[Any], start: int, admitted: Mapping[str, Admission]) -> list[Item | Exception]:
    """Items from index `start` on as calls, or the errors that their plain routes would answer with."""
    items: list[Item | Exception] = []
    clean_operations = _clean_operations(values)
    for index, value in enumerate(values, start):
        try:
            items.append(_read(index, value, admitted, clean_operations))
        except (ConvenerError, RequestValidationError, HTTPException) as error:
            # Its traceback leads to this list: to collect hundreds of such circles would take half a second.
            items.append(error.with_traceback(None))
        except Exception as error:
            items.append(error)
    return items


def _clean_operations(values: Iterable[Any]) -> set[str]:
    """The operations whose bodies have no unknown keys, which takes less to tell of all at once than of each."""
    bodies: defaultdict[str, list[Any]] = defaultdict(list)
    for value in values:
        operation, body = (value.get("operation"), value.get("body")) if isinstance(value, dict) else (None, None)
        # A list is refused as such: to look through all that it may hold would take long.
        if isinstance(body, dict) and isinstance(operation, str) and operation in OPERATIONS:
            bodies[operation].append(body)
    return {name for name, values in bodies.items() if not have_unknown(OPERATIONS[name].model, values)}


def _read(index: int, value: Any, admitted: Mapping[str, Admission], clean_operations: Collection[str]) -> Item:
    if not isinstance(value, dict):
        raise _refused(("body",), "must be an object")
    operation = value.get("operation")
    route = OPERATIONS.get(operation) if isinstance(operation, str) else None
    if operation is None or route is None:
        raise _refused(("operation",), f"must be one of {', '.join(OPERATIONS)}")
    principal = admitted[authorization_of(value)]
    if isinstance(principal, BaseException):
        raise principal
    if not value.keys() <= _ALLOWED[operation]:
        raise _refused((min(value.keys() - _ALLOWED[operation]),), "there is no such field")
    body = value.get("body", {})
    if not isinstance(body, dict):
        raise _refused(("body",), WHAT_A_BODY_IS)
    item = Item(
        index=index,
        operation=operation,
        principal=principal,
        worker_id=worker_of(principal),
        call=(validate_known if operation in clean_operations else validate_value)(route.model, body),
        path={name: _identifier(value, name) for name in route.from_path},
    )
    if operation == "heartbeat":
        # Only a valid one can be written as JSON: half of a surrogate pair cannot.
        _check_heartbeat(body)
    return item


def _check_heartbeat(body: Mapping[str, Any]) -> None:
    """Raise HTTPException 413 for a body that is longer than the plain route takes: errors of workers are stored."""
    if body.get("errors") and len(to_json(body)) > SMALL_BYTES:
        raise too_long(SMALL_BYTES)


def _identifier(value: Mapping[str, Any], name: str) -> UUID:
    text = value.get(name)
    return uuid_of(text if isinstance(text, str) else "", name)


def _refused(path: tuple[str, ...], message: str) -> RequestValidationError:
    return RequestValidationError([{"type": "value_error", "loc": path, "msg": message}])
