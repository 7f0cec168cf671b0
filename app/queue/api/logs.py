"""Routes of the output of attempts: workers send it in pieces, people read and follow it."""

import asyncio
from typing import Annotated
from uuid import UUID

from fastapi import Query, Response
from fastapi.exceptions import RequestValidationError
from pydantic import BaseModel, ConfigDict, Field
from starlette.requests import Request

from app.http.bodies import LISTS_BYTES, body_limit
from app.http.fields import Body, Moment, StorableText, Token
from app.http.guard import Caller, admit, requires, worker_of
from app.http.namespaces import Within
from app.http.problems import responses_for
from app.http.routing import Router
from app.http.services import Services, ServicesDep
from app.http.streaming import until_disconnect
from app.http.transactions import Writing
from app.kernel.access import Scope
from app.kernel.errors import TooManyRequests
from app.kernel.states import FINISHED, TaskState
from app.queue.api.event_stream import EventReaders
from app.queue.errors import LeaseNotFound, TaskNotFound
from app.queue.rules.logs import MAX_POSITION, PIECE_CHARACTERS, Position, Stream, parse_position, rest_of
from app.queue.store import logs

router = Router(tags=["tasks"])
_POLL_SECONDS = 1.0
_PAGE_SEGMENTS = 100


class LogPieceIn(Body):
    """Text of a stream; `start` counts the bytes before it, kept or not."""

    stream: Stream
    start: int = Field(ge=0, le=2**53)
    text: StorableText = Field(min_length=1, max_length=PIECE_CHARACTERS)


class LogsIn(Body):
    """What the attempt has written since the last call."""

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [{"token": 1, "pieces": [{"stream": "stdout", "start": 0, "text": "4 of 10 papers\n"}]}]
        }
    )

    token: Token
    pieces: list[LogPieceIn] = Field(min_length=1, max_length=8)


class LogPieceOut(BaseModel):
    """Text that an attempt wrote to one stream; `skipped` bytes before it were not kept."""

    attempt: int
    token: int = Field(description="of the lease; an attempt that was given back or rescued has several")
    stream: Stream
    start: int = Field(description="bytes of the stream before this text")
    skipped: int
    text: str
    at: Moment


class LogPage(BaseModel):
    """By lease and time, up to 1 MiB; pass `next` as `after`, which also leads to what an earlier lease wrote late.

    In a final state a page without items is the last.
    """

    items: list[LogPieceOut]
    next: str
    state: TaskState


@router.post(
    "/leases/{task_id}/logs",
    operation_id="append_task_logs",
    summary="Add to the output of an attempt",
    status_code=204,
    response_class=Response,
    dependencies=[requires(Scope.LEASE)],
    openapi_extra=body_limit(LISTS_BYTES),
    responses=responses_for(LeaseNotFound),
)
async def add(task_id: UUID, call: LogsIn, connection: Writing, caller: Caller) -> None:
    """Pieces in their order; one that repeats is ignored. 64 KiB are kept of the beginning and of the end of a stream.

    Also after the lease has ended: the last output may be late.
    """
    attempt = await logs.attempt_of(connection, task_id, call.token, worker_of(caller))
    if attempt is None:
        raise LeaseNotFound
    for piece in call.pieces:
        await logs.add(connection, task_id, call.token, attempt, piece.stream, piece.start, piece.text)


@router.get(
    "/tasks/{task_id}/logs",
    operation_id="get_task_logs",
    summary="Read the output of a task",
    dependencies=[requires(Scope.READ, Scope.CONTENT, waits=True)],
    responses=responses_for(TaskNotFound, TooManyRequests),
)
async def page(
    task_id: UUID,
    request: Request,
    services: ServicesDep,
    namespace: Within,
    attempt: Annotated[int | None, Query(ge=1, le=1_000_000, description="only of this attempt")] = None,
    stream: Annotated[Stream | None, Query(description="only this one")] = None,
    after: Annotated[str | None, Query(max_length=MAX_POSITION, description="`next` of the page before")] = None,
    wait_seconds: Annotated[float, Query(ge=0, le=30)] = 0,
) -> LogPage:
    """All that its attempts wrote to stdout and stderr, logs included; a program's stdout is its result instead.

    Waits up to `wait_seconds` for more while the task is not finished. Text is as the handler wrote it, escapes too.
    """
    position = _parse(after)
    reading = _Reading(services, task_id, namespace, attempt, stream)
    if not wait_seconds:
        return await reading.page(position)
    answer = await until_disconnect(request, _wait_for_page(request, services, reading, position, wait_seconds))
    # None: the client hung up, and nobody will see this answer.
    return answer or LogPage(items=[], next=str(position), state=TaskState.PENDING)


class _Reading:
    """Pages of the output of one task."""

    def __init__(
        self, services: Services, task_id: UUID, namespace: str | None, attempt: int | None, stream: Stream | None
    ) -> None:
        self._services = services
        self._task_id = task_id
        self._namespace = namespace
        self._attempt = attempt
        self._stream = stream

    async def page(self, position: Position) -> LogPage:
        """The page behind the position. Raises TaskNotFound."""
        async with self._services[EventReaders].slots, self._services.database.reading() as connection:
            # First, so that a final state is told only together with all that was written before.
            state = await logs.task_state(connection, self._task_id, self._namespace)
            if state is None:
                raise TaskNotFound
            segments = await logs.read(
                connection,
                self._task_id,
                position,
                attempt=self._attempt,
                stream=self._stream,
                limit=_PAGE_SEGMENTS,
            )
        items: list[LogPieceOut] = []
        for segment in segments:
            text, skipped = rest_of(segment.text, segment.start, position.offset(segment.token, segment.stream))
            start = segment.ending - len(text.encode())
            fields = {name: getattr(segment, name) for name in ("attempt", "token", "stream", "at")}
            items.append(LogPieceOut(**fields, start=start, skipped=skipped, text=text))
            position = position.after(segment.token, segment.stream, segment.ending)
        return LogPage(items=items, next=str(position), state=state)


async def _wait_for_page(
    request: Request, services: Services, reading: _Reading, position: Position, wait_seconds: float
) -> LogPage:
    """The first page with something on it, or the empty one after the wait or of a finished task."""
    clock = asyncio.get_running_loop().time
    end = clock() + wait_seconds
    key_id = request.state.principal.key_id
    services[EventReaders].add(key_id)
    try:
        while True:
            page = await reading.page(position)
            remaining_seconds = end - clock()
            if page.items or page.state in FINISHED or remaining_seconds <= 0 or services.stopping:
                return page
            await asyncio.sleep(min(_POLL_SECONDS, remaining_seconds))
            await admit(services, request.headers.get("authorization"), Scope.READ, Scope.CONTENT)
    finally:
        services[EventReaders].remove(key_id)


def _parse(text: str | None) -> Position:
    position = Position() if text is None else parse_position(text)
    if position is None:
        message = "not a position; use `next` of a page"
        raise RequestValidationError([{"type": "position", "loc": ("query", "after"), "msg": message}])
    return position
