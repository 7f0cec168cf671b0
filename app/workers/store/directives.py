"""Directives to drain, restart or stop workers: one statement for one or for many, which repeats none."""

import json
from collections.abc import Collection
from dataclasses import dataclass
from typing import Any
from uuid import UUID

from sqlalchemy import TextClause, text
from sqlalchemy.ext.asyncio import AsyncConnection

from app.kernel.agents import AgentType
from app.kernel.ids import WorkerId
from app.workers.rules.workers import Directive, weaker
from app.workers.store.tables import LIVE

_CONDITIONS = {
    "ids": "id = ANY (CAST(:ids AS uuid[]))",
    "names": "name = ANY (CAST(:names AS text[]))",
    "agent_type": "assigned_agent = :agent_type",
    "labels": "labels @> ALL (CAST(:labels AS jsonb[]))",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkerSelector:
    """Filter of live workers; every field that is set narrows it."""

    ids: Collection[UUID] = ()
    names: Collection[str] = ()
    agent_type: AgentType | None = None
    labels: Collection[tuple[str, str]] = ()

    def values(self) -> dict[str, Any]:
        """The fields that are set, as parameters of a statement."""
        fields: dict[str, Any] = {
            "ids": list(self.ids),
            "names": list(self.names),
            "agent_type": self.agent_type,
            "labels": [json.dumps({name: value}) for name, value in self.labels],
        }
        return {name: value for name, value in fields.items() if value not in (None, [])}


@dataclass(frozen=True, slots=True, kw_only=True)
class DirectedWorker:
    """A worker that has just got a directive, with the one that it replaced."""

    worker_id: WorkerId
    name: str
    previous_directive: Directive | None


_SELECTABLE = f"""{LIVE}
    AND (directive IS NULL OR directive = ANY (CAST(:weaker AS text[])))"""

# In the order of ids, in which heartbeats lock workers too, or the two could deadlock. A worker that starts keeps its
# state: it gets the directive with its first heartbeat.
_DIRECT = """
WITH selected AS MATERIALIZED (
    SELECT id, directive FROM workers WHERE {where} ORDER BY id LIMIT :limit FOR NO KEY UPDATE
)
UPDATE workers w SET directive = :directive, directive_reason = :reason,
    state = CASE WHEN w.state = 'ready' THEN 'draining' ELSE w.state END
FROM selected WHERE w.id = selected.id RETURNING w.id, w.name, selected.directive
"""


async def count(connection: AsyncConnection, selector: WorkerSelector, directive: Directive) -> int:
    """Number of selected workers that do not have this directive, or a stronger one, yet."""
    statement, values = _statement("SELECT count(*) FROM workers WHERE {where}", selector, directive)
    return int((await connection.execute(statement, values)).scalar_one())


async def direct(
    connection: AsyncConnection,
    selector: WorkerSelector,
    directive: Directive,
    reason: str,
    *,
    limit: int | None = None,
) -> list[DirectedWorker]:
    """Set a directive, which workers read with their next heartbeat; they get no more leases from now on.

    Returns the workers that did not have it yet, by name.
    """
    statement, values = _statement(_DIRECT, selector, directive)
    rows = await connection.execute(
        statement, {**values, "directive": directive.value, "reason": reason, "limit": limit}
    )
    workers = [
        DirectedWorker(worker_id=WorkerId(id_), name=name, previous_directive=Directive(previous) if previous else None)
        for id_, name, previous in rows
    ]
    return sorted(workers, key=lambda worker: worker.name)


def _statement(template: str, selector: WorkerSelector, directive: Directive) -> tuple[TextClause, dict[str, Any]]:
    values = selector.values()
    where = " AND ".join([_SELECTABLE, *(_CONDITIONS[name] for name in values)])
    return text(template.format(where=where)), {**values, "weaker": sorted(weaker(directive))}
