"""Cursors of readers: whether all that follows one is still kept, and whether it can have been given to anybody."""

from sqlalchemy.ext.asyncio import AsyncConnection

from app.queue.errors import CursorAhead, CursorExpired
from app.queue.store import events
from app.queue.store.events import Cursor


async def check(connection: AsyncConnection, cursor: Cursor) -> None:
    """Check a cursor that a client has stored. Raises CursorExpired, CursorAhead."""
    span = await events.kept_span(connection)
    if span.dropped_until is not None and cursor < span.dropped_until:
        raise CursorExpired(
            "events that follow this cursor are older than the service keeps them (CONVENER_EVENTS_DAYS): read how "
            "things stand now (GET /tasks, GET /goals), and go on with `after=now` or without `after`"
        )
    if cursor.transaction > span.latest_transaction:
        raise CursorAhead(
            "this cursor is ahead of every event: it comes from another service, or from before an older state was "
            "restored or a standby promoted that lagged; read how things stand now, and go on with `after=now`"
        )
