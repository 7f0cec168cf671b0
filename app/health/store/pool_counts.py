"""Statements on the pool and the background duties, whose cost does not grow with the tasks."""

from datetime import timedelta

from sqlalchemy import text
from sqlalchemy.exc import DBAPIError
from sqlalchemy.ext.asyncio import AsyncConnection

from app.health.rules.runtime import PoolCounts
from app.health.rules.snapshot import DutyTurn
from app.health.store.observations import ObservedWorkers
from app.kernel.agents import AgentType
from app.workers.store.tables import LIVE

_HURRY = text("SELECT set_config('statement_timeout', :limit, true)")
# SQLSTATE query_canceled, by which PostgreSQL ends a statement at its timeout.
_CANCELED = "57014"

# A starting worker has passed no health report, so it is not healthy, and cannot fall silent.
_POOL = text(f"""
SELECT count(*) FILTER (WHERE not_ready_reason IS NOT NULL) AS not_ready,
       min(name || ': ' || not_ready_reason) AS not_ready_example,
       count(*) FILTER (WHERE state <> 'starting' AND last_seen_at <= now() - make_interval(secs => :silent)) AS silent,
       (SELECT count(*) FROM workers WHERE state IN ('lost', 'failed')
          AND ended_at > now() - CAST(:lately AS interval)) AS failed
FROM workers WHERE {LIVE}
""")

# Draining workers take no more tasks, so they are no capacity of any agent type.
_BY_AGENT = text("""
SELECT agent_type, count(*) AS able, count(*) FILTER (WHERE agent_type = w.assigned_agent) AS assigned
FROM workers w CROSS JOIN LATERAL unnest(w.capabilities) AS capability (agent_type)
WHERE w.state IN ('starting', 'ready') AND w.not_ready_reason IS NULL GROUP BY 1
""")

_TURNS = text("""
SELECT duty, extract(epoch FROM now() - last_run_at)::float8 AS seconds_ago, every_seconds FROM loop_ticks
WHERE last_run_at IS NOT NULL
""")


async def limit_statement_time(connection: AsyncConnection, seconds: float) -> None:
    """Let no statement of this transaction take longer, waiting for locks included."""
    await connection.execute(_HURRY, {"limit": f"{max(1, round(seconds * 1000))}ms"})


def is_statement_timeout(error: BaseException) -> bool:
    """Whether a statement was ended for its length, while the database is there."""
    cause = error.__cause__
    return isinstance(cause, DBAPIError) and getattr(cause.orig, "sqlstate", None) == _CANCELED


async def read_pool(
    connection: AsyncConnection, workers: ObservedWorkers, *, silent_seconds: float, lately: timedelta
) -> PoolCounts:
    """Live workers by state, as observed at one look, and how many ended as lost or failed within `lately`."""
    counts = (await connection.execute(_POOL, {"silent": silent_seconds, "lately": lately})).mappings().one()
    agents = [dict(row) for row in (await connection.execute(_BY_AGENT)).mappings()]
    return PoolCounts(
        **counts,
        starting=workers.starting,
        idle=workers.ready - workers.busy,
        busy=workers.busy,
        draining=workers.draining,
        assigned_workers={AgentType(row["agent_type"]): row["assigned"] for row in agents},
        able_workers={AgentType(row["agent_type"]): row["able"] for row in agents},
    )


async def duty_turns(connection: AsyncConnection) -> list[DutyTurn]:
    """Last turn of each background duty that ever had one."""
    return [DutyTurn(**row) for row in (await connection.execute(_TURNS)).mappings()]
