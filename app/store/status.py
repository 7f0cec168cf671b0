"""Counts for people who look."""

from typing import Any

from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncConnection

from app.store import holding

_TASKS = text("SELECT agent_type, state, count(*) AS tasks FROM tasks GROUP BY agent_type, state")

_WORKERS = text(f"""
SELECT CASE WHEN w.state = 'ready' AND held.id IS NOT NULL THEN 'busy' ELSE w.state END AS state, count(*) AS workers
FROM workers w {holding.joined("w.id")}
WHERE w.state IN ('starting', 'ready', 'draining') GROUP BY 1
""")

_RECENT = text("""
SELECT state, count(*) AS tasks FROM task_history
WHERE finished_at > now() - interval '1 minute' GROUP BY state
""")


async def tasks_by_agent(connection: AsyncConnection) -> dict[str, dict[str, int]]:
    """Live tasks: agent type -> state -> how many."""
    counts: dict[str, dict[str, int]] = {}
    for row in (await connection.execute(_TASKS)).mappings():
        counts.setdefault(row["agent_type"], {})[row["state"]] = row["tasks"]
    return counts


async def workers_by_state(connection: AsyncConnection) -> dict[str, int]:
    """Live workers by state, `busy` being those that hold a task."""
    return {row["state"]: row["workers"] for row in (await connection.execute(_WORKERS)).mappings()}


async def finished_last_minute(connection: AsyncConnection) -> dict[str, int]:
    """Tasks that ended within the last minute, by how they ended."""
    return {row["state"]: row["tasks"] for row in (await connection.execute(_RECENT)).mappings()}


async def ping(connection: AsyncConnection) -> dict[str, Any]:
    """That the database answers."""
    return {"one": (await connection.execute(text("SELECT 1"))).scalar_one()}
