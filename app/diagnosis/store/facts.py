"""Facts on one task: a few statements, each of which reads a bounded number of rows however many tasks wait."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any
from uuid import UUID

from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncConnection

from app.db.namespaces import WITHIN
from app.diagnosis.rules.facts import Blocking, Ended, GoalHold, LostWorker, Pause, Place, TaskFacts, Workers
from app.kernel import resources
from app.kernel.agents import AgentType
from app.kernel.events import TaskEvent
from app.kernel.histograms import Durations, total
from app.kernel.lanes import Lane, Priority, class_of
from app.kernel.resources import NOTHING, Resources
from app.kernel.sessions import AWAITS_STANDBY
from app.kernel.states import TaskState
from app.queue.rules.holds import Hold
from app.queue.store import counters, holds, lease_ledger
from app.queue.store.claims import STRETCH
from app.queue.store.worker_names import worker_name
from app.workers.store.tables import LIVE

_SAME = """id, state, agent_type, goal_id, priority, token, failures, max_attempts, worker_id, leased_at, waiting_since,
       timeout_seconds"""
_PROGRESS = "jsonb_build_object('percent', progress -> 'percent', 'message', left(progress ->> 'message', 1000))"
_ERROR = "jsonb_build_object('code', left(error ->> 'code', 100), 'message', left(error ->> 'message', 1000))"

# Of a dependency there is an edge for as long as it has not completed.
_TASK = text(f"""
SELECT {_SAME}, CAST(resources AS text) AS request, {worker_name("tasks")}, NULL::timestamptz AS finished_at, tag, seq,
       avoid_worker_id,
       CASE WHEN run_at = 'infinity' THEN due_at ELSE run_at END AS run_at, coalesce(run_at = 'infinity', false)
       AS is_held, CASE WHEN progress IS NOT NULL THEN {_PROGRESS} END AS progress, NULL::jsonb AS error,
       blockers AS open_dependencies,
       (SELECT depends_on FROM task_dependencies d WHERE d.task_id = tasks.id ORDER BY depends_on LIMIT 1) AS blocker
FROM tasks WHERE id = :id AND {WITHIN}
UNION ALL
SELECT {_SAME}, CAST(resources AS text), {worker_name("task_history")}, finished_at, 0, 0, NULL, NULL, false, NULL,
       CASE WHEN error IS NOT NULL THEN {_ERROR} END, 0, NULL
FROM task_history WHERE id = :id AND {WITHIN}
LIMIT 1
""")

_AROUND = text("""
SELECT now() AS at, p.reason AS pause_reason, p.paused_at, h.reason AS hold_reason, h.is_closed, h.is_metered, h.since,
       g.reason AS goal_reason, parked.model AS awaited, last.attempt, last.token, last.outcome,
       left(last.error ->> 'code', 100) AS code,
       left(coalesce(last.error ->> 'message', last.error ->> 'code'), 1000) AS message,
       coalesce(CASE WHEN :resource_class = 0 THEN lane.virtual_time ELSE class_lane.virtual_time END, :bottom)
           AS floor,
       (SELECT last_run_at FROM loop_ticks WHERE duty = :duty) AS loops_seen_at
FROM (SELECT CAST(:id AS uuid) AS id) t
LEFT JOIN pauses p ON p.agent_type = :agent_type
LEFT JOIN holds h ON h.goal_id = :goal_id
LEFT JOIN goals g ON g.id = :goal_id
LEFT JOIN parked_tasks parked ON parked.task_id = t.id AND coalesce(parked.token, :token) = :token
LEFT JOIN lanes lane ON lane.agent_type = :agent_type AND lane.priority = :priority
LEFT JOIN resource_lanes class_lane ON class_lane.resource_class = :resource_class
    AND class_lane.agent_type = :agent_type AND class_lane.priority = :priority
LEFT JOIN LATERAL (
    SELECT attempt, token, outcome, error FROM task_attempts a WHERE a.task_id = t.id ORDER BY token DESC LIMIT 1
) last ON true
""")

# Silent is who has missed two of the heartbeats after which it would be lost. Short of time is who ends before an
# attempt may, by the rule of claims.
_WORKERS = text(f"""
WITH able AS (
    SELECT w.id, w.name, w.state, w.not_ready_reason, held.id AS task_id,
           array_to_string(w.capabilities, ',') AS skills,
           extract(epoch FROM now() - coalesce(w.launched_at, w.requested_at))::float8 AS age,
           w.last_seen_at < now() - make_interval(secs => coalesce(w.lost_after_seconds, 15) * 0.7) AS is_silent,
           :timeout_seconds * {STRETCH} AS needed, extract(epoch FROM w.ends_at - now())::float8 AS remaining,
           extract(epoch FROM w.ends_at - w.registered_at)::float8 AS lifetime
    FROM workers w
    CROSS JOIN (SELECT CAST(:agent_type AS text) AS agent_type) asked
    LEFT JOIN LATERAL (
        SELECT held.id FROM {lease_ledger.last_lease("w.id")} last
        CROSS JOIN LATERAL {lease_ledger.held_task("w.id")} held
        WHERE w.state = 'ready'
    ) held ON true
    WHERE w.{LIVE} AND (w.state = 'starting' AND w.registered_at IS NULL OR :agent_type = ANY (w.capabilities)
          AND coalesce(w.cpu_cores, 0) >= :cores AND coalesce(w.memory_gb, 0) >= :memory_gb
          AND coalesce(w.gpus, 0) >= :gpus
          AND NOT EXISTS (SELECT FROM jsonb_each_text(CAST(:named AS jsonb)) AS asked (name, amount)
                          WHERE coalesce((w.resources ->> asked.name)::bigint, 0) < asked.amount::bigint))
)
SELECT count(*) FILTER (WHERE is_heard AND task_id IS NULL) AS idle,
       count(*) FILTER (WHERE is_heard AND task_id IS NULL AND id IS DISTINCT FROM CAST(:avoid AS uuid)) AS idle_other,
       count(*) FILTER (WHERE is_heard AND task_id IS NOT NULL) AS busy,
       count(*) FILTER (WHERE state = 'ready' AND is_silent) AS silent,
       count(*) FILTER (WHERE state = 'starting' AND not_ready_reason IS NULL) AS starting,
       count(*) FILTER (WHERE state = 'starting' AND not_ready_reason IS NOT NULL) AS not_ready,
       count(*) FILTER (WHERE state = 'draining') AS draining,
       min(name || ': ' || not_ready_reason) FILTER (WHERE state = 'starting') AS not_ready_example,
       coalesce(array_agg(DISTINCT skills) FILTER (WHERE is_heard), '{{}}') AS skills,
       coalesce(array_agg(age) FILTER (WHERE state = 'starting' AND not_ready_reason IS NULL), '{{}}') AS start_ages,
       count(*) FILTER (WHERE is_short) AS short,
       (array_agg(needed ORDER BY remaining - needed DESC, needed) FILTER (WHERE is_short))[1] AS needed_seconds,
       (array_agg(remaining ORDER BY remaining - needed DESC, needed) FILTER (WHERE is_short))[1] AS remaining_seconds,
       coalesce(bool_or(lifetime >= needed) FILTER (WHERE is_short), false) AS fits_at_start
FROM (SELECT *, is_present AND is_short IS NOT TRUE AS is_heard
      FROM (SELECT *, state = 'ready' AND is_silent IS NOT TRUE AS is_present,
                   state = 'ready' AND is_silent IS NOT TRUE AND remaining < needed AS is_short FROM able) present) seen
""")

_OFFERS = text(f"""
SELECT DISTINCT jsonb_strip_nulls(jsonb_build_object('cores', cpu_cores, 'memory_gb', memory_gb, 'gpus', gpus,
                                                     'named', resources))::text
FROM workers WHERE {LIVE} AND :agent_type = ANY (capabilities) LIMIT 1000
""")

# Of the last that ended, so that the cost stays bounded however many have.
_LOST = text("""
SELECT name, host, ended_at, coalesce(ended_reason, state) AS reason, state = 'lost' AS is_silent
FROM (SELECT * FROM workers WHERE ended_at IS NOT NULL ORDER BY ended_at DESC LIMIT 500) ended
WHERE :agent_type = ANY (capabilities) ORDER BY ended_at DESC LIMIT 1
""")

# From the floor of the lane on: below are tasks that were leased, and dead entries of others.
_READY = "agent_type = :agent_type AND state = 'pending' AND blockers = 0 AND run_at IS NULL"
_AHEAD = text(f"""
SELECT count(*) AS tasks, max(tag) AS tag FROM (
    SELECT tag FROM tasks
    WHERE {_READY} AND priority = :priority AND tag >= :floor AND (tag, seq) < (:tag, :seq) AND {holds.IS_OPEN}
    ORDER BY tag, seq LIMIT :limit
) ahead
""")
_BEHIND = text(f"""
SELECT count(*) AS tasks, min(tag) AS tag FROM (
    SELECT tag FROM tasks WHERE {_READY} AND priority = :priority AND (tag, seq) > (:tag, :seq) AND tag < :ceiling
    ORDER BY tag DESC, seq DESC LIMIT :limit
) behind
""")
_HIGHER = text(f"""
SELECT coalesce(sum(head.tasks), 0)::bigint AS tasks, coalesce(max(head.tasks), 0) AS most
FROM generate_series(CAST(:priority AS int) + 1, 4) AS lane (priority)
LEFT JOIN lanes l ON l.agent_type = :agent_type AND l.priority = lane.priority
CROSS JOIN LATERAL (
    SELECT count(*) AS tasks FROM (
        SELECT FROM tasks WHERE tasks.{_READY} AND tasks.priority = lane.priority::smallint
          AND tag >= CASE WHEN :resource_class = 0 THEN coalesce(l.virtual_time, 0) ELSE :bottom END
          AND tag < :ceiling AND {holds.IS_OPEN}
        ORDER BY tag, seq LIMIT :limit
    ) counted
) head
""")
_MOST_COUNTED = 250

_RUN_TIMES = text(f"""
SELECT agent_type, tasks, seconds, histogram FROM queue_minutes
WHERE minute > now() - interval '15 minutes' AND kind = '{TaskEvent.COMPLETED.value}'
""")

_BLOCKING = text(f"""
SELECT a.pid, a.application_name AS application, a.xact_start AS since, {AWAITS_STANDBY} AS awaits_standby
FROM pg_locks l JOIN pg_stat_activity a ON a.pid = l.pid
WHERE l.relation = 'tasks'::regclass AND l.granted AND l.mode NOT IN ('AccessShareLock', 'ShareUpdateExclusiveLock')
  AND l.database = (SELECT oid FROM pg_database WHERE datname = current_database())
  AND a.pid <> pg_backend_pid() AND a.xact_start < now() - CAST(:length AS interval)
ORDER BY a.xact_start LIMIT 1
""")


@dataclass(frozen=True, slots=True, kw_only=True)
class Position:
    """Where a task stands in its lane, which is read from `floor` on."""

    lane: Lane
    tag: float
    seq: int
    floor: float = 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Surroundings:
    """The rest that belongs to a task, at the moment `at`; `awaited` is the name of what it is parked for."""

    at: datetime
    pause: Pause | None
    hold: GoalHold | None
    last: Ended | None
    awaited: str | None
    floor: float
    loops_seen_at: datetime | None


async def task(connection: AsyncConnection, task_id: UUID, namespace: str | None) -> tuple[TaskFacts, Position] | None:
    """The task and its position; None when there is none, in this namespace if one is given."""
    row = (await connection.execute(_TASK, {"id": task_id, "namespace": namespace})).mappings().first()
    if row is None:
        return None
    words = {"state": TaskState(row["state"]), "agent_type": AgentType(row["agent_type"])}
    values = {name: row[name] for name in TaskFacts.__dataclass_fields__}
    request = resources.parse(row["request"]) if row["request"] else None
    facts = TaskFacts(**{**values, **words, "priority": Priority(row["priority"]), "request": request})
    lane = Lane(agent_type=facts.agent_type, priority=facts.priority, resource_class=class_of(row["tag"]))
    return facts, Position(lane=lane, tag=row["tag"], seq=row["seq"])


async def surroundings(connection: AsyncConnection, task: TaskFacts, lane: Lane, duty: str) -> Surroundings:
    """The rest that belongs to a live task of a lane; `duty` is the one whose last turn tells whether the loops run."""
    values = {name: getattr(task, name) for name in ("id", "goal_id", "token")}
    values |= {"agent_type": task.agent_type.value, "priority": task.priority.value, "duty": duty}
    values |= {"resource_class": lane.resource_class, "bottom": lane.bottom}
    row: Any = (await connection.execute(_AROUND, values)).mappings().one()
    return Surroundings(
        at=row["at"],
        pause=Pause(reason=row["pause_reason"], since=row["paused_at"]) if row["paused_at"] else None,
        hold=_hold(row) if row["hold_reason"] else None,
        last=Ended(**{name: row[name] for name in Ended.__dataclass_fields__}) if row["outcome"] else None,
        **{name: row[name] for name in ("awaited", "floor", "loops_seen_at")},
    )


def _hold(row: Any) -> GoalHold:
    same = {name: row[name] for name in ("is_closed", "is_metered", "since", "goal_reason")}
    return GoalHold(reason=Hold(row["hold_reason"]), **same)


async def workers(connection: AsyncConnection, task: TaskFacts, usual_timeout_seconds: float) -> Workers:
    """Live workers that can run a task and offer what it asks for; reads each worker, and what it holds."""
    agent, request = task.agent_type, task.request
    asked = request or NOTHING
    values: dict[str, Any] = {"agent_type": agent.value, "avoid": task.avoid_worker_id}
    values["timeout_seconds"] = usual_timeout_seconds if task.timeout_seconds is None else task.timeout_seconds
    values["named"] = json.dumps(dict(asked.named))
    values |= {name: getattr(asked, name) for name in ("cores", "memory_gb", "gpus")}
    row = (await connection.execute(_WORKERS, values)).mappings().one()
    skills = [frozenset(map(AgentType, text.split(","))) for text in row["skills"]]
    lost = None
    offers: list[Resources] = []
    is_absent = not any(row[name] for name in ("idle", "busy", "short", "silent", "not_ready", "draining"))
    if is_absent and request is not None:
        texts = (await connection.execute(_OFFERS, {"agent_type": agent.value})).scalars()
        offers = [offer for text in texts if not (offer := resources.parse(text)).covers(request)]
    if is_absent and not row["starting"] and not offers:
        ended = (await connection.execute(_LOST, {"agent_type": agent.value})).mappings().first()
        lost = LostWorker(**ended) if ended else None
    return Workers(**{**row, "skills": skills, "lost": lost, "offers": offers})


async def waiting(connection: AsyncConnection) -> dict[Lane, int]:
    """Number of tasks that may run now by lane, without those of paused agent types, by the counters."""
    overview = await counters.overview(connection, ())
    return {
        count.lane: count.tasks
        for count in overview.counts
        if count.phase == "pending" and count.lane.agent_type not in overview.pause_reasons
    }


async def place(connection: AsyncConnection, position: Position, waiting: Mapping[Lane, int]) -> Place:
    """The place of a task that may run now; of thousands before it, the counters and the tags tell about how many."""
    lane = position.lane
    values: dict[str, Any] = {"agent_type": lane.agent_type.value, "priority": lane.priority.value}
    values |= {"resource_class": lane.resource_class, "bottom": lane.bottom, "ceiling": lane.ceiling}
    values |= {"limit": _MOST_COUNTED + 1, "tag": position.tag, "seq": position.seq}
    values["floor"] = min(position.floor, position.tag)
    higher = (await connection.execute(_HIGHER, values)).one()
    ahead = (await connection.execute(_AHEAD, values)).one()
    above = [
        n for other, n in waiting.items() if other.agent_type == lane.agent_type and other.priority > lane.priority
    ]
    same = int(ahead.tasks)
    if same > _MOST_COUNTED:
        after = (await connection.execute(_BEHIND, values)).one()
        same = _estimate(position, ahead, after, waiting.get(lane, 0))
    return Place(
        higher=higher.tasks if higher.most <= _MOST_COUNTED else sum(above),
        same=same,
        is_exact=max(higher.most, ahead.tasks) <= _MOST_COUNTED,
    )


def _estimate(position: Position, ahead: Any, after: Any, total: int) -> int:
    """Tasks before one far from the head of its lane: by those after it, or by its tag between those that were read."""
    if after.tasks <= _MOST_COUNTED:
        return max(int(ahead.tasks), total - int(after.tasks) - 1)
    between = max(0, total - int(ahead.tasks) - int(after.tasks))
    span = after.tag - ahead.tag
    share = min(1.0, max(0.0, (position.tag - ahead.tag) / span)) if span > 0 else 0.5
    return int(ahead.tasks + share * between)


async def run_times(connection: AsyncConnection) -> dict[AgentType, Durations]:
    """Run times of the tasks that completed lately, of every agent type."""
    minutes: dict[AgentType, list[Durations]] = {agent: [] for agent in AgentType}
    for row in (await connection.execute(_RUN_TIMES)).mappings():
        durations = Durations(count=row["tasks"], seconds=row["seconds"], histogram=row["histogram"])
        minutes[AgentType(row["agent_type"])].append(durations)
    return {agent: total(durations) for agent, durations in minutes.items()}


async def blocking(connection: AsyncConnection, length: timedelta) -> Blocking | None:
    """The session that has held locks on tasks for longest, at least so long, as far as this role may see it."""
    row = (await connection.execute(_BLOCKING, {"length": length})).mappings().first()
    return Blocking(**row) if row else None
