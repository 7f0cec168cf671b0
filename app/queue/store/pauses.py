"""Agent types whose tasks are not leased for the time being; the claim looks here within its own statement."""

from collections.abc import Collection

from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncConnection

from app.kernel.agents import AgentType
from app.queue.rules.status import Pause

_PAUSE = text("""
INSERT INTO pauses (agent_type, reason, paused_by)
SELECT agent_type, :reason, :by FROM unnest(CAST(:agents AS text[])) AS asked (agent_type) ORDER BY agent_type
ON CONFLICT (agent_type) DO NOTHING
""")

_RESUME = text("DELETE FROM pauses WHERE agent_type = ANY (CAST(:agents AS text[]))")

_READ = text("SELECT agent_type, reason, paused_by, paused_at FROM pauses ORDER BY agent_type")


async def pause(connection: AsyncConnection, agents: Collection[AgentType], reason: str, by: str) -> None:
    """Pause agent types; those that are paused already stay as they are, with the reason that was given first."""
    values = {"agents": [agent.value for agent in agents], "reason": reason, "by": by}
    await connection.execute(_PAUSE, values)


async def resume(connection: AsyncConnection, agents: Collection[AgentType]) -> int:
    """End pauses; returns how many there were."""
    return (await connection.execute(_RESUME, {"agents": [agent.value for agent in agents]})).rowcount


async def read(connection: AsyncConnection) -> list[Pause]:
    """All pauses."""
    rows = (await connection.execute(_READ)).mappings()
    return [Pause(**{**row, "agent_type": AgentType(row["agent_type"])}) for row in rows]
