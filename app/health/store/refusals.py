"""Statements on refused requests, counted by minute and reason over all processes of the API."""

from collections.abc import Mapping

from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncConnection

from app.db.retention import pruning
from app.kernel.access import RefusalReason

# In the order of the key, so that two processes never wait for each other in a circle.
_ADD = text("""
INSERT INTO refusals AS stored (minute, reason, requests)
SELECT date_trunc('minute', now()), reason, requests
FROM unnest(CAST(:reasons AS text[]), CAST(:requests AS bigint[])) AS new (reason, requests) ORDER BY reason
ON CONFLICT (minute, reason) DO UPDATE SET requests = stored.requests + excluded.requests
""")
_RECENT = text("""
SELECT reason, sum(requests)::bigint AS requests FROM refusals
WHERE minute > now() - interval '5 minutes' GROUP BY reason
""")

prune = pruning("refusals", "minute")


async def add(connection: AsyncConnection, counts: Mapping[RefusalReason, int]) -> None:
    """Add counts to this minute."""
    values = {"reasons": [reason.value for reason in counts], "requests": list(counts.values())}
    await connection.execute(_ADD, values)


async def recent(connection: AsyncConnection) -> dict[RefusalReason, int]:
    """Requests that were refused within the last five minutes, by reason."""
    return {RefusalReason(row.reason): row.requests for row in await connection.execute(_RECENT)}
