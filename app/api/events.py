"""Every change of state, from a cursor on."""

import asyncio
import re
from collections.abc import Collection, Sequence
from typing import Annotated, Any
from uuid import UUID

from fastapi import APIRouter, Query
from fastapi.exceptions import RequestValidationError
from pydantic import BaseModel
from starlette.requests import Request

from app.api.access import requires
from app.api.fields import Limit, Moment
from app.api.services import Services, ServicesDep
from app.api.waiting import until_gone
from app.domain.access import Scope
from app.store import announcements, events
from app.store.events import BEGINNING, Cursor, Event

router = APIRouter(prefix="/events", tags=["events"])
_LOOK_AGAIN_SECONDS = 1.0


class EventOut(BaseModel):
    """One change of a task's state."""

    cursor: str
    at: Moment
    kind: str
    task_id: UUID
    agent_type: str
    goal_id: str | None
    worker_id: UUID | None
    token: int | None
    detail: dict[str, Any] | None


class EventPage(BaseModel):
    """Oldest first; store `next` and pass it as `after`, and you receive each event exactly once."""

    items: list[EventOut]
    next: str


@router.get("", summary="Follow events", dependencies=[requires(Scope.READ)])
async def page(
    request: Request,
    services: ServicesDep,
    after: Annotated[
        str | None, Query(description="`next` of the page before, `now`, or absent: from the start")
    ] = None,
    goal_id: Annotated[str | None, Query(max_length=200)] = None,
    limit: Limit = 200,
    wait_seconds: Annotated[float, Query(ge=0, le=30)] = 0,
) -> EventPage:
    """In an order in which no event is ever missed; waits up to `wait_seconds` for the first."""
    start = await _start(services, after)
    follow = _follow(services, start, goal_id, limit, wait_seconds)
    found = await (until_gone(request, follow) if wait_seconds else follow)
    items, cursor = found or ([], start)
    return EventPage(items=[EventOut.model_validate(_plain(event)) for event in items], next=str(cursor))


async def _follow(
    services: Services, cursor: Cursor, goal_id: str | None, limit: int, wait_seconds: float
) -> tuple[Sequence[Event], Cursor]:
    """Read until something is there. No connection is held between two looks."""
    end = asyncio.get_running_loop().time() + wait_seconds
    with _Bell(services) as bell:
        while True:
            async with services.database.transaction() as connection:
                found = await events.read(connection, cursor, limit)
            cursor = found[-1].cursor if found else cursor
            wanted = [event for event in found if goal_id is None or event.goal_id == goal_id]
            left = end - asyncio.get_running_loop().time()
            if wanted or left <= 0 or services.stopping:
                return wanted, cursor
            if not found:
                await bell.wait(min(left, _LOOK_AGAIN_SECONDS))


class _Bell:
    """Rings when something has happened."""

    def __init__(self, services: Services) -> None:
        self._announcer = services.database.announcer
        self._event = asyncio.Event()

    def __enter__(self) -> "_Bell":
        self._announcer.subscribe(self._hear)
        return self

    def __exit__(self, *_: object) -> None:
        self._announcer.unsubscribe(self._hear)

    async def wait(self, seconds: float) -> None:
        """Until it rings; a little longer when it does, so that a burst is read as one page."""
        try:
            await asyncio.wait_for(self._event.wait(), seconds)
            await asyncio.sleep(0.01)
        except TimeoutError:
            pass
        self._event.clear()

    def _hear(self, topics: Collection[str]) -> None:
        if announcements.EVENTS in topics:
            self._event.set()


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


def _plain(event: Event) -> dict[str, Any]:
    return {name: getattr(event, name) for name in EventOut.model_fields} | {"cursor": str(event.cursor)}
