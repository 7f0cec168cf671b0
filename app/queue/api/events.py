"""Routes of events: pages from a cursor on, with long polling, and streams of server-sent events."""

import asyncio
import json
import re
from collections.abc import AsyncGenerator
from contextlib import suppress
from datetime import datetime
from math import inf
from typing import Annotated, Any
from uuid import UUID

from fastapi import Header, Query
from fastapi.exceptions import RequestValidationError
from pydantic import BaseModel, BeforeValidator, Field, PlainValidator, WithJsonSchema
from sqlalchemy.ext.asyncio import AsyncConnection
from starlette.requests import Request
from starlette.responses import Response
from typing_extensions import TypeAliasType

from app.http.fields import Bound, Limit, Moment, Word
from app.http.guard import admit, requires
from app.http.namespaces import Within
from app.http.problems import responses_for
from app.http.routing import Router
from app.http.services import Services, ServicesDep
from app.http.streaming import Batch, EventStream, Message, until_disconnect
from app.kernel.access import Scope
from app.kernel.errors import ConvenerError, DatabaseUnavailable, TooManyRequests
from app.kernel.events import EVENT_KINDS, EventKind
from app.kernel.namespaces import DEFAULT, split_name, stored_name
from app.queue.api.event_stream import EventFilter, EventReaders, Follower
from app.queue.api.queues import OpenWriterOut, open_writers_out
from app.queue.errors import CursorAhead, CursorExpired
from app.queue.service import cursors
from app.queue.store import events, open_writers
from app.queue.store.events import BEGINNING, Cursor, Event

router = Router(prefix="/events", tags=["events"])
_KINDS_BY_NAME: dict[str, EventKind] = {kind.value: kind for kind in EVENT_KINDS}
EventKindName = TypeAliasType(
    "EventKindName", Annotated[str, WithJsonSchema({"type": "string", "enum": list(_KINDS_BY_NAME)})]
)
_STREAM = "text/event-stream"
_OPEN_WRITERS = "open_writers"
_WRITERS_SECONDS = 3.0
_AFTER, _LAST_EVENT_ID = ("query", "after"), ("header", "last-event-id")
_PAGE = 500
# Read for one answer at the most where all before the first that is wanted are others.
_MOST_PAGES = 4
# Every stream has a page in memory until its client has taken it.
_PAGE_BYTES = 128 << 10


class EventOut(BaseModel):
    """One change of a task's state; or of a goal's or the whole system's, which is about no task and no agent type."""

    cursor: Annotated[str, BeforeValidator(str)]
    at: Moment
    kind: EventKindName
    task_id: UUID | None
    agent_type: str | None
    namespace: str
    goal_id: str | None
    worker_id: UUID | None
    worker_name: str | None
    token: int | None
    detail: dict[str, Any] | None


class EventPage(BaseModel):
    """Oldest first; store `next` and pass it as `after`, and you receive each event exactly once."""

    items: list[EventOut]
    next: str
    more: bool = Field(description="go on at once: there may be more, even where this page is empty")
    open_writers: list[OpenWriterOut] = Field(
        default=[], description="where the page is empty: the transactions for which later events have to wait"
    )


_CONTENT = [requires(Scope.READ, Scope.CONTENT, waits=True)]
After = Annotated[
    str | None,
    Query(
        max_length=100, description="`next` of the page before, the id of an event, `now`, or absent: from the start"
    ),
]
Since = Annotated[
    Bound | None, Query(description="only from this time on; where `after` is absent, reading begins there")
]
Goal = Annotated[Word | None, Query(description="only of this research goal")]


def _kind(value: object) -> EventKind:
    """Parse a kind; a plain union of enums would report an error for each of its parts."""
    if isinstance(value, str) and value in _KINDS_BY_NAME:
        return _KINDS_BY_NAME[value]
    raise ValueError(f"must be one of {', '.join(_KINDS_BY_NAME)}")


Kind = Annotated[EventKind, PlainValidator(_kind, json_schema_input_type=EventKindName)]
Kinds = Annotated[list[Kind] | None, Query(max_length=len(EVENT_KINDS), description="only of these kinds")]
LastEventId = Annotated[
    str | None, Header(max_length=100, description="where a stream goes on; it is stronger than `after`")
]
_CURSOR_REFUSALS = responses_for(CursorExpired, CursorAhead)
_STREAMED: dict[int | str, dict[str, Any]] = {
    200: {
        "description": "A page; a stream of server-sent events where the client accepts `text/event-stream`",
        "content": {_STREAM: {"schema": {"type": "string"}}},
    }
}


@router.get(
    "",
    operation_id="list_events",
    summary="Follow events",
    dependencies=_CONTENT,
    response_model=EventPage,
    responses=_STREAMED | _CURSOR_REFUSALS,
)
async def page(
    request: Request,
    services: ServicesDep,
    namespace: Within,
    after: After = None,
    since: Since = None,
    goal_id: Goal = None,
    kind: Kinds = None,
    limit: Limit = 200,
    wait_seconds: Annotated[float, Query(ge=0, le=30)] = 0,
    last_event_id: LastEventId = None,
) -> EventPage | Response:
    """In an order in which no event is ever missed; waits up to `wait_seconds` for the first.

    A client that accepts `text/event-stream` gets the stream of `GET /events/stream` instead.
    """
    event_filter = _filter(namespace, goal_id, kind, since)
    if _STREAM in request.headers.get("accept", ""):
        return await _open_stream(request, services, after, last_event_id, event_filter)
    start = await _start(services, after, since)
    reading = _read_until_found(request, services, start, event_filter, limit, wait_seconds)
    # None: the client hung up, and nobody will see this answer.
    result = await (until_disconnect(request, reading) if wait_seconds else reading)
    items, cursor, has_more = result or ([], start, True)
    writers = [] if items else await _read_open_writers(services)
    events_out = [_event_out(event) for event in items]
    return EventPage(items=events_out, next=str(cursor), more=has_more, open_writers=writers)


async def _read_open_writers(services: Services) -> list[OpenWriterOut]:
    async with services.database.reading() as connection:
        return open_writers_out(await open_writers.read(connection))


@router.get(
    "/stream",
    operation_id="stream_events",
    summary="Stream events",
    dependencies=_CONTENT,
    response_class=Response,
    responses={200: {"content": {_STREAM: {"schema": {"type": "string"}}}}, **_CURSOR_REFUSALS},
)
async def stream(
    request: Request,
    services: ServicesDep,
    namespace: Within,
    after: After = None,
    since: Since = None,
    goal_id: Goal = None,
    kind: Kinds = None,
    last_event_id: LastEventId = None,
) -> Response:
    """Server-sent events without end: `id` is the cursor, `event` the kind, `data` the event as JSON.

    While an open transaction keeps events waiting, an event `open_writers` names it, as the pages do, and another one
    with an empty list says that it is over.

    A client that connects again with `Last-Event-ID` goes on where it was. Ids without data tell how far the stream
    has come where nothing was wanted; there is a comment every 15 s when nothing happens.

    Where the database is another one since, as after a failover to a standby that lagged, and knows less than this
    stream has told, an event `cursor_ahead` says so, and the stream ends: read how things stand now, and go on with
    `after=now`. Its id is refused with the problem of this name.
    """
    event_filter = _filter(namespace, goal_id, kind, since)
    return await _open_stream(request, services, after, last_event_id, event_filter)


def _filter(
    namespace: str | None, goal_id: str | None, kinds: list[EventKind] | None, since: datetime | None
) -> EventFilter:
    goal_name = stored_name(namespace or DEFAULT, goal_id) if goal_id else None
    return EventFilter(namespace=namespace, goal_id=goal_name, kinds=kinds or (), since=since)


async def _open_stream(
    request: Request, services: Services, after: str | None, last_event_id: str | None, event_filter: EventFilter
) -> EventStream:
    services[EventReaders].check(request.state.principal.key_id)
    place = _LAST_EVENT_ID if last_event_id else _AFTER
    start = await _start(services, last_event_id or after, event_filter.since, place)
    return EventStream(str(start), _turns(request, services, start, event_filter))


async def _turns(
    request: Request, services: Services, start: Cursor, event_filter: EventFilter
) -> AsyncGenerator[Batch, None]:
    """Yield a turn for every page, and at least every second, until one side closes or the key expires.

    An outage of the database is waited out: a client that got an error would not connect again.
    """
    # Others may have begun since this one was let in; its client comes again, and is refused then.
    key_id = request.state.principal.key_id
    delay = _Delay(services)
    with suppress(TooManyRequests), Follower(services, key_id, start, event_filter.namespace) as follower:
        while await _may_continue(request, services, event_filter) and not await request.is_disconnected():
            try:
                # No name for it: a stream that waits for its client, or its turn to read, holds no page in memory.
                yield await _read_turn(follower, event_filter, delay)
            except CursorAhead as error:
                cursor, data = str(follower.cursor), json.dumps({"code": error.code, "detail": error.detail})
                yield Batch(messages=[Message(id=cursor, kind=error.code, data=data)], cursor=cursor)
                return
            if not follower.is_behind and not services.stopping:
                await follower.wait()


async def _read_turn(follower: Follower, event_filter: EventFilter, delay: "_Delay") -> Batch:
    """The next events that the filter selects, none in an outage. Raises CursorAhead."""
    try:
        page = await follower.read_page(_PAGE, _PAGE_BYTES)
    except DatabaseUnavailable:
        page, follower.is_behind = (), False
    messages = [_message(event) for event in event_filter.select(page)]
    return Batch(messages=messages + await delay.news(follower), cursor=str(follower.cursor))


class _Delay:
    """The transactions for which events of a stream wait, as its client was told last."""

    def __init__(self, services: Services) -> None:
        self._services = services
        self._writers: set[tuple[int | None, str | None]] = set()
        self._looked_at = -inf

    async def news(self, follower: Follower) -> list[Message]:
        """A message where they have changed; looks only while something holds events back, and not at every turn."""
        clock = asyncio.get_running_loop().time()
        if not (follower.is_held or self._writers) or clock - self._looked_at < _WRITERS_SECONDS:
            return []
        self._looked_at = clock
        try:
            writers = await _read_open_writers(self._services)
        except DatabaseUnavailable:
            return []
        names = {(writer.pid, writer.gid) for writer in writers}
        if names == self._writers:
            return []
        self._writers = names
        data = json.dumps([writer.model_dump(mode="json") for writer in writers])
        # The id is that of the last event: whoever connects again goes on there.
        return [Message(id=str(follower.cursor), kind=_OPEN_WRITERS, data=data)]


async def _may_continue(request: Request, services: Services, event_filter: EventFilter) -> bool:
    """Whether the key still permits to read these events, and the service is not shutting down.

    A key of `default` that was free to read all is confined by the first key of another namespace. In an outage the
    stream goes on.
    """
    try:
        principal = await admit(services, request.headers.get("authorization"), Scope.READ, Scope.CONTENT)
    except DatabaseUnavailable:
        return True
    except ConvenerError:
        return False
    return not principal.is_confined or principal.namespace == event_filter.namespace


async def _read_until_found(
    request: Request,
    services: Services,
    start: Cursor,
    event_filter: EventFilter,
    limit: int,
    wait_seconds: float,
) -> tuple[list[Event], Cursor, bool]:
    """Read until an event matches, `wait_seconds` have passed, or the key does not permit it any more; tell of more.

    Without a wait it still passes over some pages of events that do not match. Raises CursorAhead.
    """
    clock = asyncio.get_running_loop().time
    end, pages = clock() + wait_seconds, 0
    # Whoever wants few of many events would else come again for each few of the others.
    read_at_once = max(limit, _PAGE) if event_filter.is_narrow else limit
    with Follower(services, request.state.principal.key_id, start, event_filter.namespace) as follower:
        while True:
            page = await follower.read_page(read_at_once)
            items, remaining_seconds, pages = event_filter.select(page), end - clock(), pages + 1
            if len(items) > limit:
                return items[:limit], items[limit - 1].cursor, True
            is_late = remaining_seconds <= 0 and not (follower.is_behind and pages < _MOST_PAGES)
            if items or is_late or services.stopping:
                return items, follower.cursor, follower.is_behind
            # A page without a match leads on at once where it is not the last.
            if not follower.is_behind:
                await follower.wait(remaining_seconds)
            if not await _may_continue(request, services, event_filter):
                return [], follower.cursor, follower.is_behind


async def _start(
    services: Services, text: str | None, since: datetime | None, place: tuple[str, str] = _AFTER
) -> Cursor:
    """The position from which to read. Raises RequestValidationError, CursorExpired, CursorAhead."""
    async with services.database.reading() as connection:
        if since is None or text:
            return await start_at(connection, text, "cursor", place=place)
        return await events.cursor_before(connection, since)


async def start_at(
    connection: AsyncConnection, text: str | None, name: str, *, prefix: str = "", place: tuple[str, str] = _AFTER
) -> Cursor:
    """The position from which a client wants to read. Raises RequestValidationError, CursorExpired, CursorAhead."""
    if text == "now":
        return await events.latest(connection)
    cursor = _parse_cursor(text, name, prefix, place)
    # Without a cursor reading begins with the first event that is kept.
    if text is not None:
        await cursors.check(connection, cursor)
    return cursor


def _parse_cursor(text: str | None, name: str, prefix: str, place: tuple[str, str]) -> Cursor:
    """The position that a client was given earlier; the beginning for None. Raises RequestValidationError."""
    if text is None:
        return BEGINNING
    match = re.fullmatch(rf"{prefix}(\d{{1,18}})-(\d{{1,19}})", text)
    if match is None:
        message = f"not a {name}; use `next` of a page, or `now`"
        raise RequestValidationError([{"type": name, "loc": place, "msg": message}])
    # A larger number would not fit into the type of the column.
    return Cursor(transaction=int(match[1]), seq=min(int(match[2]), 2**63 - 1))


def _message(event: Event) -> Message:
    return Message(id=str(event.cursor), kind=event.kind, data=_event_out(event).model_dump_json())


def _event_out(event: Event) -> EventOut:
    namespace, goal_id = split_name(event.goal_id)
    same = {name: getattr(event, name) for name in Event.__dataclass_fields__}
    return EventOut.model_validate({**same, "namespace": namespace, "goal_id": goal_id})
