"""How workers and background duties stand, for whoever looks."""

import json
from collections.abc import Collection
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncConnection

from app.domain.agents import AgentType
from app.store import holding

_WORKERS = text(f"""
SELECT CASE WHEN w.state = 'ready' AND held.id IS NOT NULL THEN 'busy' ELSE w.state END AS state, count(*) AS workers
FROM workers w {holding.joined("w.id")}
WHERE w.state IN ('starting', 'ready', 'draining') GROUP BY 1
""")

# A worker that has been asked for and not registered yet has not said what it can run.
_SERVED = text("""
SELECT DISTINCT served.agent_type FROM workers w
LEFT JOIN LATERAL unnest(w.capabilities) AS served (agent_type) ON true
WHERE w.state IN ('starting', 'ready')
""")

_TURNS = text("""
SELECT duty, now() - last_run_at AS ago, CAST(result AS text) AS result FROM loop_ticks
WHERE duty = ANY (CAST(:duties AS text[])) AND last_run_at IS NOT NULL
""")


@dataclass(frozen=True, slots=True, kw_only=True)
class LastTurn:
    """When a background duty last had its turn, and what came of it."""

    ago: timedelta
    result: dict[str, Any]


async def workers_by_state(connection: AsyncConnection) -> dict[str, int]:
    """Live workers by state, `busy` being those that hold a task: a look at each worker, none at other tasks."""
    return {row["state"]: row["workers"] for row in (await connection.execute(_WORKERS)).mappings()}


async def served(connection: AsyncConnection) -> frozenset[AgentType]:
    """The agent types that a worker can run which is ready or about to be; all while one has yet to say."""
    found = set((await connection.execute(_SERVED)).scalars())
    return frozenset(AgentType) if None in found else frozenset(map(AgentType, found))


async def turns(connection: AsyncConnection, duties: Collection[str]) -> dict[str, LastTurn]:
    """The last turns of these duties; those that never ran are left out."""
    rows = (await connection.execute(_TURNS, {"duties": list(duties)})).mappings()
    return {row["duty"]: LastTurn(ago=row["ago"], result=json.loads(row["result"] or "{}")) for row in rows}


async def ping(connection: AsyncConnection) -> dict[str, Any]:
    """That the database answers."""
    return {"one": (await connection.execute(text("SELECT 1"))).scalar_one()}
