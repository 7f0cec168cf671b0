"""What happens to research goals: so far, they are weighed."""

from sqlalchemy.ext.asyncio import AsyncConnection

from app.store import goals


async def weigh(connection: AsyncConnection, goal_id: str, weight: float) -> None:
    """Give a goal its share of the lanes; processes that submit for it learn of it within a second."""
    await goals.weigh(connection, goal_id, weight)
