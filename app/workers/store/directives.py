"""Telling workers to drain, restart or stop: one statement for one or for many, which tells nobody the same twice."""

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
    """Which live workers are meant; every field that is given narrows it."""

    ids: Collection[UUID] = ()
    names: Collection[str] = ()
    agent_type: AgentType | None = None
    labels: Collection[tuple[str, str]] = ()

    def values(self) -> dict[str, Any]:
        """What is given, as a statement takes it."""
        given: dict[str, Any] = {
            "ids": list(self.ids),
            "names": list(self.names),
            "agent_type": self.agent_type,
            "labels": [json.dumps({name: value}) for name, value in self.labels],
        }
        return {name: value for name, value in given.items() if value not in (None, [])}


@dataclass(frozen=True, slots=True, kw_only=True)
class Told:
    """A worker that has just been told to go, and what it had been told before."""

    worker_id: WorkerId
    name: str
    before: Directive | None


_MEANT = f"""{LIVE}
    AND (directive IS NULL OR directive = ANY (CAST(:weaker AS text[])))"""

# Heartbeats lock workers in the same order.
_DIRECT = """
WITH meant AS MATERIALIZED (
    SELECT id, directive FROM workers WHERE {where} ORDER BY id LIMIT :limit FOR NO KEY UPDATE
)
UPDATE workers w SET directive = :directive, directive_reason = :reason,
    state = CASE WHEN w.state = 'ready' THEN 'draining' ELSE w.state END
FROM meant WHERE w.id = meant.id RETURNING w.id, w.name, meant.directive
"""


async def count(connection: AsyncConnection, crew: WorkerSelector, directive: Directive) -> int:
    """How many of them are still to be told."""
    statement, values = _statement("SELECT count(*) FROM workers WHERE {where}", crew, directive)
    return int((await connection.execute(statement, values)).scalar_one())


async def direct(
    connection: AsyncConnection, crew: WorkerSelector, directive: Directive, reason: str, *, limit: int | None = None
) -> list[Told]:
    """Leave word for their next heartbeats, and give them no more leases; returns those that did not know it yet."""
    statement, values = _statement(_DIRECT, crew, directive)
    rows = await connection.execute(
        statement, {**values, "directive": directive.value, "reason": reason, "limit": limit}
    )
    told = [
        Told(worker_id=WorkerId(id_), name=name, before=Directive(before) if before else None)
        for id_, name, before in rows
    ]
    return sorted(told, key=lambda worker: worker.name)


def _statement(template: str, crew: WorkerSelector, directive: Directive) -> tuple[TextClause, dict[str, Any]]:
    given = crew.values()
    where = " AND ".join([_MEANT, *(_CONDITIONS[name] for name in given)])
    return text(template.format(where=where)), {**given, "weaker": sorted(weaker(directive))}
