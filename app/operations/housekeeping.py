"""Making room: partitions ahead, old history dropped, and small tables pruned."""

from typing import Any

from sqlalchemy.ext.asyncio import AsyncConnection

from app.store import attempts, keys, partitions, workers


async def run(connection: AsyncConnection, *, history_days: int, events_days: int) -> dict[str, Any]:
    """One round; retention in days."""
    return {
        "partitions_made": await partitions.create_ahead(connection),
        "dropped": [
            *await partitions.drop_older(connection, "task_history", history_days),
            *await partitions.drop_older(connection, "events", events_days),
        ],
        "keys": await keys.prune(connection),
        "workers": await workers.prune(connection, history_days),
        "attempts": await attempts.prune(connection, history_days),
    }
