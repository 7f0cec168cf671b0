"""Agent types that operators have paused, which the claim's own statement skips, and those that workers serve."""

from collections.abc import Collection

from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncConnection

from app.kernel.agents import AgentType
from app.queue.rules.status import Pause

# Of an agent type that is not paused there is no row to lock.
_LOCK = text("SELECT pg_advisory_xact_lock(hashtextextended('pauses', 0))")

_PAUSE = text("""
INSERT INTO pauses (agent_type, reason, paused_by)
SELECT agent_type, :reason, :by FROM unnest(CAST(:agents AS text[])) AS agent (agent_type) ORDER BY agent_type
ON CONFLICT (agent_type) DO NOTHING
""")

_RESUME = text("DELETE FROM pauses WHERE agent_type = ANY (CAST(:agents AS text[]))")

_READ_PAUSES = text("SELECT agent_type, reason, paused_by, paused_at FROM pauses ORDER BY agent_type")

# A worker that has been asked for and not registered yet has not said what it can run.
_SERVED = text("""
SELECT DISTINCT served.agent_type FROM workers w
LEFT JOIN LATERAL unnest(w.capabilities) AS served (agent_type) ON true
WHERE w.state IN ('starting', 'ready') AND w.not_ready_reason IS NULL
""")


async def lock_pauses(connection: AsyncConnection) -> list[Pause]:
    """Return all pauses, which nobody else changes until the transaction ends."""
    await connection.execute(_LOCK)
    return await read_pauses(connection)


async def pause(connection: AsyncConnection, agents: Collection[AgentType], reason: str, by: str) -> None:
    """Pause agent types; those that are paused already keep their first reason."""
    values = {"agents": [agent.value for agent in agents], "reason": reason, "by": by}
    await connection.execute(_PAUSE, values)


async def resume(connection: AsyncConnection, agents: Collection[AgentType]) -> int:
    """End pauses; return their number."""
    return (await connection.execute(_RESUME, {"agents": [agent.value for agent in agents]})).rowcount


async def read_pauses(connection: AsyncConnection) -> list[Pause]:
    """Return all pauses."""
    rows = (await connection.execute(_READ_PAUSES)).mappings()
    return [Pause(**{**row, "agent_type": AgentType(row["agent_type"])}) for row in rows]


async def served_agents(connection: AsyncConnection) -> frozenset[AgentType]:
    """Return the agent types that a ready or starting worker can run; all while one of these has yet to say."""
    names = set((await connection.execute(_SERVED)).scalars())
    return frozenset(AgentType) if None in names else frozenset(map(AgentType, names))
