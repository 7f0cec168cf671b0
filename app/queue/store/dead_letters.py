"""Dead letters: tasks that failed for good. They are found, put back into the queue, or forgotten."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from uuid import UUID

from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncConnection

from app.db import notify
from app.kernel.lanes import Priority
from app.queue.rules.events import TaskEvent
from app.queue.store import dependencies, history, lanes
from app.queue.store.listing import Selection
from app.queue.store.tables import KEPT_COLUMNS

# The newest of a priority go first: they have waited least.
_DISPLACE = text(f"""
WITH ours AS MATERIALIZED (
    SELECT id FROM tasks WHERE priority = :priority AND priority <= 4 AND state = 'pending' AND run_at IS NULL
    ORDER BY waiting_since DESC LIMIT :count FOR UPDATE SKIP LOCKED
), deleted AS (
    DELETE FROM tasks t USING ours WHERE t.id = ours.id RETURNING t.*
), finished AS (
    {history.entry("deleted", "'failed'", error="CAST(:error AS jsonb)")}
), told AS (
    INSERT INTO events (kind, task_id, agent_type, goal_id, priority, detail)
    SELECT 'task.displaced', id, agent_type, goal_id, priority, CAST(:error AS jsonb) FROM deleted
)
SELECT id, has_dependents FROM deleted
""")


@dataclass(frozen=True, slots=True, kw_only=True)
class Letter:
    """A dead letter: when its task failed, and its place among those of its goal and lane that were found with it."""

    id: UUID
    finished_at: datetime
    place: int


_FAILED = "state = 'failed'"
# A goal that has stopped gets no more work done.
_GOES_ON = "NOT EXISTS (SELECT FROM goals g WHERE g.id = {letter}.goal_id AND g.state = 'stopped')"
_MAY_RUN = _GOES_ON.format(letter="task_history")

_ONE = text(f"SELECT id, finished_at, 1 AS place FROM task_history WHERE id = :id AND {_FAILED}")

# Both take the rows in the order of their ids, so two of them wait for each other at most one way. Whoever comes
# second finds the letter gone.
_CHOSEN = """
SELECT h.id, h.finished_at, given.place
FROM unnest(CAST(:ids AS uuid[]), CAST(:moments AS timestamptz[]), CAST(:places AS bigint[]))
    AS given (id, finished_at, place)
JOIN task_history h ON h.id = given.id AND h.finished_at = given.finished_at
WHERE h.state = 'failed' AND {more} ORDER BY h.id FOR UPDATE OF h
"""

_ANEW = ("seq", "failures", "rescues", "worker_id", "leased_at", "waiting_since")
_BACK = ", ".join(column for column in KEPT_COLUMNS if column not in _ANEW)

# The token stays: no call of an earlier lease may ever fit the next one. The tags of a goal's tasks are one step
# apart from where the lane is now, so a thousand of one goal share it with the tasks of others.
_REQUEUE = text(f"""
WITH chosen AS ({_CHOSEN.format(more=_GOES_ON.format(letter="h"))}), gone AS (
    DELETE FROM task_history h USING chosen WHERE h.id = chosen.id AND h.finished_at = chosen.finished_at
    RETURNING h.*, chosen.place
), placed AS (
    SELECT gone.*, coalesce(lanes.virtual_time, 0) + gone.place / coalesce(goals.weight, 1) AS tag
    FROM gone
    LEFT JOIN lanes ON lanes.agent_type = gone.agent_type AND lanes.priority = gone.priority
    LEFT JOIN goals ON goals.id = gone.goal_id
), back AS (
    INSERT INTO tasks ({_BACK}, state, error, tag, waiting_since)
    SELECT {_BACK}, 'pending', error, tag, now() FROM placed ORDER BY placed.seq
    RETURNING id, seq, agent_type, goal_id, priority, token, tag
), told AS (
    INSERT INTO events (kind, task_id, agent_type, goal_id, priority, token, detail)
    SELECT '{TaskEvent.REQUEUED}', id, agent_type, goal_id, priority, token, CAST(:detail AS jsonb)
    FROM back ORDER BY seq
)
SELECT agent_type, priority, count(*) AS tasks, min(tag) AS tag FROM back GROUP BY agent_type, priority
""")

_PURGE = text(f"""
WITH chosen AS ({_CHOSEN.format(more="true")}), gone AS (
    DELETE FROM task_history h USING chosen WHERE h.id = chosen.id AND h.finished_at = chosen.finished_at
    RETURNING h.id, h.seq, h.agent_type, h.goal_id, h.priority, h.token, h.error
), forgotten AS (
    DELETE FROM task_attempts a USING gone WHERE a.task_id = gone.id
), told AS (
    INSERT INTO events (kind, task_id, agent_type, goal_id, priority, token, detail)
    SELECT '{TaskEvent.PURGED}', id, agent_type, goal_id, priority, token,
           CAST(:detail AS jsonb) || jsonb_build_object('code', error ->> 'code')
    FROM gone ORDER BY seq
)
SELECT count(*) FROM gone
""")


async def count(connection: AsyncConnection, selection: Selection, *, may_run: bool = False) -> int:
    """How many dead letters are selected; with `may_run` only those that may be put back into the queue."""
    query = text(f"SELECT count(*) FROM task_history WHERE {_selected(selection, may_run)}")
    number: int = (await connection.execute(query, selection.values())).scalar_one()
    return number


async def find(connection: AsyncConnection, selection: Selection, limit: int, *, may_run: bool = False) -> list[Letter]:
    """Up to `limit` of the selected dead letters, the oldest first; `may_run` as for `count`."""
    query = text(f"""
        SELECT id, finished_at, row_number() OVER (PARTITION BY agent_type, priority, goal_id ORDER BY seq) AS place
        FROM (SELECT * FROM task_history WHERE {_selected(selection, may_run)} ORDER BY seq LIMIT :limit) found
        ORDER BY seq
    """)
    rows = (await connection.execute(query, {**selection.values(), "limit": limit})).mappings()
    return [Letter(**row) for row in rows]


async def find_one(connection: AsyncConnection, task_id: UUID) -> Letter | None:
    """The dead letter of this task; None when there is none."""
    row = (await connection.execute(_ONE, {"id": task_id})).mappings().first()
    return Letter(**row) if row else None


async def requeue(connection: AsyncConnection, letters: Sequence[Letter], reason: str) -> int:
    """Put these back into the queue, as far as they are dead letters still and of goals that go on; returns how many.

    A task keeps its id, token, checkpoint, progress and attempts; its failures and rescues are counted anew. No
    capacity is asked for: it was accepted once.
    """
    rows = (await connection.execute(_REQUEUE, _arguments(letters, {"reason": reason}))).mappings().all()
    if rows:
        notify.note(connection, notify.EVENTS)
        notify.note_work(connection, lanes.lowest_tags(rows))
    return sum(row["tasks"] for row in rows)


async def purge(connection: AsyncConnection, letters: Sequence[Letter], reason: str) -> int:
    """Forget these tasks and their attempts, as far as they are dead letters still; returns how many were.

    An event is left of each.
    """
    gone: int = (await connection.execute(_PURGE, _arguments(letters, {"reason": reason}))).scalar_one()
    if gone:
        notify.note(connection, notify.EVENTS)
    return gone


def _selected(selection: Selection, may_run: bool) -> str:
    return selection.where(_FAILED, *([_MAY_RUN] if may_run else []))


def _arguments(letters: Sequence[Letter], detail: dict[str, str]) -> dict[str, object]:
    return {
        "ids": [letter.id for letter in letters],
        "moments": [letter.finished_at for letter in letters],
        "places": [letter.place for letter in letters],
        "detail": json.dumps(detail),
    }


async def displace(connection: AsyncConnection, *, below: Priority, count: int) -> int:
    """Move up to `count` waiting tasks of a lower priority to the dead letters; returns how many were moved."""
    message = "the queue was full and more urgent work came"
    error = json.dumps({"code": "displaced", "message": message, "retryable": True})
    displaced = 0
    for priority in sorted(p for p in Priority if p < below):
        values = {"priority": priority.value, "count": count - displaced, "error": error}
        rows = (await connection.execute(_DISPLACE, values)).all()
        displaced += len(rows)
        for row in rows:
            if row.has_dependents:
                await dependencies.cancel_dependents(connection, row.id, "was displaced by more urgent work")
        if displaced >= count:
            break
    if displaced:
        notify.note(connection, notify.EVENTS)
    return displaced
