"""How workers and background duties stand, for whoever looks."""

from typing import Any

from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncConnection

from app.kernel.agents import AgentType

# A worker that has been asked for and not registered yet has not said what it can run.
_SERVED = text("""
SELECT DISTINCT served.agent_type FROM workers w
LEFT JOIN LATERAL unnest(w.capabilities) AS served (agent_type) ON true
WHERE w.state IN ('starting', 'ready')
""")


async def served(connection: AsyncConnection) -> frozenset[AgentType]:
    """The agent types that a worker can run which is ready or about to be; all while one has yet to say."""
    found = set((await connection.execute(_SERVED)).scalars())
    return frozenset(AgentType) if None in found else frozenset(map(AgentType, found))


async def ping(connection: AsyncConnection) -> dict[str, Any]:
    """That the database answers."""
    return {"one": (await connection.execute(text("SELECT 1"))).scalar_one()}
