"""Judges whether lost workers are replaced with success."""

from sqlalchemy.ext.asyncio import AsyncConnection

from app.workers.rules.recovery import Recovery, RecoveryPolicy, assess
from app.workers.store import pool


async def recovery(connection: AsyncConnection) -> Recovery:
    """Whether lost workers are replaced with success; where not, the pool works at reduced capacity."""
    policy = RecoveryPolicy()
    return assess(await pool.recovery(connection, policy), policy)
