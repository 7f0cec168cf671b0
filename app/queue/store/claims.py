"""Claiming: one task to each of many waiting workers, by one statement that waits for nobody.

A claim reads a lane from where it last stood (`floor`): below it are only the dead entries of tasks leased before,
which nothing may have to walk over while an old snapshot keeps them.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from uuid import UUID

import asyncpg

from app.kernel.agents import AgentType
from app.kernel.ids import TaskId, WorkerId
from app.kernel.lanes import Lane
from app.queue.rules.tasks import BASE_COMPUTE_SECONDS, LeasePolicy
from app.queue.store import holds, lanes, lease_ledger

BOTTOM = float("-inf")


@dataclass(frozen=True, slots=True, kw_only=True)
class Ask:
    """One waiting worker and the lane that it is to be served from, at `floor` or above; None asks how it stands."""

    worker_id: WorkerId
    request_id: UUID
    lane: Lane | None
    acknowledge: bool
    floor: float = BOTTOM


@dataclass(frozen=True, slots=True, kw_only=True)
class Lease:
    """One task, given to one worker until `expires_at`. JSON values are kept as text: nobody here reads them.

    `timeout_seconds` is for this attempt: the task's own timeout, or more where its worker gives its agent more.
    """

    task_id: TaskId
    token: int
    attempt: int
    agent_type: str
    goal_id: str | None
    priority: int
    payload: str
    labels: str
    timeout_seconds: float
    leased_at: datetime
    expires_at: datetime
    deadline_at: datetime
    checkpoint: str | None
    trace_context: str | None
    tag: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Claim:
    """What became of one Ask: a lease, or how the worker stands instead."""

    worker_state: str | None
    holds_another: bool
    is_repeat: bool
    assigned_agent: AgentType | None
    lease: Lease | None


_LEASE_COLUMNS = """t.id AS task_id, t.token, t.failures + 1 AS attempt, t.agent_type, t.goal_id, t.priority, t.payload,
    t.labels, extract(epoch FROM t.deadline_at - t.leased_at)::float8 AS timeout_seconds,
    t.leased_at, t.lease_expires_at AS expires_at, t.deadline_at, t.checkpoint,
    t.trace_context, t.tag"""

# A worker whose attempt at a task has failed gets it again only when it asks alone and the task has waited a little;
# among several asks the places are shifted by one, so that somebody else gets it.
_CLAIM = f"""
WITH asked AS MATERIALIZED (
    SELECT a.*, CASE WHEN w.ended_reason LIKE 'superseded%' THEN 'superseded' ELSE w.state END AS worker_state,
           w.assigned_agent, w.assigned_compute_seconds, coalesce(last.n, 0) AS leases_before,
           held.id IS NOT NULL AS holds_another,
           held.id IS NOT NULL AND last.request_id = a.request_id AS is_repeat
    FROM unnest($1::uuid[], $2::uuid[], $3::text[], $4::smallint[], $5::float8[], $6::boolean[])
         WITH ORDINALITY AS a (worker_id, request_id, agent_type, priority, floor, acknowledge, turn)
    LEFT JOIN workers w ON w.id = a.worker_id
    {lease_ledger.joined("a.worker_id")}
), eligible AS (
    SELECT *, row_number() OVER (PARTITION BY agent_type, priority ORDER BY turn) AS place
    FROM asked WHERE worker_state = 'ready' AND NOT holds_another
      AND NOT EXISTS (SELECT FROM pauses p WHERE p.agent_type = asked.agent_type)
), wanted AS (
    SELECT agent_type, priority, min(floor) AS floor, count(*) AS places, array_agg(worker_id) AS workers
    FROM eligible GROUP BY agent_type, priority
), picked AS MATERIALIZED (
    SELECT head.id, head.avoid_worker_id, wanted.agent_type, wanted.priority, wanted.places,
           row_number() OVER (PARTITION BY wanted.agent_type, wanted.priority ORDER BY head.tag, head.seq) AS place
    FROM wanted CROSS JOIN LATERAL (
        SELECT id, tag, seq, avoid_worker_id FROM tasks
        WHERE tasks.agent_type = wanted.agent_type AND tasks.priority = wanted.priority
          AND state = 'pending' AND run_at IS NULL AND tag >= wanted.floor
          AND coalesce(goal_id, '') NOT IN ({holds.CLOSED})
          AND (wanted.places > 1 OR avoid_worker_id IS DISTINCT FROM wanted.workers[1]
               OR waiting_since < now() - make_interval(secs => $9::float8))
        ORDER BY tag, seq LIMIT wanted.places FOR UPDATE SKIP LOCKED
    ) head
), shifted AS (
    SELECT DISTINCT p.agent_type, p.priority FROM picked p JOIN eligible e USING (agent_type, priority, place)
    WHERE p.avoid_worker_id = e.worker_id
), leased AS (
    UPDATE tasks t
    SET state = CASE WHEN e.acknowledge THEN 'executing' ELSE 'assigned' END,
        token = t.token + 1, worker_id = e.worker_id, leased_at = now(),
        lease_expires_at = now() + make_interval(secs => CASE WHEN e.acknowledge THEN $7::float8 ELSE $8::float8 END),
        deadline_at = now() + make_interval(secs => t.timeout_seconds * CASE WHEN e.assigned_agent = t.agent_type
            THEN greatest(1, e.assigned_compute_seconds / {BASE_COMPUTE_SECONDS}) ELSE 1 END)
    FROM picked p LEFT JOIN shifted s USING (agent_type, priority) JOIN eligible e
        ON e.agent_type = p.agent_type AND e.priority = p.priority
        AND e.place = CASE WHEN s.agent_type IS NULL THEN p.place ELSE p.place % p.places + 1 END
    WHERE t.id = p.id
    RETURNING {_LEASE_COLUMNS}, t.state, t.waiting_since, e.turn, e.worker_id, e.request_id, e.leases_before
), recorded AS (
    INSERT INTO leases (worker_id, n, task_id, token, request_id, leased_at)
    SELECT worker_id, leases_before + 1, task_id, token, request_id, leased_at FROM leased
), told AS (
    INSERT INTO events (kind, task_id, agent_type, goal_id, worker_id, token, priority, seconds)
    SELECT kind, task_id, agent_type, goal_id, worker_id, token, priority,
           CASE WHEN step = 1 THEN extract(epoch FROM leased_at - waiting_since) END
    FROM leased CROSS JOIN LATERAL (VALUES (1, 'task.assigned'), (2, 'task.executing')) AS move (step, kind)
    WHERE step = 1 OR state = 'executing' ORDER BY turn, step
)
SELECT asked.worker_state, asked.holds_another, asked.is_repeat, asked.assigned_agent, leased.*
FROM asked LEFT JOIN leased USING (turn) ORDER BY asked.turn
"""

_HELD = f"""
SELECT {_LEASE_COLUMNS} FROM {lease_ledger.last_lease("$1")} last
JOIN tasks t ON t.id = last.task_id AND t.token = last.token AND t.worker_id IS NOT DISTINCT FROM $1
WHERE last.request_id = $2
"""

_LOOK = """
SELECT lane.agent_type, lane.priority, head.tag
FROM unnest($1::text[], $2::smallint[], $3::float8[]) AS lane (agent_type, priority, floor)
CROSS JOIN LATERAL (
    SELECT tag FROM tasks t
    WHERE t.agent_type = lane.agent_type AND t.priority = lane.priority AND state = 'pending' AND run_at IS NULL
      AND tag >= lane.floor
    ORDER BY tag LIMIT 1
) head
WHERE NOT EXISTS (SELECT FROM pauses p WHERE p.agent_type = lane.agent_type)
"""


# What became ready lately and lies below where its lane stands: found by the time since when it waits, because going
# through a lane from its bottom would walk over the dead entries of everything leased before.
_STRAYS = """
SELECT t.agent_type, t.priority, min(t.tag) AS tag
FROM (SELECT DISTINCT priority FROM unnest($2::smallint[]) AS all_of (priority)) asked
CROSS JOIN LATERAL (
    SELECT agent_type, priority, tag FROM tasks
    WHERE tasks.priority = asked.priority AND tasks.priority <= 4 AND state = 'pending' AND run_at IS NULL
      AND waiting_since >= $4 OFFSET 0
) t
JOIN unnest($1::text[], $2::smallint[], $3::float8[]) AS lane (agent_type, priority, floor)
    ON lane.agent_type = t.agent_type AND lane.priority = t.priority AND t.tag < lane.floor
WHERE NOT EXISTS (SELECT FROM pauses p WHERE p.agent_type = t.agent_type)
GROUP BY t.agent_type, t.priority
"""


async def claim(
    connection: "asyncpg.Connection[asyncpg.Record]", asks: Sequence[Ask], policy: LeasePolicy
) -> list[Claim]:
    """Lease one task to each ask for which there is one; answers in the order of the asks.

    Raises asyncpg.UniqueViolationError when another replica has just served one of the workers.
    """
    rows = await connection.fetch(
        _CLAIM,
        [ask.worker_id for ask in asks],
        [ask.request_id for ask in asks],
        [ask.lane.agent_type if ask.lane else None for ask in asks],
        [ask.lane.priority if ask.lane else None for ask in asks],
        [ask.floor for ask in asks],
        [ask.acknowledge for ask in asks],
        policy.lease_seconds,
        policy.acknowledge_within_seconds,
        policy.avoid_seconds,
    )
    return [
        Claim(
            worker_state=row["worker_state"],
            holds_another=row["holds_another"],
            is_repeat=bool(row["is_repeat"]),
            assigned_agent=AgentType(row["assigned_agent"]) if row["assigned_agent"] else None,
            lease=_lease(row) if row["task_id"] else None,
        )
        for row in rows
    ]


async def held_by_request(
    connection: "asyncpg.Connection[asyncpg.Record]", worker_id: WorkerId, request_id: UUID
) -> Lease | None:
    """The lease that an earlier call with this request id received, so that a lost answer can be given again."""
    row = await connection.fetchrow(_HELD, worker_id, request_id)
    return _lease(row) if row else None


async def strays(
    connection: "asyncpg.Connection[asyncpg.Record]", floors: Mapping[Lane, float], since: datetime
) -> dict[Lane, float]:
    """The lanes in which a task that became ready at `since` or later lies below the floor, with the lowest tag."""
    agents, priorities = [lane.agent_type for lane in floors], [lane.priority for lane in floors]
    return lanes.lowest(await connection.fetch(_STRAYS, agents, priorities, list(floors.values()), since))


async def moment(connection: "asyncpg.Connection[asyncpg.Record]") -> datetime:
    """The time by the database's clock."""
    now: datetime = await connection.fetchval("SELECT now()")
    return now


async def look(
    connection: "asyncpg.Connection[asyncpg.Record]", floors: Mapping[Lane, float] | Iterable[Lane]
) -> dict[Lane, float]:
    """The lanes in which a task may run now, with the lowest tag at `floor` or above: one index probe each."""
    asked = dict(floors) if isinstance(floors, Mapping) else dict.fromkeys(floors, BOTTOM)
    agents, priorities = [lane.agent_type for lane in asked], [lane.priority for lane in asked]
    rows = await connection.fetch(_LOOK, agents, priorities, list(asked.values()))
    return lanes.lowest(rows)


def _lease(row: asyncpg.Record) -> Lease:
    return Lease(**{field: row[field] for field in Lease.__dataclass_fields__})
