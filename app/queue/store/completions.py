"""The hot path: renew leases and complete tasks, by one statement for all concurrent callers.

Lock order, here and everywhere: workers before tasks, several rows of a table by id. All of these statements skip what
others have locked, so that one row does not hold up its batch; its caller tries again by itself. Only therefore may a
completion lock tasks in the order of the calls, and not by id: it waits for none of them, so in no circle either. And
only therefore may a claim accept results: SKIP LOCKED may lock the newest version of a row that another transaction is
finishing, so a claim and a completion of one transaction would deadlock where either waits for tasks.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import NamedTuple
from uuid import UUID

import asyncpg

from app.db.hot_path import columns
from app.kernel.agents import AgentType
from app.kernel.events import TaskEvent
from app.kernel.ids import TaskId, WorkerId
from app.kernel.lanes import Lane
from app.queue.rules.tasks import LeasePolicy
from app.queue.store import counters, dependencies, event_rows, history
from app.queue.store.tables import KEPT_COLUMNS


class Completion(NamedTuple):
    """A result, fenced by task, token and worker. `result` and `usage` are JSON text; the quality is 0 to 1."""

    task_id: TaskId
    token: int
    worker_id: WorkerId
    result: str
    result_hash: bytes
    usage: str | None
    quality: float | None = None


class ServiceTime(NamedTuple):
    """Time for which a completed task held its lease."""

    agent_type: AgentType
    seconds: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Renewal:
    """Renewal of one lease; progress and the checkpoint for the next attempt are JSON text, None keeps the old ones."""

    task_id: TaskId
    token: int
    worker_id: WorkerId
    progress: str | None = None
    checkpoint: str | None = None


_AGENTS = {str(agent): agent for agent in AgentType}

# The fence: exactly this lease, of this worker, not expired yet. Whoever lost a lease holds an old token, so what it
# still sends changes nothing. IS NOT DISTINCT FROM keeps the planner from any index by worker, where it would walk over
# all dead entries of the worker; the key of the task leads to one row.
_FENCE = """t.id = c.task_id AND t.token = c.token AND t.worker_id IS NOT DISTINCT FROM c.worker_id
    AND t.state IN ('assigned', 'executing') AND t.lease_expires_at > now()"""


class Arrays(NamedTuple):
    """The parameters of a statement that are the columns of its completions, as SQL expressions."""

    task_ids: str = "$1::uuid[]"
    tokens: str = "$2::bigint[]"
    worker_ids: str = "$3::uuid[]"
    results: str = "$4::jsonb[]"
    hashes: str = "$5::bytea[]"
    usages: str = "$6::jsonb[]"
    qualities: str = "$7::float8[]"


_ARRAYS = Arrays()


# The other columns of a call are looked up by its place, which costs less than to unnest each, and copies no results
# from step to step. A look for a result walks over those before it, which the number of calls bounds.
def _calls(arrays: Arrays = _ARRAYS) -> str:
    return f"""(
    SELECT task_id, ({arrays.tokens})[place] AS token, ({arrays.worker_ids})[place] AS worker_id, place
    FROM unnest({arrays.task_ids}) WITH ORDINALITY AS task (task_id, place)
) c"""


# Never negative, also when the clock of the database was set back.
SECONDS = "greatest(date_part('epoch', now() - deleted.leased_at), 0)"
COMPLETION_EVENTS = event_rows.TaskEvents(
    f"'{TaskEvent.COMPLETED}'",
    "deleted",
    "place",
    {"worker_ids": "worker_id", "tokens": "token", "all_seconds": f"({SECONDS})::real", "qualities": "quality"},
)
COMPLETION_MOVES = counters.Move("deleted", "state")


# Not all, as each column is looked up in every step that passes it on, whenever the statement starts. What most steps
# read comes first, as whoever reads a column of a row walks over those before it.
_COMMON_COLUMNS = (
    "id",
    "worker_id",
    "token",
    "leased_at",
    "agent_type",
    "priority",
    "submitted_priority",
    "state",
    "goal_id",
)
_KEPT = [f"t.{name}" for name in dict.fromkeys((*_COMMON_COLUMNS, *KEPT_COLUMNS))]
_WITHOUT_DEPENDENTS = "NOT t.has_dependents"


# A row is locked where it is found, so that nothing carries the results through a sort, and deleted by its place in the
# table instead of by another look for its id. One that has changed since the statement began is left alone, like one
# that is locked.
def deletion(arrays: Arrays, condition: str = _WITHOUT_DEPENDENTS) -> str:
    """Return the CTEs `fenced`, with the `place` of each call, and `deleted`: the tasks completed, with theirs."""
    return f"""fenced AS MATERIALIZED (
    SELECT locked.ctid, c.place FROM {_calls(arrays)} LEFT JOIN LATERAL (
        SELECT t.ctid FROM tasks t WHERE {_FENCE} AND {condition} FOR UPDATE OF t SKIP LOCKED
    ) locked ON true
), deleted AS (
    DELETE FROM tasks t USING fenced WHERE t.ctid = fenced.ctid AND {counters.COUNTS_ITSELF}
    RETURNING fenced.place, ({arrays.qualities})[fenced.place] AS quality, {", ".join(_KEPT)}
)"""


def finish(arrays: Arrays) -> str:
    """Return the INSERT that takes the tasks of `deleted` into history."""
    return history.entry(
        "deleted",
        "'completed'",
        result=f"({arrays.results})[place]",
        result_hash=f"({arrays.hashes})[place]",
        usage=f"({arrays.usages})[place]",
        quality="quality",
        # There is nothing to try again.
        retry_delays="'{}'",
    )


def _completion(condition: str) -> str:
    return f"""
WITH {deletion(_ARRAYS, condition)}, finished AS (
    {finish(_ARRAYS)}
), logged AS (
    {event_rows.entry(COMPLETION_EVENTS)}
), counted AS (
    {counters.entry(COMPLETION_MOVES)}
)
SELECT id, agent_type, {SECONDS} AS seconds FROM deleted
"""


_COMPLETE = _completion(_WITHOUT_DEPENDENTS)
_COMPLETE_ANY = _completion("true")
_LOCK_HELD = f"SELECT t.id FROM tasks t JOIN {_calls()} ON {_FENCE} ORDER BY t.id FOR UPDATE OF t SKIP LOCKED"

# Without a priority it counts as no step on its way: the claim may have told of it already.
_START_EVENTS = event_rows.TaskEvents(
    f"'{TaskEvent.EXECUTING}'",
    "(SELECT id, agent_type, goal_id, NULL::smallint AS priority, worker_id, token, place FROM renewed\n"
    "     WHERE state_before = 'assigned') started",
    "place",
    {"worker_ids": "worker_id", "tokens": "token"},
)

_START_MOVES = counters.Move("(SELECT * FROM renewed WHERE state_before = 'assigned') started", "'assigned'", "state")

_RENEW = f"""
WITH call AS MATERIALIZED (
    SELECT * FROM unnest($1::uuid[], $2::bigint[], $3::uuid[], $4::jsonb[], $5::jsonb[])
        WITH ORDINALITY AS c (task_id, token, worker_id, progress, checkpoint, place)
), held AS MATERIALIZED (
    SELECT t.id, t.state, c.progress, c.checkpoint, c.place FROM tasks t JOIN call c ON {_FENCE} ORDER BY t.id
    FOR UPDATE OF t SKIP LOCKED
), renewed AS (
    UPDATE tasks t
    SET state = 'executing', lease_expires_at = now() + make_interval(secs => $6::float8),
        progress = coalesce(held.progress, t.progress), checkpoint = coalesce(held.checkpoint, t.checkpoint)
    FROM held WHERE t.id = held.id AND {counters.COUNTS_ITSELF}
    RETURNING t.id, t.lease_expires_at, t.state, held.state AS state_before, t.priority, t.submitted_priority,
              t.agent_type, t.goal_id, t.worker_id, t.token, held.place
), logged AS (
    {event_rows.entry(_START_EVENTS)}
), counted AS (
    {counters.entry(_START_MOVES)}
)
SELECT id, lease_expires_at FROM renewed
"""


async def complete(
    connection: "asyncpg.Connection[asyncpg.Record]", calls: Sequence[Completion]
) -> dict[UUID, ServiceTime]:
    """Complete the tasks whose leases the calls hold; return the service times of those that were accepted.

    Leaves alone tasks that somebody has locked, and those that have dependents, which are for `complete_and_unblock`.
    """
    return _service_times(await connection.fetch(_COMPLETE, *_columns(calls)))


async def complete_and_unblock(
    connection: "asyncpg.Connection[asyncpg.Record]", calls: Sequence[Completion]
) -> tuple[dict[UUID, ServiceTime], dict[Lane, float]]:
    """As `complete`, also for tasks with dependents; return the lanes and lowest tags of unblocked tasks as well."""
    # The locks come by a statement of their own: only one that begins after them sees every edge written before.
    async with connection.transaction():
        locked_ids = {row["id"] for row in await connection.fetch(_LOCK_HELD, *_columns(calls)[:3])}
        held = [call for call in calls if call.task_id in locked_ids]
        service_times = _service_times(await connection.fetch(_COMPLETE_ANY, *_columns(held))) if held else {}
        tags = await dependencies.unblock(connection, list(service_times)) if service_times else {}
    return service_times, tags


async def renew(
    connection: "asyncpg.Connection[asyncpg.Record]", renewals: Sequence[Renewal], policy: LeasePolicy
) -> dict[UUID, datetime]:
    """Acknowledge and renew leases, storing progress and checkpoints; return the new expiry of those still held.

    Leaves alone tasks that somebody has locked.
    """
    rows = await connection.fetch(
        _RENEW, *columns(renewals, "task_id", "token", "worker_id", "progress", "checkpoint"), policy.lease_seconds
    )
    return {row["id"]: row["lease_expires_at"] for row in rows}


def _columns(calls: Sequence[Completion]) -> list[Sequence[object] | None]:
    *columns_told, usages, qualities = zip(*calls, strict=True)
    return [*columns_told, told(usages), told(qualities)]


def told(column: Sequence[object]) -> Sequence[object] | None:
    """A column, or None where all of it is: an array of nothing takes the driver as long as any other."""
    return None if column.count(None) == len(column) else column


def _service_times(rows: Sequence[asyncpg.Record]) -> dict[UUID, ServiceTime]:
    return {task_id: service_time(agent_type, seconds) for task_id, agent_type, seconds in rows}


def service_time(agent_type: str, seconds: float) -> ServiceTime:
    """The service time of a task, as a statement answers it."""
    return ServiceTime(_AGENTS[agent_type], seconds)
