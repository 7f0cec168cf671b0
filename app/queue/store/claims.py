"""Claims: lease one task to each of many waiting workers, by one statement that waits for no task of anybody else.

It waits, no longer than anything on the hot path waits for a lock, for a replica that is serving one of its workers.

A claim reads a lane from its floor on, the lowest tag at which a task may wait: below are only tasks at work, and dead
index entries, which vacuum cannot remove while somebody keeps an old snapshot. No claim should walk over either.
"""

from collections.abc import Sequence
from datetime import datetime
from itertools import product
from operator import itemgetter
from typing import NamedTuple
from uuid import UUID

import asyncpg

from app.kernel.agents import AgentType
from app.kernel.errors import Locked
from app.kernel.events import TaskEvent
from app.kernel.ids import TaskId, WorkerId
from app.kernel.lanes import Lane
from app.queue.rules.tasks import BASE_COMPUTE_SECONDS, LeasePolicy
from app.queue.store import completions, counters, event_rows, holds, lease_ledger
from app.queue.store.completions import Arrays, Completion, ServiceTime, service_time, told

BOTTOM = 0.0


# Tuples, as a claim makes hundreds of them and an object of the same fields costs several times as much.
class ClaimRequest(NamedTuple):
    """One waiting worker, and the lane to lease it a task from at `floor` or above; None only asks for its state.

    Of a worker that ends at `ends_at` only a task whose timeout is over by then; all of one lane must have the same.
    Where `last_number` is told, the worker's last lease had that number, and is over. Where a `completion` precedes it,
    that is accepted first, and nothing is leased where it cannot be.
    """

    worker_id: WorkerId
    request_id: UUID
    lane: Lane | None
    acknowledge: bool
    floor: float = BOTTOM
    ends_at: datetime | None = None
    # What the tasks of the lane ask for, where it has a resource class.
    resources: str | None = None
    last_number: int | None = None
    completion: Completion | None = None


class Lease(NamedTuple):
    """One task, leased to one worker until `expires_at`. JSON values stay text, because nobody here reads them.

    Moments are seconds since 1970, exact to the microsecond: the driver takes 0.3 us for a timestamp, and none for a
    number. `timeout_seconds` is for this attempt: the task's own timeout or that of the configuration, and more where
    its worker gives its agent more.
    """

    task_id: TaskId
    token: int
    attempt: int
    agent_type: str
    goal_id: str | None
    priority: int
    payload: str
    labels: str
    created_at: float
    timeout_seconds: float
    waiting_since: float
    leased_at: float
    expires_at: float
    deadline_at: float
    checkpoint: str | None
    trace_context: str | None
    resources: str | None
    tag: float


class ClaimOutcome(NamedTuple):
    """Result of one request: a lease and its number, or the state of the worker that explains why there is none.

    `service` is the time of the task whose completion preceded it, and was accepted.
    """

    worker_state: str | None
    not_ready_reason: str | None
    holds_another: bool
    is_repeat: bool
    assigned_agent: AgentType | None
    lease: Lease | None
    lease_number: int | None = None
    service: ServiceTime | None = None


_MOMENTS = ("created_at", "waiting_since", "leased_at", "expires_at", "deadline_at")


def _answer_columns(relation: str) -> str:
    """The fields of a lease as they are answered, from those of this relation."""
    values = {name: f"{relation}.{name}" for name in Lease._fields}
    values |= {name: f"date_part('epoch', {values[name]})" for name in _MOMENTS}
    return ", ".join(f"{value} AS {name}" for name, value in values.items())


_LEASE_FIELDS = itemgetter(*Lease._fields)
# The place of the first of these fields in an answer to a claim, behind those of the request.
_LEASE_BEGINS = 5
_LEASE_ENDS = _LEASE_BEGINS + len(Lease._fields)
# In the place of the result of a request that hands in none.
_NO_RESULT = (None,) * len(Completion._fields)
# What most steps read comes first, as whoever reads a column of a row walks over those before it.
_LEASE_COLUMNS = """t.id AS task_id, t.token, t.leased_at, t.waiting_since, t.agent_type, t.priority, t.goal_id,
    t.failures + 1 AS attempt, t.created_at, date_part('epoch', t.deadline_at - t.leased_at) AS timeout_seconds,
    t.lease_expires_at AS expires_at, t.deadline_at, t.tag,
    coalesce(t.payload_text, t.payload::text) AS payload, t.labels, t.checkpoint, t.trace_context, t.resources"""

_WAITED = "greatest(date_part('epoch', leased_at - waiting_since), 0)::real"
_LEASE_EVENTS = event_rows.TaskEvents(
    f"'{TaskEvent.ASSIGNED}'",
    "leased",
    "turn",
    {"task_ids": "task_id", "worker_ids": "worker_id", "tokens": "token", "all_seconds": _WAITED},
    next_kind=f"CASE state WHEN 'executing' THEN '{TaskEvent.EXECUTING}' END",
)
_LEASE_MOVES = counters.Move("leased", "'pending'", "state")

# Seconds that an attempt may take, as a multiple of its timeout, where its worker gives its agent more.
STRETCH = f"""CASE WHEN assigned_agent = agent_type
                     THEN greatest(1, assigned_compute_seconds / {BASE_COMPUTE_SECONDS}) ELSE 1 END"""
# Of a lane in which nothing fits the time that workers have left, no more than so many tasks are looked at.
LOOKED_AT = 500
_BOUND = f"""CROSS JOIN LATERAL (
        SELECT (
            SELECT t.tag FROM tasks t
            WHERE t.agent_type = demand.agent_type AND t.priority = demand.priority
              AND t.state = 'pending' AND t.blockers = 0 AND t.run_at IS NULL AND t.tag >= demand.floor
            ORDER BY t.tag OFFSET {LOOKED_AT} LIMIT 1
        ) AS last_tag OFFSET 0
    ) bound"""
_FITS = """AND tag <= coalesce(bound.last_tag, 'Infinity') AND (demand.ends_at IS NULL OR demand.ends_at >=
                  now() + make_interval(secs => coalesce(timeout_seconds, $11::float8) * demand.longest_stretch))"""

# From the end, where the newest version of its row is: before it are entries of the same id that heartbeats have left
# while somebody keeps an old snapshot, and an equation would meet all of them.
_WORKER = """LEFT JOIN LATERAL (
        SELECT newest.state, newest.ended_reason, newest.not_ready_reason, newest.assigned_agent,
               newest.assigned_compute_seconds
        FROM workers newest WHERE newest.id <= r.worker_id AND newest.id >= r.worker_id
        ORDER BY newest.id DESC LIMIT 1
    ) w ON true"""

# Each step keeps the claim safe or cheap. None joins two steps, whose sizes no planner can know: what belongs together
# goes through them in arrays side by side, so that the work grows with the batch whatever the plan. Only the answer
# needs a join: a full one is never a nested loop, and nothing is leased that was not requested. What is wide is neither
# sorted nor hashed, and a column is looked up by the place of its request where that will do: to unnest it costs more.
# - `request` tells a repeated request from one of a worker that holds another task: both get nothing here.
#   One whose last lease this process knows to be over is not asked for it: `recorded` fails where there is another.
# - `picked` locks as many tasks at the head of each lane as it has workers, by one index scan whatever its depth. SKIP
#   LOCKED: a task that somebody else is about to lease, cancel or hold is not worth waiting for.
# - `leased` finds them by their places in the table: one that has changed since the statement began is left for the
#   next claim, like one that is locked. Whoever changes a task that may run announces it.
# - `is_shifted` are the lanes in which a worker would get the task that its attempt has just failed at: there everybody
#   gets the task of the one before. A lone worker gets that task only when it has waited for `avoid_seconds`.
# - `token` leaves behind what a database may have given out that this one was restored from, or follows: its offset is
#   0 until then, grows by 10^12 at least and by 5 * 10^8 a second, and no task is leased 500 times a second.
# - `recorded` is the fence between replicas: two that lease to one worker at once write the same key (worker_id, n), so
#   the second waits for the first, and fails as a whole.
#
# Of lanes with a resource class a claim reads only their own range of tags. And only tasks that ask for just what this
# process knows of the class: it may have gone meanwhile, and its number to another.
_OF_CLASS = "AND tag < demand.ceiling AND resources = demand.resources"


def _statement(*, of_ends: bool = False, of_classes: bool = False, of_results: bool = False) -> str:
    """The claim; `of_ends` for workers whose time is limited, `of_classes` for tasks that ask for resources.

    `of_results` for those that hand in the results of their last leases. Others need not pay for any.
    """
    column = name = longest = bound = fits = columns = group = asked = ""
    results = history = over = may_go_on = services = ended = ""
    events: tuple[event_rows.TaskEvents, ...] = (_LEASE_EVENTS,)
    moves: tuple[counters.Move, ...] = (_LEASE_MOVES,)
    still = "held.id IS NOT NULL"
    if of_ends:
        column, name, longest = ", $12::timestamptz[]", ", ends_at", f", max({STRETCH}) AS longest_stretch"
        bound, fits, columns, group = _BOUND, _FITS, name, name
    if of_classes:
        first = 13 if of_ends else 12
        column += f", ${first}::float8[], ${first + 1}::jsonb[]"
        columns, group = f"{name}, ceiling, resources", f"{name}, ceiling"
        fits, asked = f"{fits} {_OF_CLASS}", ", (array_agg(resources))[1] AS resources"
    if of_results:
        first = 12 + of_ends + 2 * of_classes
        arrays = Arrays(
            f"${first}::uuid[]",
            f"${first + 1}::bigint[]",
            "$1::uuid[]",
            *(f"${first + 2 + place}::{kind}[]" for place, kind in enumerate(("jsonb", "bytea", "jsonb", "float8"))),
        )
        # By place in one array, as a join of two steps might be evaluated for each pair of rows. Of a task that has
        # changed since the statement began there is a place in the table, but it is not deleted.
        results = f"""{completions.deletion(arrays)}, over AS MATERIALIZED (
    SELECT array_agg(is_over ORDER BY place) AS turns FROM (
        SELECT place, bool_or(is_over) AS is_over
        FROM (SELECT place, true AS is_over FROM deleted UNION ALL SELECT place, false FROM fenced) answers
        GROUP BY place
    ) answer
), """
        is_over = "(SELECT turns FROM over)[r.turn]"
        over = f"\n           {is_over} OR ({arrays.task_ids})[r.turn] IS NULL AS may_go_on,"
        # What this statement deletes is still there for it.
        still = f"held.id IS NOT NULL AND ({is_over} AND held.id = ({arrays.task_ids})[r.turn]) IS NOT TRUE"
        may_go_on = "may_go_on AND "
        history = f", finished AS (\n    {completions.finish(arrays)}\n)"
        events, moves = (completions.COMPLETION_EVENTS, _LEASE_EVENTS), (completions.COMPLETION_MOVES, _LEASE_MOVES)
        services = f"deleted.agent_type AS completed_agent, {completions.SECONDS} AS completed_seconds, "
        ended = " FULL JOIN deleted ON deleted.place = request.turn"
    return f"""
WITH {results}request AS MATERIALIZED (
    SELECT r.turn, r.agent_type, r.priority{columns},{over}
           CASE WHEN w.ended_reason LIKE 'superseded%' THEN 'superseded' ELSE w.state END AS worker_state,
           w.not_ready_reason, w.assigned_agent, w.assigned_compute_seconds,
           coalesce(r.last_number, last.n, 0) AS leases_before,
           {still} AS holds_another,
           {still} AND last.request_id = ($2::uuid[])[r.turn] AS is_repeat
    FROM unnest($1::uuid[], $3::text[], $4::smallint[], $7::bigint[]{column}) WITH ORDINALITY
         AS r (worker_id, agent_type, priority, last_number{columns}, turn)
    {_WORKER}
    {lease_ledger.last_and_held("r.worker_id", "held.id", "r.last_number IS NULL")}
), demand AS (
    SELECT agent_type, priority{group}{asked}, min(($5::float8[])[turn]) AS floor, count(*) AS places,
           array_agg(turn::int ORDER BY turn) AS turns, array_agg(leases_before ORDER BY turn) AS leases_before,
           array_agg({STRETCH} ORDER BY turn) AS stretches{longest}
    FROM request WHERE {may_go_on}worker_state = 'ready' AND NOT holds_another GROUP BY agent_type, priority{group}
), picked AS MATERIALIZED (
    SELECT demand.*, head.ctids,
           head.is_avoided AND EXISTS (
               SELECT FROM unnest(head.avoided, turns) AS pair (avoided, turn) WHERE avoided = ($1::uuid[])[turn]
           ) AS is_shifted
    FROM demand {bound} CROSS JOIN LATERAL (
        SELECT array_agg(ctid) AS ctids, array_agg(avoid_worker_id) AS avoided,
               count(avoid_worker_id) > 0 AS is_avoided
        FROM (
            SELECT ctid, avoid_worker_id FROM tasks
            WHERE tasks.agent_type = demand.agent_type AND tasks.priority = demand.priority
              AND state = 'pending' AND blockers = 0 AND run_at IS NULL AND tag >= demand.floor {fits}
              AND {holds.IS_OPEN}
              AND (demand.places > 1 OR avoid_worker_id IS DISTINCT FROM ($1::uuid[])[demand.turns[1]]
                   OR waiting_since < now() - make_interval(secs => $10::float8))
            ORDER BY tag, seq LIMIT demand.places FOR UPDATE SKIP LOCKED
        ) locked
    ) head
    WHERE NOT EXISTS (SELECT FROM pauses p WHERE p.agent_type = demand.agent_type)
), leased AS (
    UPDATE tasks t
    SET state = CASE WHEN ($6::boolean[])[e.turn] THEN 'executing' ELSE 'assigned' END,
        token = greatest(t.token, convener_transaction_offset() / 1000000) + 1,
        worker_id = ($1::uuid[])[e.turn], leased_at = now(),
        lease_expires_at = now()
            + make_interval(secs => CASE WHEN ($6::boolean[])[e.turn] THEN $8::float8 ELSE $9::float8 END),
        deadline_at = now() + make_interval(secs => coalesce(t.timeout_seconds, $11::float8) * e.stretch)
    FROM (
        SELECT ctid, turns[place] AS turn, leases_before[place] AS leases_before, stretches[place] AS stretch
        FROM picked CROSS JOIN LATERAL unnest(
            CASE WHEN is_shifted THEN array_prepend(ctids[places], ctids[:places - 1]) ELSE ctids END
        ) WITH ORDINALITY AS head (ctid, place) OFFSET 0
    ) e
    WHERE t.ctid = e.ctid AND {counters.COUNTS_ITSELF}
    RETURNING e.turn, e.leases_before, t.worker_id, t.submitted_priority, t.state, {_LEASE_COLUMNS}
), recorded AS (
    INSERT INTO leases (worker_id, n, task_id, token, request_id, leased_at)
    SELECT worker_id, leases_before + 1, task_id, token, ($2::uuid[])[turn], leased_at FROM leased
), logged AS (
    {event_rows.entry(*events)}
), counted AS (
    {counters.entry(*moves)}
){history}
SELECT request.worker_state, request.not_ready_reason, request.holds_another, request.is_repeat, request.assigned_agent,
       {_answer_columns("leased")}, {services}leased.leases_before + 1 AS lease_number, request.turn
FROM leased FULL JOIN request USING (turn){ended}
"""


# By whether they are of ends, of classes and of results.
_CLAIMS = {
    kinds: _statement(of_ends=kinds[0], of_classes=kinds[1], of_results=kinds[2])
    for kinds in product((False, True), repeat=3)
}

# Renewed: the worker has all the time to begin, and no replica releases it as a lease that nobody has heard of. By more
# than nothing, whatever the clock and the policy of the claim were.
_LEASE_OF_REQUEST = f"""
WITH held AS MATERIALIZED (
    SELECT t.id, t.token FROM {lease_ledger.last_lease("$1")} last
    JOIN tasks t ON t.id = last.task_id AND t.token = last.token AND t.worker_id IS NOT DISTINCT FROM $1
    WHERE last.request_id = $2
), locked AS MATERIALIZED (
    SELECT t.id FROM tasks t JOIN held ON t.id = held.id AND t.token = held.token
    WHERE t.worker_id IS NOT DISTINCT FROM $1 FOR UPDATE OF t SKIP LOCKED
), renewed AS (
    UPDATE tasks t
    SET lease_expires_at = greatest(
        t.lease_expires_at + interval '1 microsecond',
        now() + make_interval(secs => CASE t.state WHEN 'executing' THEN $3::float8 ELSE $4::float8 END))
    FROM locked WHERE t.id = locked.id AND {counters.COUNTS_ITSELF}
    RETURNING {_LEASE_COLUMNS}
)
SELECT {_answer_columns("renewed")} FROM held LEFT JOIN renewed ON renewed.task_id = held.id
"""


async def claim(
    connection: "asyncpg.Connection[asyncpg.Record]", requests: Sequence[ClaimRequest], policy: LeasePolicy
) -> list[ClaimOutcome]:
    """Lease one task to each request for which there is one; return an outcome for each, in their order.

    Raises asyncpg.UniqueViolationError when another replica has just served one of the workers, and
    asyncpg.LockNotAvailableError when it takes long to.
    """
    of_classes = [request for request in requests if request.resources]
    if not of_classes:
        return await _claim(connection, requests, policy)
    # Together, so that a claim that loses against another process is undone as a whole.
    outcomes: dict[WorkerId, ClaimOutcome] = {}
    async with connection.transaction():
        for group in (of_classes, [request for request in requests if not request.resources]):
            if group:
                served = await _claim(connection, group, policy)
                outcomes |= zip([request.worker_id for request in group], served, strict=True)
    return [outcomes[request.worker_id] for request in requests]


async def _claim(
    connection: "asyncpg.Connection[asyncpg.Record]", requests: Sequence[ClaimRequest], policy: LeasePolicy
) -> list[ClaimOutcome]:
    """Serve requests that are either all for lanes with a resource class, or all for others."""
    # All columns in one pass, as each of its own would cost as much.
    worker_ids, request_ids, lanes_asked, acknowledges, floors, ends, resources, numbers, results = zip(
        *requests, strict=True
    )
    kinds = told(ends) is not None, bool(resources[0]), told(results) is not None
    more: list[Sequence[object] | None] = [ends] if kinds[0] else []
    if kinds[1]:
        more += [lane.ceiling if lane else None for lane in lanes_asked], resources
    if kinds[2]:
        task_ids, tokens, _, *values = zip(*(result or _NO_RESULT for result in results), strict=True)
        more += task_ids, tokens, *map(told, values)
    rows = await connection.fetch(
        _CLAIMS[kinds],
        worker_ids,
        request_ids,
        [lane.agent_type if lane else None for lane in lanes_asked],
        [lane.priority if lane else None for lane in lanes_asked],
        floors,
        acknowledges,
        numbers,
        policy.lease_seconds,
        policy.acknowledge_within_seconds,
        policy.avoid_seconds,
        policy.task_timeout_seconds,
        *more,
    )
    outcome = _outcome_of_result if kinds[2] else _outcome
    outcomes = {row[-1]: outcome(row) for row in rows}
    return [outcomes[turn] for turn in range(1, len(requests) + 1)]


async def lease_of_request(
    connection: "asyncpg.Connection[asyncpg.Record]", worker_id: WorkerId, request_id: UUID, policy: LeasePolicy
) -> Lease | None:
    """Renew and return the lease that an earlier call with this request id received, whose answer may have been lost.

    None where that is over. Raises Locked.
    """
    row = await connection.fetchrow(
        _LEASE_OF_REQUEST, worker_id, request_id, policy.lease_seconds, policy.acknowledge_within_seconds
    )
    if row is None:
        return None
    if row["task_id"] is None:
        raise Locked
    return _lease(row)


def _outcome(row: asyncpg.Record) -> ClaimOutcome:
    # By their places, as two dozen look-ups by name cost as much as to send the answer.
    worker_state, not_ready_reason, holds_another, is_repeat, agent = row[:_LEASE_BEGINS]
    lease = Lease._make(row[_LEASE_BEGINS:_LEASE_ENDS]) if row[_LEASE_BEGINS] else None
    assigned_agent = AgentType(agent) if agent else None
    return ClaimOutcome(worker_state, not_ready_reason, holds_another, bool(is_repeat), assigned_agent, lease, row[-2])


def _outcome_of_result(row: asyncpg.Record) -> ClaimOutcome:
    agent = row[_LEASE_ENDS]
    return _outcome(row)._replace(service=service_time(agent, row[_LEASE_ENDS + 1]) if agent else None)


def _lease(row: asyncpg.Record) -> Lease:
    return Lease._make(_LEASE_FIELDS(row))
