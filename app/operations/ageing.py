"""Letting what waits become more urgent."""

from typing import Any

from sqlalchemy.ext.asyncio import AsyncConnection

from app.domain.ageing import AgeingPolicy
from app.store import ageing


async def tick(connection: AsyncConnection, policy: AgeingPolicy) -> dict[str, Any]:
    """One turn. The higher step first, so that nothing climbs two in one turn."""
    aged = [await ageing.age(connection, step.priority, step.after) for step in policy.steps]
    return {"aged": sum(aged), "urgent": await ageing.hurry(connection, policy.urgent_within)}
