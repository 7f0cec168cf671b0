"""Offers of the workers of the usual pool to tasks, by agent type: of those that live, or that it had last."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from sqlalchemy import RowMapping, text
from sqlalchemy.ext.asyncio import AsyncConnection

from app.kernel import resources
from app.kernel.agents import AgentType
from app.kernel.resources import Resources
from app.workers.store.hosts import FRESH_SECONDS
from app.workers.store.tables import LIVE

# Of a pool that has no worker now: those that it had last tell what it would start.
_MOST_ENDED = 100
_IS_USUAL = "NOT EXISTS (SELECT FROM classes c WHERE c.provisioner = w.provisioner AND c.host = w.host)"
_OFFERS = text(f"""
WITH classes AS MATERIALIZED (SELECT provisioner, host FROM hosts WHERE serves IS NOT NULL),
live AS MATERIALIZED (
    SELECT DISTINCT provisioner IS NOT NULL AS is_ours, capabilities, cpu_cores, memory_gb, gpus, resources
    FROM workers w WHERE w.{LIVE} AND registered_at IS NOT NULL AND {_IS_USUAL}
), ended AS (
    SELECT true AS is_ours, capabilities, cpu_cores, memory_gb, gpus, resources
    FROM (SELECT * FROM workers WHERE ended_at IS NOT NULL ORDER BY ended_at DESC LIMIT {_MOST_ENDED}) w
    WHERE provisioner IS NOT NULL AND registered_at IS NOT NULL AND {_IS_USUAL}
      AND NOT EXISTS (SELECT FROM live WHERE is_ours)
)
SELECT DISTINCT offer.*, EXISTS (
    SELECT FROM hosts WHERE seen_at >= now() - interval '{FRESH_SECONDS:g} s' AND serves IS NULL
) AS has_hosts
FROM (SELECT * FROM live UNION ALL SELECT * FROM ended) offer
""")

_PRESENT = text("""
SELECT DISTINCT capabilities, cpu_cores, memory_gb, gpus, resources FROM workers
WHERE state IN ('starting', 'ready') AND registered_at IS NOT NULL AND directive IS NULL AND not_ready_reason IS NULL
""")


@dataclass(frozen=True, slots=True, kw_only=True)
class Offers:
    """Resources offered to each agent type; not `is_known` while the pool never had a worker that registered."""

    is_known: bool
    by_agent: Mapping[AgentType, Sequence[Resources]]


async def read(connection: AsyncConnection) -> Offers:
    """The offers, each once; reads every live worker."""
    rows = (await connection.execute(_OFFERS)).mappings().all()
    return Offers(
        is_known=any(row["is_ours"] or not row["has_hosts"] for row in rows),
        by_agent={agent: list(offers) for agent, offers in _by_agent(rows).items()},
    )


async def present(connection: AsyncConnection) -> dict[AgentType, set[Resources]]:
    """Resources that workers which may lease offer now, by agent type; reads every live worker."""
    return _by_agent((await connection.execute(_PRESENT)).mappings().all())


def _by_agent(rows: Sequence[RowMapping]) -> dict[AgentType, set[Resources]]:
    by_agent: dict[AgentType, set[Resources]] = {}
    for row in rows:
        amounts = {"cores": row["cpu_cores"] or 0, "memory_gb": row["memory_gb"] or 0, "gpus": row["gpus"] or 0}
        offer = resources.read({**amounts, "named": row["resources"]})
        for name in row["capabilities"]:
            by_agent.setdefault(AgentType(name), set()).add(offer)
    return by_agent
