"""Lists of tasks, live and finished, newest first: pages by `seq`, each at a bounded cost.

A filter that no index serves may match nothing among millions. A page therefore looks at no more than `LOOK` rows of
each table, back along the index on `seq`, and says how far it came: it may hold fewer tasks than asked for, or none,
and there is more as long as it has a `next`.
"""

import json
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any
from uuid import UUID

from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncConnection

from app.kernel.agents import AgentType
from app.kernel.lanes import Priority
from app.kernel.states import FINISHED, TaskState

LOOK = 50_000

COLUMNS = (
    "id, seq, state, agent_type, goal_id, priority, labels, timeout_seconds, deadline, max_attempts, failures, "
    "rescues, token, worker_id, created_at, waiting_since, leased_at, progress, depends_on, idempotency_key"
)
LIVE_COLUMNS = (
    "CASE WHEN run_at = 'infinity' THEN due_at ELSE run_at END AS run_at, "
    "coalesce(run_at = 'infinity', false) AS held, NULL::timestamptz AS finished_at, error"
)
HISTORY_COLUMNS = "NULL::timestamptz AS run_at, false AS held, finished_at, error"
# Finished tasks are kept in partitions of a day: whole days bound what is looked at, and leave out no row of them.
_DAYS = {
    "finished_after": "finished_at >= date_trunc('day', CAST(:finished_after AS timestamptz), 'UTC')",
    "finished_before": "finished_at < date_trunc('day', CAST(:finished_before AS timestamptz), 'UTC') "
    "+ interval '24 hours'",
}


# The same columns in `tasks` and `task_history`. A time is from the one on, and before the other.
_CONDITIONS = {
    "agent_type": "agent_type = :agent_type",
    "goal_id": "goal_id = :goal_id",
    "states": "state = ANY (:states)",
    "priority": "priority = :priority",
    "labels": "labels @> ALL (CAST(:labels AS jsonb[]))",
    "worker_id": "worker_id = :worker_id",
    "code": "error ->> 'code' = :code",
    "created_after": "created_at >= :created_after",
    "created_before": "created_at < :created_before",
    "finished_after": "finished_at >= :finished_after",
    "finished_before": "finished_at < :finished_before",
}
FINISHED_ONLY = ("finished_after", "finished_before")


@dataclass(frozen=True, slots=True, kw_only=True)
class Page:
    """Tasks without payload and result, and the `seq` below which the list goes on; None at its end."""

    items: Sequence[dict[str, Any]]
    next: int | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Selection:
    """Every field that is given narrows it: a task must agree with all of them, and carry all of the labels."""

    agent_type: AgentType | None = None
    goal_id: str | None = None
    states: Collection[TaskState] = ()
    priority: Priority | None = None
    labels: Collection[tuple[str, str]] = ()
    worker_id: UUID | None = None
    code: str | None = None
    created_after: datetime | None = None
    created_before: datetime | None = None
    finished_after: datetime | None = None
    finished_before: datetime | None = None

    def values(self) -> dict[str, Any]:
        """What is given, as a statement takes it."""
        given = {name: getattr(self, name) for name in _CONDITIONS}
        given["states"] = [state.value for state in self.states]
        given["labels"] = [json.dumps({name: value}) for name, value in self.labels]
        return {name: value for name, value in given.items() if value is not None and value != []}

    def conditions(self) -> dict[str, str]:
        """The condition of each field that is given."""
        return {name: _CONDITIONS[name] for name in self.values()}

    def where(self, *more: str) -> str:
        """All conditions, and some more, as one."""
        return " AND ".join([*more, *self.conditions().values()]) or "true"


async def page(
    connection: AsyncConnection, selection: Selection, *, before: int | None, limit: int, look: int = LOOK
) -> Page:
    """Up to `limit` of the selected tasks with `seq` below `before`, from at most `look` rows of each table."""
    sources = _sources(selection, before)
    if not sources:
        return Page(items=[], next=None)
    values = {**selection.values(), "limit": limit + 1, "look": look, "last": look - 1}
    values |= {} if before is None else {"before": before}
    rows = (await connection.execute(text(_statement(sources)), values)).mappings().all()
    items = [dict(row) for row in rows if row["id"] is not None]
    following = items[limit - 1]["seq"] if len(items) > limit else rows[0]["floor"]
    return Page(items=items[:limit], next=following)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Source:
    """A table, which of its rows to look at (an index or partition finds just those), and which of those to keep."""

    name: str
    table: str
    columns: str
    looked: str
    kept: str

    @property
    def rows(self) -> str:
        """The rows to keep among those to look at."""
        seen = f"SELECT * FROM {self.table} WHERE {self.looked} ORDER BY seq DESC LIMIT :look"
        return (
            f"{self.name} AS MATERIALIZED (SELECT {COLUMNS}, {self.columns} FROM ({seen}) seen "
            f"WHERE {self.kept} ORDER BY seq DESC LIMIT :limit)"
        )

    @property
    def floor(self) -> str:
        """The last `seq` that was looked at; NULL where the limit came first, or the end of the table."""
        last = f"SELECT seq FROM {self.table} WHERE {self.looked} ORDER BY seq DESC OFFSET :last LIMIT 1"
        return f"CASE WHEN (SELECT count(*) FROM {self.name}) < :limit THEN ({last}) END"


def _statement(sources: Sequence[_Source]) -> str:
    """One statement, and so one snapshot: a task that finishes meanwhile is neither missed nor shown twice.

    Below the higher of the two floors one table was looked at and the other was not, so nothing from there is shown.
    """
    both = " UNION ALL ".join(f"SELECT * FROM {source.name}" for source in sources)
    return (
        f"WITH {', '.join(source.rows for source in sources)}, "
        f"far AS (SELECT greatest({', '.join(source.floor for source in sources)}) AS floor) "
        f"SELECT found.*, far.floor FROM far LEFT JOIN ({both}) found ON far.floor IS NULL OR found.seq >= far.floor "
        "ORDER BY found.seq DESC LIMIT :limit"
    )


def _sources(selection: Selection, before: int | None) -> list[_Source]:
    """The tables where such tasks may be."""
    states, conditions = set(selection.states), selection.conditions()
    finished = [_DAYS[name] for name in FINISHED_ONLY if name in conditions]
    found = ["seq < :before"] if before is not None else []
    found += [conditions.pop("goal_id")] if "goal_id" in conditions else []
    # Spelt out, so that the index of dead letters serves it.
    failed = ["state = 'failed'"] if states == {TaskState.FAILED} else []
    kept = _all(conditions.values())
    live = _Source(name="live", table="tasks", columns=LIVE_COLUMNS, looked=_all(found), kept=kept)
    past = _Source(
        name="past", table="task_history", columns=HISTORY_COLUMNS, looked=_all([*found, *finished, *failed]), kept=kept
    )
    return [
        *([live] if not finished and (not states or states - FINISHED) else []),
        *([past] if not states or states & FINISHED else []),
    ]


def _all(conditions: Iterable[str]) -> str:
    return " AND ".join(conditions) or "true"
