"""Events: every change of a task, a goal or the system, in an order in which no reader misses one."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any
from uuid import UUID

from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncConnection

from app.db import notify
from app.db.folds import HORIZON
from app.kernel.events import TaskEvent


@dataclass(frozen=True, slots=True, kw_only=True)
class Cursor:
    """Position between two events; as text `TRANSACTION-SEQ`."""

    transaction: int
    seq: int

    def __str__(self) -> str:
        return f"{self.transaction}-{self.seq}"


BEGINNING = Cursor(transaction=0, seq=0)
_LAST_SEQ = 2**63 - 1


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
    token: int | None
    detail: dict[str, Any] | None


_APPEND = text("""
INSERT INTO events (kind, task_id, agent_type, goal_id, worker_id, token, detail, priority, seconds, quality)
VALUES (:kind, :task_id, :agent_type, :goal_id, :worker_id, :token, CAST(:detail AS jsonb), :priority,
        extract(epoch FROM now() - CAST(:leased_at AS timestamptz)), :quality)
""")

_APPEND_SYSTEM = text("INSERT INTO events (kind, detail) VALUES (:kind, CAST(:detail AS jsonb))")


_READ = text(f"""
SELECT transaction, seq, at, kind, task_id, agent_type, goal_id, worker_id, token, detail FROM events
WHERE (transaction, seq) > (:transaction, :seq)
  AND transaction < {HORIZON}
ORDER BY transaction, seq LIMIT :limit
""")

_NOW = text(f"SELECT {HORIZON} - 1")


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


async def append_system(connection: AsyncConnection, kind: str, detail: Mapping[str, Any]) -> None:
    """Append an event of the system as a whole, in the transaction of the change."""
    await connection.execute(_APPEND_SYSTEM, {"kind": kind, "detail": json.dumps(detail)})
    notify.note(connection, notify.EVENTS)


async def read(connection: AsyncConnection, start: Cursor, limit: int) -> Sequence[Event]:
    """Return up to `limit` events that follow the cursor, oldest first."""
    values = {"transaction": start.transaction, "seq": start.seq, "limit": limit}
    rows = (await connection.execute(_READ, values)).mappings()
    return [
        Event(
            cursor=Cursor(transaction=row["transaction"], seq=row["seq"]), **{name: row[name] for name in _PLAIN_FIELDS}
        )
        for row in rows
    ]


_PLAIN_FIELDS = ("at", "kind", "task_id", "agent_type", "goal_id", "worker_id", "token", "detail")


async def latest(connection: AsyncConnection) -> Cursor:
    """Return a cursor for now, which all later events follow."""
    return Cursor(transaction=(await connection.execute(_NOW)).scalar_one(), seq=_LAST_SEQ)
