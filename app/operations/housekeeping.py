"""Making room: partitions ahead, old history dropped, and small tables pruned."""

from typing import Any

from sqlalchemy.ext.asyncio import AsyncConnection

from app.domain.series import SeriesPolicy
from app.operations.context import KEEP
from app.store import (
    alerts,
    attempts,
    context,
    degradation,
    fingerprints,
    holding,
    judgements,
    keys,
    llm_usage,
    minutes,
    partitions,
    performance,
    replacements,
    series,
    utilisation,
    webhooks,
    workers,
)

_PUSHED = SeriesPolicy()


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
        "replacements": await replacements.prune(connection, history_days),
        "attempts": await attempts.prune(connection, history_days),
        "alerts": await alerts.prune(connection, history_days),
        "webhooks": await webhooks.prune(connection, history_days),
        "degradation": await degradation.prune(connection, history_days),
        "leases": await holding.forget(connection),
        "fingerprints": await fingerprints.prune(connection),
        "minutes": await minutes.prune(connection, history_days),
        "performance": await performance.prune(connection, history_days),
        "judgements": await judgements.prune(connection, history_days),
        "calls": await llm_usage.prune(connection, history_days),
        "utilisation": await utilisation.prune(connection, history_days),
        "pushed": await series.prune(connection, days=_PUSHED.keep_days, batch_days=_PUSHED.remember_batches_days),
        "context": await context.prune(connection, keep=KEEP, days=history_days),
    }
