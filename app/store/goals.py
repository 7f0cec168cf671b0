"""Research goals: the share that each has of the lanes where its tasks wait."""

from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncConnection

_WEIGH = text("""
INSERT INTO goals AS known (id, weight) VALUES (:id, :weight)
ON CONFLICT (id) DO UPDATE SET weight = excluded.weight WHERE known.weight <> excluded.weight
""")

_WEIGHT = text("SELECT weight FROM goals WHERE id = :id")

USUAL_WEIGHT = 1.0


async def weigh(connection: AsyncConnection, goal_id: str, weight: float) -> None:
    """Give a goal its weight, for the tasks that it submits from now on."""
    await connection.execute(_WEIGH, {"id": goal_id, "weight": weight})


async def weight(connection: AsyncConnection, goal_id: str) -> float:
    """The weight of a goal; the usual one for a goal that nobody has weighed."""
    found = (await connection.execute(_WEIGHT, {"id": goal_id})).scalar()
    return USUAL_WEIGHT if found is None else float(found)
