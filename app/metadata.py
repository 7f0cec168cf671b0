"""Every table of the service, for migrations and for the test that compares them with a migrated database."""

from app.admin.store import tables as admin
from app.agents.store import tables as agents
from app.db.columns import metadata
from app.db.served_revisions import served_revisions
from app.goals.store import tables as goals
from app.health.store import tables as health
from app.llm.store import tables as llm
from app.memory.store import tables as memory
from app.queue.store import event_tables
from app.queue.store import tables as queue
from app.scaling.store import tables as scaling
from app.workers.store import tables as workers

__all__ = [
    "admin",
    "agents",
    "event_tables",
    "goals",
    "health",
    "llm",
    "memory",
    "metadata",
    "queue",
    "scaling",
    "served_revisions",
    "workers",
]
