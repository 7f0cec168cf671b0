"""The gate of the permits: one row whose lock lets one transaction at a time count the live permits and grant more."""

import json
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any
from uuid import UUID

from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncConnection

from app.admin.rules.config import LimitsConfig
from app.kernel.access import LAUNCHED, vouching_key
from app.kernel.agents import AgentType
from app.kernel.lanes import Priority
from app.kernel.states import WorkerState
from app.llm.rules.permits import PermitCounts, PermitRequest, RequestId, Reservation, VirtualTimes
from app.llm.rules.spending import Budget, BudgetOwner
from app.llm.store import budgets, permits
from app.llm.store.permits import request_columns, request_id_columns
from app.queue.store import lease_ledger


@dataclass(frozen=True, slots=True, kw_only=True)
class PermitLoad:
    """Live permits by model at one moment, and the most that there may be of all models together."""

    at: datetime
    total_limit: int
    permit_counts: Mapping[str, PermitCounts]


@dataclass(frozen=True, slots=True, kw_only=True)
class HeldTask:
    """The task that a worker holds by its lease, as far as a call for it is concerned."""

    task_id: UUID
    agent_type: AgentType
    goal_id: str | None
    priority: Priority
    principal: str


@dataclass(frozen=True, slots=True, kw_only=True)
class GateState:
    """The load, also by holder and model, the reservations, and whether a request was granted a permit before.

    `tasks` are those that the workers among the callers hold now, `budgets` those of their goals and keys, and of all
    agent types.
    """

    load: PermitLoad
    held: Mapping[tuple[str, str], int]
    reservations: Sequence[Reservation]
    is_repeated: bool
    tasks: Mapping[UUID, HeldTask]
    budgets: Mapping[BudgetOwner, Budget]


_RESERVATION = "key_id, request_id, model, agent_type, priority, task_id, worker_id, tokens, since, due, lapses"
DEFAULT_LIMIT = {"default_limit": LimitsConfig().max_concurrent_llm_calls}

# Live permits are counted from their rows, not kept in a counter: they end by the clock and with their workers as well,
# and a counter would drift. So nobody may grant between a count and the insert that follows it.
_LOCK = text("SELECT turns FROM llm_gate FOR UPDATE")

_CREATE = text("INSERT INTO llm_gate (turns) VALUES ('{}') ON CONFLICT DO NOTHING")

_WRITE_VIRTUAL_TIMES = text("UPDATE llm_gate SET turns = CAST(:turns AS jsonb)")

# Read by every statement that counts, not cached: a smaller limit holds from the next decision on.
TOTAL_LIMIT = """
coalesce((SELECT (document #>> '{resource_limits,max_concurrent_llm_calls}')::int FROM config_versions
          ORDER BY version DESC LIMIT 1), :default_limit)
"""

_LIVE = """
SELECT model, count(*) AS permits, count(*) FILTER (WHERE is_probe) AS probes,
       array_agg(DISTINCT coalesce(principal, key_id)) AS principals FROM llm_permits
"""

LOAD = text(f"""
SELECT clock_timestamp() AS at, {TOTAL_LIMIT} AS total_limit,
    (SELECT jsonb_agg(live) FROM ({_LIVE} WHERE ended_at IS NULL GROUP BY model) live) AS counts
""")

# The task of the lease that a worker holds now. A draining worker finishes its task; one that is over holds none.
_TASKS = f"""
SELECT w.id AS worker_id, held.id AS task_id, held.agent_type, held.goal_id, held.priority,
       w.provisioner, w.registered_by
FROM workers w {lease_ledger.last_and_held("w.id")}
WHERE w.id = ANY (CAST(:workers AS uuid[])) AND held.lease_expires_at > clock_timestamp()
  AND w.state IN ('{WorkerState.READY.value}', '{WorkerState.DRAINING.value}')
"""

_TASK_OF = text(_TASKS)

# One round trip, as all others wait for it. What expires here is live in the statement's own view, so it is taken off;
# a permit whose renewal is under way is waited for, not ended, and so counted. A probe counts for as long as a breaker
# is open at a time: who keeps it for longer keeps nobody else from the next one.
STATE = text(f"""
WITH ended AS MATERIALIZED ({permits.EXPIRE} RETURNING p.id),
asking AS MATERIALIZED ({_TASKS}),
named AS MATERIALIZED (
    SELECT goal_id FROM asking WHERE goal_id IS NOT NULL UNION SELECT unnest(CAST(:goals AS text[]))
), paying AS MATERIALIZED (
    SELECT unnest(CAST(:keys AS text[])) AS key_id
    UNION SELECT CASE WHEN provisioner IS NULL THEN registered_by ELSE '{LAUNCHED}' END FROM asking
), budget AS MATERIALIZED (
    SELECT 'goal' AS scope, g.id AS name, g.money_budget, g.token_budget, NULL::timestamptz AS ends_at,
        g.money_base + coalesce(s.cost_usd, 0) - g.money_since AS cost_usd, s.tokens, s.max_cost_usd, s.max_tokens,
        s.calls AS ended_calls, s.cost_usd / nullif(s.calls, 0) AS mean_cost_usd,
        s.tokens::float8 / nullif(s.calls, 0) AS mean_tokens
    FROM named JOIN goals g ON g.id = named.goal_id LEFT JOIN llm_spending s ON s.goal_id = g.id
    WHERE g.money_budget IS NOT NULL OR g.token_budget IS NOT NULL
    UNION ALL
    SELECT {budgets.NOW} FROM llm_budgets b WHERE b.scope = 'agent'
    UNION ALL
    SELECT own.* FROM paying CROSS JOIN LATERAL (
        SELECT {budgets.NOW} FROM llm_budgets b WHERE b.scope = 'key' AND b.name = paying.key_id LIMIT 1) own
)
SELECT clock_timestamp() AS at, {TOTAL_LIMIT} AS total_limit,
    (SELECT jsonb_agg(live) FROM (
        SELECT model, coalesce(worker_id::text, key_id) AS holder, count(*) AS permits,
            count(*) FILTER (
                WHERE is_probe AND granted_at > clock_timestamp() - make_interval(secs => :probe)) AS probes
        FROM llm_permits WHERE ended_at IS NULL AND id NOT IN (SELECT id FROM ended) GROUP BY model, holder) live
    ) AS counts,
    (SELECT jsonb_agg(asking) FROM asking) AS tasks,
    (SELECT jsonb_agg(used) FROM ({budgets.with_live_calls("SELECT id FROM ended")}) used) AS budgets,
    (SELECT jsonb_agg(reservation) FROM (
        SELECT {_RESERVATION} FROM llm_claims
        WHERE lapses > clock_timestamp()) reservation) AS reservations,
    EXISTS (SELECT FROM llm_permits
        JOIN unnest(CAST(:keys AS text[]), CAST(:requests AS uuid[])) AS asked (key_id, request_id)
        USING (key_id, request_id)) AS is_repeated
""")

_DELETE_RESERVATIONS = text("""
DELETE FROM llm_claims c USING unnest(CAST(:keys AS text[]), CAST(:requests AS uuid[])) AS resumed (key_id, request_id)
WHERE c.key_id = resumed.key_id AND c.request_id = resumed.request_id
""")

_WRITE_RESERVATIONS = text(f"""
INSERT INTO llm_claims ({_RESERVATION})
SELECT * FROM jsonb_to_recordset(CAST(:reservations AS jsonb)) AS new (
    key_id text, request_id uuid, model text, agent_type text, priority smallint, task_id uuid, worker_id uuid,
    tokens bigint, since timestamptz, due timestamptz, lapses timestamptz)
ON CONFLICT (key_id, request_id) DO UPDATE SET model = excluded.model, agent_type = excluded.agent_type,
    priority = excluded.priority, task_id = excluded.task_id, tokens = excluded.tokens, since = excluded.since,
    due = excluded.due, lapses = excluded.lapses
""")

_TIMES = ("since", "due", "lapses")

_PRUNE = text("DELETE FROM llm_claims WHERE lapses < now()")


async def lock(connection: AsyncConnection) -> VirtualTimes:
    """Keep others from granting permits until the transaction ends; return the virtual times."""
    times = (await connection.execute(_LOCK)).scalar_one_or_none()
    # The first caller of all creates the row; a rival that does so too waits in the insert, and then for the lock.
    if times is None:
        await connection.execute(_CREATE)
        times = (await connection.execute(_LOCK)).scalar_one()
    finish = {agent: times[agent] for agent in AgentType if agent in times}
    return VirtualTimes(finish=finish, virtual=times.get("virtual", 0.0))


async def write_virtual_times(connection: AsyncConnection, virtual_times: VirtualTimes) -> None:
    """Store the virtual times, with the gate locked."""
    values = {agent.value: finish for agent, finish in virtual_times.finish.items()}
    await connection.execute(_WRITE_VIRTUAL_TIMES, {"turns": json.dumps({**values, "virtual": virtual_times.virtual})})


async def read_load(connection: AsyncConnection) -> PermitLoad:
    """Live permits and their limit. Without the gate's lock others may be granted in the next moment."""
    return _load((await connection.execute(LOAD, DEFAULT_LIMIT)).mappings().one())


async def read_state(
    connection: AsyncConnection,
    request_ids: Collection[RequestId],
    worker_ids: Collection[UUID],
    goal_ids: Collection[str],
    probe_seconds: float,
) -> GateState:
    """End expired permits, and read all that a decision on these requests needs, with the gate locked."""
    values = {**DEFAULT_LIMIT, **request_id_columns(request_ids), "workers": list(worker_ids), "probe": probe_seconds}
    values |= {"goals": list(goal_ids)}
    row = (await connection.execute(STATE, values)).mappings().one()
    counts = row["counts"] or ()
    permits_of, probes_of = Counter[str](), Counter[str]()
    for item in counts:
        permits_of[item["model"]] += item["permits"]
        probes_of[item["model"]] += item["probes"]
    by_model = {name: PermitCounts(permits=count, probes=probes_of[name]) for name, count in permits_of.items()}
    return GateState(
        load=PermitLoad(at=row["at"], total_limit=row["total_limit"], permit_counts=by_model),
        held={(item["holder"], item["model"]): item["permits"] for item in counts},
        reservations=[_reservation(item) for item in row["reservations"] or ()],
        is_repeated=row["is_repeated"],
        tasks={UUID(item["worker_id"]): _held_task(item) for item in row["tasks"] or ()},
        budgets=dict(map(budgets.read_budget, row["budgets"] or ())),
    )


async def task_of(connection: AsyncConnection, worker_id: UUID) -> HeldTask | None:
    """The task that a worker holds now; None without one."""
    row = (await connection.execute(_TASK_OF, {"workers": [worker_id]})).mappings().first()
    return _held_task(dict(row)) if row else None


async def replace_reservations(
    connection: AsyncConnection, resumed_ids: Sequence[RequestId], new: Sequence[Reservation]
) -> None:
    """Delete the resumed reservations and write the new ones, with the gate locked."""
    # A request that is refused again keeps its row, which the insert updates.
    new_ids = {reservation.request.id for reservation in new}
    if deleted_ids := [request_id for request_id in resumed_ids if request_id not in new_ids]:
        await connection.execute(_DELETE_RESERVATIONS, request_id_columns(deleted_ids))
    if new:
        rows = [
            {**request_columns(reservation.request), **{name: getattr(reservation, name) for name in _TIMES}}
            for reservation in new
        ]
        await connection.execute(_WRITE_RESERVATIONS, {"reservations": json.dumps(rows, default=str)})


async def prune(connection: AsyncConnection) -> int:
    """Delete lapsed reservations; return the number deleted."""
    return (await connection.execute(_PRUNE)).rowcount


def _load(row: Any) -> PermitLoad:
    counts = {
        item["model"]: PermitCounts(
            permits=item["permits"], probes=item["probes"], principals=frozenset(item["principals"])
        )
        for item in row["counts"] or ()
    }
    return PermitLoad(at=row["at"], total_limit=row["total_limit"], permit_counts=counts)


def _held_task(row: Mapping[str, Any]) -> HeldTask:
    return HeldTask(
        task_id=UUID(str(row["task_id"])),
        agent_type=AgentType(row["agent_type"]),
        goal_id=row["goal_id"],
        priority=Priority(row["priority"]),
        principal=vouching_key(row["provisioner"], row["registered_by"]),
    )


def _reservation(row: dict[str, Any]) -> Reservation:
    since, due, lapses = (datetime.fromisoformat(row[name]) for name in _TIMES)
    request = PermitRequest(
        id=RequestId(row["key_id"], UUID(row["request_id"])),
        model=row["model"],
        agent_type=AgentType(row["agent_type"]),
        priority=Priority(row["priority"]),
        tokens=row["tokens"],
        task_id=None if row["task_id"] is None else UUID(row["task_id"]),
        worker_id=None if row["worker_id"] is None else UUID(row["worker_id"]),
    )
    return Reservation(request=request, since=since, due=due, lapses=lapses)
