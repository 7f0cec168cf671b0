"""Every change of state, from a cursor on: in pages, or as a stream of server-sent events."""

import asyncio
import re
from collections.abc import AsyncGenerator
from typing import Annotated, Any
from uuid import UUID

from fastapi import APIRouter, Header, Query
from fastapi.exceptions import RequestValidationError
from pydantic import BaseModel, PlainValidator, WithJsonSchema
from starlette.requests import Request
from starlette.responses import Response

from app.http.fields import Limit, Moment, Word
from app.http.guard import admit, requires
from app.http.services import Services, ServicesDep
from app.http.streaming import EventStream, Message, Turn, until_gone
from app.kernel.access import Scope
from app.kernel.errors import ConvenerError, DatabaseUnavailable
from app.queue.api.event_stream import Follower, Wanted
from app.queue.rules.events import EVENT_KINDS, EventKind
from app.queue.store import events
from app.queue.store.events import BEGINNING, Cursor, Event

router = APIRouter(prefix="/events", tags=["events"])
_KINDS_BY_NAME: dict[str, EventKind] = {kind.value: kind for kind in EVENT_KINDS}
_KINDS = WithJsonSchema({"type": "string", "enum": list(_KINDS_BY_NAME)})
_STREAM = "text/event-stream"
_PAGE = 500


class EventOut(BaseModel):
    """One change of a task's state; or of a goal's or the whole system's, which is about no task and no agent type."""

    cursor: str
    at: Moment
    kind: Annotated[str, _KINDS]
    task_id: UUID | None
    agent_type: str | None
    goal_id: str | None
    worker_id: UUID | None
    token: int | None
    detail: dict[str, Any] | None


class EventPage(BaseModel):
    """Oldest first; store `next` and pass it as `after`, and you receive each event exactly once."""

    items: list[EventOut]
    next: str


After = Annotated[
    str | None, Query(description="`next` of the page before, the id of an event, `now`, or absent: from the start")
]
Goal = Annotated[Word | None, Query(description="only of this research goal")]


def _kind(value: object) -> EventKind:
    """One complaint, where a union would have one for each of its parts."""
    if isinstance(value, str) and value in _KINDS_BY_NAME:
        return _KINDS_BY_NAME[value]
    raise ValueError(f"must be one of {', '.join(_KINDS_BY_NAME)}")


Kind = Annotated[EventKind, PlainValidator(_kind), _KINDS]
Kinds = Annotated[list[Kind] | None, Query(description="only of these kinds")]
LastEventId = Annotated[str | None, Header(description="where a stream goes on; it is stronger than `after`")]
_STREAMED: dict[int | str, dict[str, Any]] = {
    200: {
        "description": "A page; a stream of server-sent events where the client accepts `text/event-stream`",
        "content": {_STREAM: {"schema": {"type": "string"}}},
    }
}


@router.get(
    "", summary="Follow events", dependencies=[requires(Scope.READ)], response_model=EventPage, responses=_STREAMED
)
async def page(
    request: Request,
    services: ServicesDep,
    after: After = None,
    goal_id: Goal = None,
    kind: Kinds = None,
    limit: Limit = 200,
    wait_seconds: Annotated[float, Query(ge=0, le=30)] = 0,
    last_event_id: LastEventId = None,
) -> EventPage | Response:
    """In an order in which no event is ever missed; waits up to `wait_seconds` for the first.

    A client that accepts `text/event-stream` gets the stream of `GET /events/stream` instead.
    """
    wanted = Wanted(goal_id=goal_id, kinds=kind or ())
    if _STREAM in request.headers.get("accept", ""):
        return await _streamed(request, services, last_event_id or after, wanted)
    start = await _start(services, after)
    follow = _follow(services, start, wanted, limit, wait_seconds)
    found = await (until_gone(request, follow) if wait_seconds else follow)
    items, cursor = found or ([], start)
    return EventPage(items=[_plain(event) for event in items], next=str(cursor))


@router.get(
    "/stream",
    summary="Stream events",
    dependencies=[requires(Scope.READ)],
    response_class=Response,
    responses={200: {"content": {_STREAM: {"schema": {"type": "string"}}}}},
)
async def stream(
    request: Request,
    services: ServicesDep,
    after: After = None,
    goal_id: Goal = None,
    kind: Kinds = None,
    last_event_id: LastEventId = None,
) -> Response:
    """Server-sent events without end: `id` is the cursor, `event` the kind, `data` the event as JSON.

    A client that connects again with `Last-Event-ID` goes on where it was. Ids without data tell how far the stream
    has come where nothing was wanted; there is a comment every 15 s when nothing happens.
    """
    return await _streamed(request, services, last_event_id or after, Wanted(goal_id=goal_id, kinds=kind or ()))


async def _streamed(request: Request, services: Services, after: str | None, wanted: Wanted) -> EventStream:
    start = await _start(services, after)
    return EventStream(str(start), _turns(request, services, start, wanted))


async def _turns(request: Request, services: Services, start: Cursor, wanted: Wanted) -> AsyncGenerator[Turn, None]:
    """A turn whenever something was found, and at least every second, until one side ends it or the key has ended.

    An outage of the database is waited out: a client that is turned away would not come again.
    """
    with Follower(services, start) as follower:
        while await _is_welcome(request, services) and not await request.is_disconnected():
            try:
                found = await follower.look(_PAGE)
            except DatabaseUnavailable:
                found = ()
            yield Turn(wanted=[_message(event) for event in wanted.among(found)], place=str(follower.cursor))
            if len(found) < _PAGE and not services.stopping:
                await follower.wait()


async def _is_welcome(request: Request, services: Services) -> bool:
    """Whether the key still opens this, and the service goes on."""
    try:
        await admit(services, request.headers.get("authorization"), Scope.READ)
    except DatabaseUnavailable:
        return True
    except ConvenerError:
        return False
    return True


async def _follow(
    services: Services, start: Cursor, wanted: Wanted, limit: int, wait_seconds: float
) -> tuple[list[Event], Cursor]:
    """Read until something is there."""
    clock = asyncio.get_running_loop().time
    end = clock() + wait_seconds
    with Follower(services, start) as follower:
        while True:
            found = await follower.look(limit)
            items, left = wanted.among(found), end - clock()
            if items or left <= 0 or services.stopping:
                return items, follower.cursor
            if not found:
                await follower.wait(left)


async def _start(services: Services, after: str | None) -> Cursor:
    if after is None:
        return BEGINNING
    if after == "now":
        async with services.database.transaction() as connection:
            return await events.latest(connection)
    match = re.fullmatch(r"(\d{1,18})-(\d{1,19})", after)
    if match is None:
        message = "not a cursor; use `next` of a page, or `now`"
        raise RequestValidationError([{"type": "cursor", "loc": ("query", "after"), "msg": message}])
    return Cursor(transaction=int(match[1]), seq=min(int(match[2]), 2**63 - 1))


def _message(event: Event) -> Message:
    return Message(id=str(event.cursor), kind=event.kind, data=_plain(event).model_dump_json())


def _plain(event: Event) -> EventOut:
    known = {name: getattr(event, name) for name in EventOut.model_fields if name != "cursor"}
    return EventOut(cursor=str(event.cursor), **known)
