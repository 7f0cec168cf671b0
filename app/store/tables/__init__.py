"""The tables, as SQLAlchemy knows them; migrations build them, and a test holds the two together."""

from app.store.tables import (
    agents,
    alerts,
    config,
    context,
    decisions,
    degradation,
    goals,
    llm,
    metrics,
    pool,
    queue,
    webhooks,
)
from app.store.tables.base import metadata
from app.store.tables.tasks import KEPT_COLUMNS

__all__ = [
    "KEPT_COLUMNS",
    "agents",
    "alerts",
    "config",
    "context",
    "decisions",
    "degradation",
    "goals",
    "llm",
    "metadata",
    "metrics",
    "pool",
    "queue",
    "webhooks",
]
