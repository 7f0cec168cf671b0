"""Dead letters: tasks that failed for good, to be found, requeued or purged."""

import json
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from uuid import UUID

from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncConnection

from app.db import notify
from app.db.namespaces import WITHIN
from app.kernel.events import TaskEvent
from app.kernel.lanes import SPAN, Priority
from app.queue.store import dependencies, history, lanes
from app.queue.store.listing import Selection
from app.queue.store.tables import KEPT_COLUMNS

# The oldest of a priority go first; before `since` there are only dead index entries. A locked one is about to be
# leased.
_DISPLACE = text(f"""
WITH oldest AS MATERIALIZED (
    SELECT id FROM tasks
    WHERE priority = :priority AND priority <= 4 AND state = 'pending' AND blockers = 0 AND run_at IS NULL AND {WITHIN}
      AND waiting_since >= :since ORDER BY waiting_since, seq LIMIT :count FOR UPDATE SKIP LOCKED
), deleted AS (
    DELETE FROM tasks t USING oldest WHERE t.id = oldest.id RETURNING t.*
), finished AS (
    {history.entry("deleted", "'failed'", error="CAST(:error AS jsonb)")}
), logged AS (
    INSERT INTO events (kind, task_id, agent_type, goal_id, priority, detail)
    SELECT '{TaskEvent.DISPLACED}', id, agent_type, goal_id, priority, CAST(:error AS jsonb) FROM deleted
)
SELECT id, has_dependents, coalesce(submitted_priority, priority) AS submitted FROM deleted
""")


@dataclass(frozen=True, slots=True, kw_only=True)
class DeadLetter:
    """A failed task, and its place among those of its goal and lane that were found together with it."""

    id: UUID
    finished_at: datetime
    goal_id: str | None
    place: int
    resources: str | None


_FAILED = "state = 'failed'"
# A goal that has stopped gets no more work done.
_HAS_LIVE_GOAL = "NOT EXISTS (SELECT FROM goals g WHERE g.id = {letter}.goal_id AND g.state = 'stopped')"
_MAY_RUN = _HAS_LIVE_GOAL.format(letter="task_history")

_ONE = text(f"""
SELECT id, finished_at, goal_id, 1 AS place, CAST(resources AS text) AS resources
FROM task_history WHERE id = :id AND {_FAILED} AND {WITHIN}
""")

# Requeueing and purging lock rows in the order of their ids, so two of them cannot deadlock; the second finds the row
# gone. The time of failure names the partition, so that each row costs one probe, and OFFSET 0 keeps it one: joined,
# all dead letters that there are would be read, and with the state inside, for each letter the index of all of them.
_CHOSEN = """
SELECT h.id, h.finished_at, letter.place
FROM (
    SELECT * FROM unnest(CAST(:ids AS uuid[]), CAST(:moments AS timestamptz[]), CAST(:places AS bigint[]))
        AS letter (id, finished_at, place) ORDER BY id
) letter CROSS JOIN LATERAL (
    SELECT id, finished_at, state FROM task_history
    WHERE task_history.id = letter.id AND task_history.finished_at = letter.finished_at
      AND {condition} OFFSET 0 FOR UPDATE
) h WHERE h.state = 'failed'
"""
_DELETE_CHOSEN = """DELETE FROM task_history h
    WHERE h.id = ANY (ARRAY(SELECT id FROM chosen)) AND h.finished_at = ANY (ARRAY(SELECT finished_at FROM chosen))"""

_PRIORITIES = ("priority", "submitted_priority")
_ANEW = ("seq", "failures", "rescues", "unacknowledged", "worker_id", "leased_at", "waiting_since")
_REQUEUED_COLUMNS = ", ".join(column for column in KEPT_COLUMNS if column not in (*_ANEW, *_PRIORITIES))

# The token stays, because no call of an earlier lease may ever fit a later one. Tags follow the lane's virtual time one
# step of the goal's weight apart, so a thousand tasks of one goal share the lane with those of others.
# All that is chosen is locked, and so deleted; a full join of the two is never a nested loop.
_REQUEUE = text(f"""
WITH chosen AS ({_CHOSEN.format(condition=_MAY_RUN)}), deleted AS (
    {_DELETE_CHOSEN}
    RETURNING h.*, coalesce(CAST(:priority AS smallint), h.priority) AS new_priority,
              CASE WHEN CAST(:priority AS smallint) IS NULL THEN h.submitted_priority END AS new_submitted
), placed AS (
    SELECT deleted.*, class.id AS resource_class,
           coalesce(CASE WHEN resources IS NULL THEN lanes.virtual_time
                         ELSE coalesce(class_lane.virtual_time, -class.id * {SPAN:.0f}::float8) END, 0)
               + chosen.place / coalesce(goals.weight, 1) AS tag
    FROM deleted FULL JOIN chosen USING (id)
    LEFT JOIN resource_classes class ON class.request = deleted.resources
    LEFT JOIN resource_lanes class_lane
        ON class_lane.resource_class = class.id AND class_lane.agent_type = deleted.agent_type
        AND class_lane.priority = deleted.new_priority
    LEFT JOIN lanes ON lanes.agent_type = deleted.agent_type AND lanes.priority = deleted.new_priority
    LEFT JOIN goals ON goals.id = deleted.goal_id
), requeued AS (
    INSERT INTO tasks ({_REQUEUED_COLUMNS}, priority, submitted_priority, state, error, tag, waiting_since,
                       resource_class, run_at)
    SELECT {_REQUEUED_COLUMNS}, new_priority, new_submitted, 'pending', error, tag, now(), resource_class,
           CASE WHEN goal_id = ANY (CAST(:held_goals AS text[])) THEN 'infinity'::timestamptz END
    FROM placed ORDER BY placed.seq
    RETURNING id, seq, agent_type, goal_id, priority, token, tag, run_at
), logged AS (
    INSERT INTO events (kind, task_id, agent_type, goal_id, priority, token, detail)
    SELECT '{TaskEvent.REQUEUED}', id, agent_type, goal_id, priority, token, CAST(:detail AS jsonb)
    FROM requeued ORDER BY seq
)
SELECT agent_type, priority, count(*) AS tasks, min(tag) FILTER (WHERE run_at IS NULL) AS tag FROM requeued
GROUP BY agent_type, priority, {lanes.sql_class_of("tag")}
""")

_PURGE = text(f"""
WITH chosen AS ({_CHOSEN.format(condition="true")}), deleted AS (
    {_DELETE_CHOSEN}
    RETURNING h.id, h.seq, h.agent_type, h.goal_id, h.priority, h.token, h.error
), purged_attempts AS (
    DELETE FROM task_attempts WHERE task_id = ANY (ARRAY(SELECT id FROM deleted))
), purged_logs AS (
    DELETE FROM task_logs WHERE task_id = ANY (ARRAY(SELECT id FROM deleted))
), logged AS (
    INSERT INTO events (kind, task_id, agent_type, goal_id, priority, token, detail)
    SELECT '{TaskEvent.PURGED}', id, agent_type, goal_id, priority, token,
           CAST(:detail AS jsonb) || jsonb_build_object('code', error ->> 'code')
    FROM deleted ORDER BY seq
)
SELECT count(*) FROM deleted
""")


async def count(connection: AsyncConnection, selection: Selection, *, may_run: bool = False) -> int:
    """Number of selected dead letters; with `may_run` only of those that may be requeued."""
    query = text(f"SELECT count(*) FROM task_history WHERE {_condition(selection, may_run)}")
    number: int = (await connection.execute(query, selection.values())).scalar_one()
    return number


async def find(
    connection: AsyncConnection, selection: Selection, limit: int, *, may_run: bool = False
) -> list[DeadLetter]:
    """Return up to `limit` of the selected dead letters, the oldest first; `may_run` as for `count`."""
    query = text(f"""
        SELECT id, finished_at, goal_id, CAST(resources AS text) AS resources,
               row_number() OVER (PARTITION BY agent_type, priority, goal_id ORDER BY seq) AS place
        FROM (SELECT * FROM task_history WHERE {_condition(selection, may_run)} ORDER BY seq LIMIT :limit) letter
        ORDER BY seq
    """)
    rows = (await connection.execute(query, {**selection.values(), "limit": limit})).mappings()
    return [DeadLetter(**row) for row in rows]


async def find_one(connection: AsyncConnection, task_id: UUID, namespace: str | None = None) -> DeadLetter | None:
    """Return the dead letter of this task, of this namespace if one is given; None when it has not failed."""
    row = (await connection.execute(_ONE, {"id": task_id, "namespace": namespace})).mappings().first()
    return DeadLetter(**row) if row else None


async def requeue(
    connection: AsyncConnection,
    letters: Sequence[DeadLetter],
    reason: str,
    priority: Priority | None = None,
    *,
    held_goals: Collection[str] = (),
) -> int:
    """Requeue those that are still dead letters, unless their goal has stopped; return their number.

    What they ask for has classes, and the held goals stay so, until the transaction ends.

    With a priority they count as submitted with that one; without it each keeps its own.

    A task keeps its id, token, checkpoint, progress and attempts; its failures, rescues and unacknowledged leases are
    counted anew. The limit of the queue does not apply: the task was accepted once.
    """
    values = {**_arguments(letters, {"reason": reason}), "priority": None if priority is None else priority.value}
    values["held_goals"] = list(held_goals)
    rows = (await connection.execute(_REQUEUE, values)).mappings().all()
    if rows:
        notify.note(connection, notify.EVENTS)
        notify.note_work(connection, lanes.lowest_tags(row for row in rows if row["tag"] is not None))
    return sum(row["tasks"] for row in rows)


async def purge(connection: AsyncConnection, letters: Sequence[DeadLetter], reason: str) -> int:
    """Delete those that are still dead letters, with their attempts; return their number. An event is left of each."""
    count: int = (await connection.execute(_PURGE, _arguments(letters, {"reason": reason}))).scalar_one()
    if count:
        notify.note(connection, notify.EVENTS)
    return count


def _condition(selection: Selection, may_run: bool) -> str:
    return selection.where(_FAILED, *([_MAY_RUN] if may_run else []))


def _arguments(letters: Sequence[DeadLetter], detail: dict[str, str]) -> dict[str, object]:
    return {
        "ids": [letter.id for letter in letters],
        "moments": [letter.finished_at for letter in letters],
        "places": [letter.place for letter in letters],
        "detail": json.dumps(detail),
    }


async def displace(
    connection: AsyncConnection,
    *,
    below: Priority,
    count: int,
    since: Mapping[Priority, datetime],
    namespace: str | None = None,
) -> Counter[Priority]:
    """Fail up to `count` waiting tasks of lower priorities, the lowest and oldest first.

    Return how many were displaced, by their priority at submit. No task of a priority became ready before its time in
    `since`. With a namespace only tasks of its own.
    """
    message = "the queue was full and more urgent work came"
    error = json.dumps({"code": "displaced", "message": message, "retryable": True})
    displaced: Counter[Priority] = Counter()
    for priority in sorted(p for p in Priority if p < below):
        values: dict[str, object] = {
            "priority": priority.value,
            "count": count - displaced.total(),
            "error": error,
            "namespace": namespace,
            "since": since[priority],
        }
        rows = (await connection.execute(_DISPLACE, values)).all()
        displaced.update(Priority(row.submitted) for row in rows)
        for row in rows:
            if row.has_dependents:
                await dependencies.cancel_dependents(connection, row.id, "was displaced by more urgent work")
        if displaced.total() >= count:
            break
    if displaced:
        notify.note(connection, notify.EVENTS)
    return displaced
