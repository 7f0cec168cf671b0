"""Events: every change of a task, a goal or the system, in an order in which no reader misses one."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any
from uuid import UUID

from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncConnection

from app.db import folds, namespaces, notify, retention
from app.db.folds import Horizon
from app.db.pages import PAGE_BYTES, within_bytes
from app.db.turns import turn
from app.kernel.events import TaskEvent
from app.queue.store import event_rows
from app.queue.store.worker_names import worker_name


@dataclass(frozen=True, slots=True, kw_only=True, order=True)
class Cursor:
    """Position between two events; as text `TRANSACTION-SEQ`."""

    transaction: int
    seq: int

    def __str__(self) -> str:
        return f"{self.transaction}-{self.seq}"


BEGINNING = Cursor(transaction=0, seq=0)


@dataclass(frozen=True, slots=True, kw_only=True)
class KeptSpan:
    """The last event that housekeeping has dropped, None where it has dropped none, and the newest number there is."""

    dropped_until: Cursor | None
    latest_transaction: int


@dataclass(frozen=True, slots=True, kw_only=True)
class EventBatch:
    """Events, and the cursor to go on from.

    `has_more`: there may be more already. `is_held`: an open transaction may keep some waiting. `is_ahead`: the cursor
    is beyond what can be read now, as one of before a failover may be. Transactions before `complete_until` have ended.
    """

    items: Sequence["Event"]
    next: Cursor
    has_more: bool
    is_held: bool
    is_ahead: bool
    complete_until: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Event:
    """One change of the state of a task or a goal, or of the system as a whole."""

    cursor: Cursor
    at: datetime
    kind: str
    task_id: UUID | None
    agent_type: str | None
    goal_id: str | None
    worker_id: UUID | None
    worker_name: str | None
    token: int | None
    detail: dict[str, Any] | None


_APPEND = text("""
INSERT INTO events (kind, task_id, agent_type, goal_id, worker_id, token, detail, priority, seconds, quality)
VALUES (:kind, :task_id, :agent_type, :goal_id, :worker_id, :token, CAST(:detail AS jsonb), :priority,
        CASE WHEN CAST(:leased_at AS timestamptz) IS NOT NULL
             THEN greatest(extract(epoch FROM now() - CAST(:leased_at AS timestamptz)), 0) END, :quality)
""")

_APPEND_SYSTEM = text("""
INSERT INTO events (kind, detail, worker_id) VALUES (:kind, CAST(:detail AS jsonb), :worker_id)
""")


_READ = text(
    within_bytes(f"""
WITH {event_rows.window(":limit")}
SELECT transaction, seq, at, kind, task_id, agent_type, goal_id, worker_id, {worker_name("event")}, token, detail
FROM event ORDER BY transaction, seq
""")
)

# A window of events of all namespaces, so that the cost is bounded however rare those of this one are. Events of the
# system as a whole, which are about no task and no goal, are of no namespace.
_READ_WITHIN = f"""
WITH {event_rows.window(":window")}, own AS ({{own}}), edge AS (
    SELECT transaction AS edge_transaction, seq AS edge_seq, (SELECT count(*) FROM event) AS looked_at
    FROM event ORDER BY transaction DESC, seq DESC LIMIT 1
)
SELECT edge.*, own.* FROM edge LEFT JOIN own ON true ORDER BY own.transaction, own.seq
"""
_OWN = within_bytes(f"""
SELECT *, {worker_name("event")} FROM event WHERE (task_id IS NOT NULL OR goal_id IS NOT NULL) AND {{condition}}
ORDER BY transaction, seq LIMIT :limit
""")
_WINDOW = 2000


# By halves: the number of a transaction and the time of its events rise together, but for the length of a transaction,
# and no index is by time alone. Some forty looks at the primary key, however many events there are.
_AT = text("""
WITH RECURSIVE search (low, high) AS (
    SELECT least(coalesce((SELECT transaction FROM events ORDER BY transaction, seq LIMIT 1), :last), :last) - 1,
           CAST(:last AS bigint)
    UNION ALL
    SELECT CASE WHEN is_early THEN middle ELSE low END, CASE WHEN is_early THEN high ELSE middle END
    FROM (SELECT low, high, low + (high - low) / 2 AS middle FROM search WHERE high - low > 1) half
    CROSS JOIN LATERAL (
        SELECT coalesce((
            SELECT at < :moment FROM events WHERE transaction >= middle ORDER BY transaction, seq LIMIT 1
        ), false) AS is_early
    ) look
)
SELECT high FROM search ORDER BY high - low LIMIT 1
""")
# Longer than any transaction that writes events; what has its time from the start of one may come so much later.
_LONGEST = timedelta(seconds=30)

_KEPT = text(f"""
SELECT (pg_snapshot_xmax(pg_current_snapshot())::text)::bigint + convener_transaction_offset() AS latest,
       dropped.transaction, dropped.seq
FROM (SELECT) one LEFT JOIN folds dropped ON dropped.name = '{retention.DROPPED}'
""")


async def append(
    connection: AsyncConnection,
    event: TaskEvent,
    *,
    task_id: UUID,
    agent_type: str,
    goal_id: str | None,
    worker_id: UUID | None = None,
    token: int | None = None,
    detail: str | None = None,
    priority: int | None = None,
    leased_at: datetime | None = None,
    quality: float | None = None,
) -> None:
    """Append an event of a task, in the transaction of the change.

    For the end of an attempt, `leased_at` is its beginning and `quality` what it says of its agent, 0 to 1.
    """
    values = {"task_id": task_id, "agent_type": agent_type, "goal_id": goal_id, "worker_id": worker_id}
    values |= {"priority": priority, "leased_at": leased_at, "quality": quality}
    await connection.execute(_APPEND, {"kind": event.value, "token": token, "detail": detail, **values})
    notify.note(connection, notify.EVENTS)


async def append_system(
    connection: AsyncConnection, kind: str, detail: Mapping[str, Any], worker_id: UUID | None = None
) -> None:
    """Append an event of a worker, or of the system as a whole, in the transaction of the change."""
    values = {"kind": kind, "detail": json.dumps(detail), "worker_id": worker_id}
    await connection.execute(_APPEND_SYSTEM, values)
    notify.note(connection, notify.EVENTS)


async def read_batch(
    connection: AsyncConnection, start: Cursor, namespace: str | None, limit: int, max_bytes: int | None = None
) -> EventBatch:
    """Return up to `limit` events that follow the cursor, oldest first, as far as `max_bytes` or a page hold them.

    Only of one namespace if one is given. A batch may be empty and still not the last, where events of other namespaces
    fill the window that it reads.
    """
    horizon = await folds.horizon(connection, "events")
    until = horizon.transaction
    edges: dict[str, Any] = {"is_held": horizon.is_held, "is_ahead": start.transaction > until, "complete_until": until}
    values: dict[str, Any] = {**_span(start, horizon), "limit": limit, "page_bytes": max_bytes or PAGE_BYTES}
    if namespace is None:
        rows = (await connection.execute(_READ, values)).mappings().all()
        await turn(connection)
        items = [_event(row) for row in rows]
        following = items[-1].cursor if items else start
        return EventBatch(items=items, next=following, has_more=_is_full(rows, limit), **edges)
    statement = text(_READ_WITHIN.format(own=_OWN.format(condition=namespaces.condition(namespace))))
    values |= {"window": _WINDOW, "namespace": namespace}
    rows = (await connection.execute(statement, values)).mappings().all()
    await turn(connection)
    if not rows:
        return EventBatch(items=[], next=start, has_more=False, **edges)
    own_rows = [row for row in rows if row["transaction"] is not None]
    items = [_event(row) for row in own_rows]
    edge = Cursor(transaction=rows[0]["edge_transaction"], seq=rows[0]["edge_seq"])
    is_full = _is_full(own_rows, limit)
    return EventBatch(
        items=items,
        next=items[-1].cursor if is_full else edge,
        has_more=is_full or rows[0]["looked_at"] == _WINDOW,
        **edges,
    )


def _is_full(rows: Sequence[Mapping[Any, Any]], limit: int) -> bool:
    return bool(rows) and (len(rows) == limit or rows[0]["page_rows"] > len(rows))


def _event(row: Any) -> Event:
    return Event(
        cursor=Cursor(transaction=row["transaction"], seq=row["seq"]), **{name: row[name] for name in _PLAIN_FIELDS}
    )


_PLAIN_FIELDS = ("at", "kind", "task_id", "agent_type", "goal_id", "worker_id", "worker_name", "token", "detail")


async def latest(connection: AsyncConnection) -> Cursor:
    """Return a cursor for now, which all later events follow."""
    horizon = await folds.horizon(connection, "events")
    return Cursor(transaction=horizon.transaction, seq=horizon.seq)


async def cursor_before(connection: AsyncConnection, moment: datetime) -> Cursor:
    """Return a cursor that all events of this moment and later follow, and few of before."""
    horizon = await folds.horizon(connection, "events")
    values = {"last": max(horizon.transaction, 1), "moment": moment - _LONGEST}
    cursor = Cursor(transaction=(await connection.execute(_AT, values)).scalar_one(), seq=0)
    dropped = (await kept_span(connection)).dropped_until
    return max(cursor, dropped) if dropped else cursor


async def kept_span(connection: AsyncConnection) -> KeptSpan:
    """Return how far back events are kept, and how far they can reach."""
    row = (await connection.execute(_KEPT)).mappings().one()
    dropped = None if row["transaction"] is None else Cursor(transaction=row["transaction"], seq=row["seq"] or 0)
    return KeptSpan(dropped_until=dropped, latest_transaction=row["latest"])


async def bounds(connection: AsyncConnection, start: Cursor) -> dict[str, int]:
    """Return the parameters of a statement that reads from a cursor on, as far as no event can be missing any more."""
    return _span(start, await folds.horizon(connection, "events"))


def _span(start: Cursor, horizon: Horizon) -> dict[str, int]:
    last = {"last_transaction": horizon.transaction, "last_seq": horizon.seq}
    return {"transaction": start.transaction, "seq": start.seq, **last}
