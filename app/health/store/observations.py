"""Statements on what alerts watch beside the queue: workers and their tasks, breakers, and the database.

Each reads every worker or connection, and no other tasks than those that workers hold.
"""

import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncConnection

from app.db.shared_objects import shared_by
from app.health.rules.snapshot import (
    IDLE_AFTER,
    BlockingSession,
    DatabaseCondition,
    ModelTrouble,
    Running,
    WorkerCounts,
)
from app.kernel import resources
from app.kernel.agents import AgentType
from app.kernel.resources import Resources
from app.kernel.sessions import AWAITS_STANDBY
from app.kernel.states import WorkerState
from app.llm.rules.conditions import service_state
from app.llm.store import models
from app.outage import DatabaseOutage
from app.queue.rules.tasks import BASE_COMPUTE_SECONDS
from app.queue.store import lease_ledger
from app.workers.store.tables import LIVE

# The ledger leads from each worker to the task that it holds, so no other task is read, however many there are. With
# many workers that is the dearest look of all, so all that is told of workers and their tasks comes from this one.
#
# A worker that took its last task a moment ago does many short ones, and idles only at this moment. `greatest` passes
# over nulls: one that never took any idles since its first heartbeat.
_WORKERS = text(f"""
SELECT state, executed_agent, is_idle, capabilities, cores, memory_gb, gpus, named, agent, compute_seconds,
       count(*) AS workers, count(held_id) AS busy, extract(epoch FROM now() - min(leased_at))::float8 AS longest,
       count(*) FILTER (WHERE deadline_at < now() - make_interval(secs => :grace)) AS overdue,
       CASE WHEN count(ends_at) > 0
           THEN array_agg(coalesce(extract(epoch FROM ends_at - now())::float8, 'Infinity')) END AS seconds
FROM (
    SELECT state, is_idle, held_id, leased_at, deadline_at, executed_agent,
           CASE WHEN is_idle THEN capabilities END AS capabilities,
           CASE WHEN is_idle THEN coalesce(cpu_cores, 0) END AS cores,
           CASE WHEN is_idle THEN coalesce(memory_gb, 0) END AS memory_gb,
           CASE WHEN is_idle THEN coalesce(gpus, 0) END AS gpus,
           CASE WHEN is_idle THEN resources END AS named,
           CASE WHEN is_idle AND ends_at IS NOT NULL THEN assigned_agent END AS agent,
           CASE WHEN is_idle AND ends_at IS NOT NULL THEN assigned_compute_seconds END AS compute_seconds,
           CASE WHEN is_idle THEN ends_at END AS ends_at
    FROM (
        SELECT w.*, held.id AS held_id, held.leased_at, held.deadline_at,
               CASE WHEN held.state = 'executing' THEN held.agent_type END AS executed_agent,
               w.state = 'ready' AND held.id IS NULL
               AND greatest(w.first_beat_at, last.leased_at) < now() - make_interval(secs => :idle_after) AS is_idle
        FROM workers w {lease_ledger.last_and_held("w.id", line=lease_ledger.WITH_TIME)}
        WHERE w.{LIVE}
    ) worker
) living GROUP BY 1, 2, 3, 4, 5, 6, 7, 8, 9, 10
""")

# Snapshots of other databases do not matter to ours; those of standbys do, and these have no database. Prepared
# transactions and replication slots hold one without any connection.
_SNAPSHOT = text("""
SELECT coalesce(max(seconds), 0) AS seconds, coalesce(max(transactions), 0) AS transactions FROM (
    SELECT extract(epoch FROM now() - xact_start) AS seconds, age(backend_xmin) AS transactions FROM pg_stat_activity
    WHERE backend_xmin IS NOT NULL AND pid <> pg_backend_pid() AND backend_type <> 'autovacuum worker'
      AND coalesce(datname, current_database()) = current_database()
    UNION ALL
    SELECT extract(epoch FROM now() - prepared), age(transaction) FROM pg_prepared_xacts
    WHERE database = current_database()
    UNION ALL
    SELECT NULL, greatest(age(xmin), age(catalog_xmin)) FROM pg_replication_slots
) held
""")

# Short waits are ordinary: housekeeping gives up soon where a backup reads. Who waits itself is no cause. The start
# of another role's transaction is hidden from roles without pg_read_all_stats: the length of the wait stands in.
_BLOCKING = text(f"""
WITH waiter AS MATERIALIZED (
    SELECT unnest(pg_blocking_pids(pid)) AS pid, state_change AS since FROM (
        SELECT pid, state_change FROM pg_stat_activity
        WHERE datname = current_database() AND wait_event_type = 'Lock'
          AND state_change < clock_timestamp() - interval '1 second'
        ORDER BY state_change LIMIT 10
    ) longest
), holder AS (
    SELECT pid, min(since) AS since FROM waiter GROUP BY pid
    UNION ALL
    SELECT pid, NULL FROM pg_locks
    WHERE relation = 'tasks'::regclass AND granted AND mode NOT IN ('AccessShareLock', 'ShareUpdateExclusiveLock')
      AND database = (SELECT oid FROM pg_database WHERE datname = current_database())
)
SELECT a.pid, coalesce(a.application_name, '') AS application, bool_or({AWAITS_STANDBY}) AS awaits_standby,
       extract(epoch FROM clock_timestamp() - min(coalesce(a.xact_start, holder.since)))::float8 AS seconds
FROM holder JOIN pg_stat_activity a ON a.pid = holder.pid
WHERE a.pid <> pg_backend_pid() AND a.wait_event_type IS DISTINCT FROM 'Lock'
GROUP BY a.pid, a.application_name HAVING min(coalesce(a.xact_start, holder.since)) IS NOT NULL
ORDER BY seconds DESC LIMIT 1
""")

# Tables that every task or every heartbeat writes to.
_BUSY_TABLES = ("tasks", "leases", "queue_changes", "workers", "lanes", "queue_counts", "loop_ticks")
_DEAD_ROWS = text("""
SELECT name, pg_stat_get_dead_tuples(to_regclass(name)) AS dead FROM unnest(CAST(:names AS text[])) AS name
WHERE to_regclass(name) IS NOT NULL
""")

# Connections that are reserved for superusers are no room for anybody else.
_CONNECTIONS = text("""
SELECT (SELECT sum(numbackends) FROM pg_stat_database)::float8
       / greatest(1, current_setting('max_connections')::int - current_setting('superuser_reserved_connections')::int)
""")


@dataclass(frozen=True, slots=True, kw_only=True)
class IdleWorkers:
    """Idle workers with the same agents and offer, with the seconds until each of them ends.

    A task of their assigned agent may take `stretch` times its timeout.
    """

    seconds: Sequence[float]
    agents: frozenset[AgentType]
    offer: Resources
    assigned_agent: AgentType | None = None
    stretch: float = 1.0


@dataclass(frozen=True, slots=True, kw_only=True)
class ObservedWorkers:
    """The live workers at one look: how many there are in each state, ready with a task, and what they execute.

    `idle` are those that have taken nothing for a while, alike ones together.
    """

    starting: int
    ready: int
    busy: int
    draining: int
    running: Mapping[AgentType, Running]
    idle: Sequence[IdleWorkers]

    @property
    def counts(self) -> WorkerCounts:
        """The workers past their start, without the configured minimum and the tasks that idle ones could run."""
        return WorkerCounts(
            alive=self.ready + self.draining,
            idle=sum(len(group.seconds) for group in self.idle),
            idle_for=frozenset(agent for group in self.idle for agent in group.agents),
        )


# Callers tell of it with each call.
_KEY_KNOWN_FOR = timedelta(days=1)


async def read_workers(connection: AsyncConnection, grace_seconds: float) -> ObservedWorkers:
    """The live workers and what they execute; a task past its deadline by more than the grace counts as overdue."""
    values = {"grace": grace_seconds, "idle_after": IDLE_AFTER.total_seconds()}
    rows = (await connection.execute(_WORKERS, values)).mappings().all()
    counts, busy_counts = Counter[str](), Counter[str]()
    for row in rows:
        counts[row["state"]] += row["workers"]
        busy_counts[row["state"]] += row["busy"]
    return ObservedWorkers(
        starting=counts[WorkerState.STARTING],
        ready=counts[WorkerState.READY],
        busy=busy_counts[WorkerState.READY],
        draining=counts[WorkerState.DRAINING],
        running=_running_tasks(rows),
        idle=[_idle_workers(row) for row in rows if row["is_idle"]],
    )


def _running_tasks(rows: Iterable[Mapping[str, Any] | Any]) -> dict[AgentType, Running]:
    running: dict[AgentType, Running] = {}
    for row in rows:
        if row["executed_agent"] is not None:
            agent = AgentType(row["executed_agent"])
            others = running.get(agent, Running(longest_seconds=row["longest"], overdue=0))
            running[agent] = Running(
                longest_seconds=max(row["longest"], others.longest_seconds), overdue=row["overdue"] + others.overdue
            )
    return running


def _idle_workers(row: Mapping[str, Any] | Any) -> IdleWorkers:
    return IdleWorkers(
        # Of those without a known end only their number is sent.
        seconds=row["seconds"] or [math.inf] * row["workers"],
        agents=frozenset(map(AgentType, row["capabilities"])),
        offer=resources.read(row),
        assigned_agent=row["agent"] and AgentType(row["agent"]),
        stretch=max(1.0, (row["compute_seconds"] or 0.0) / BASE_COMPUTE_SECONDS),
    )


async def model_troubles(connection: AsyncConnection) -> dict[str, ModelTrouble]:
    """Language models of whose service or key there is something to tell."""
    troubles = {}
    for model, at in await models.read_troubled(connection):
        state, until = service_state(model, at)
        report = model.key_report
        # Long after the last word of it nobody knows whether that key is still used.
        is_known = report is not None and at - report.reported_at < _KEY_KNOWN_FOR
        troubles[model.name] = ModelTrouble(
            state=state,
            until=until,
            key_seconds_left=(report.expires_at - at).total_seconds() if report and is_known else None,
            key_caller=report.caller if report and is_known else "",
        )
    return troubles


async def blocking_session(connection: AsyncConnection) -> BlockingSession | None:
    """The session that has held locks for longest of those that keep others waiting, or hold some on tasks."""
    row = (await connection.execute(_BLOCKING)).mappings().first()
    return BlockingSession(**row) if row else None


async def database_condition(connection: AsyncConnection) -> DatabaseCondition:
    """Locks, snapshots, dead rows and connections, as far as this role may see them.

    `pg_read_all_stats` lets it see the snapshots of other roles.
    """
    oldest = (await connection.execute(_SNAPSHOT)).mappings().one()
    dead = (await connection.execute(_DEAD_ROWS, {"names": list(_BUSY_TABLES)})).mappings()
    return DatabaseCondition(
        snapshot_seconds=float(oldest["seconds"]),
        snapshot_transactions=oldest["transactions"],
        dead_rows={row["name"]: row["dead"] for row in dead},
        connections=float((await connection.execute(_CONNECTIONS)).scalar_one()),
        blocking=await blocking_session(connection),
        refused=shared_by(connection, DatabaseOutage).refused,
    )
