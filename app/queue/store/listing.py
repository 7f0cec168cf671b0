"""Lists of tasks, live and finished, newest first: pages by `seq`, each at a bounded cost.

A filter that no index serves may match nothing among millions of tasks. So a page reads at most MAX_ROWS rows of each
table, back along the index on `seq`. It may hold fewer tasks than its limit, or none; as long as it has a `next`, there
may be more. Leased tasks are often older than all that wait; they are found by the ledger of leases.
"""

import json
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any
from uuid import UUID

from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncConnection

from app.db import namespaces, prefixes
from app.db.pages import PAGE_BYTES
from app.db.prefixes import Matches
from app.db.turns import turn
from app.kernel.agents import AgentType
from app.kernel.lanes import Priority
from app.kernel.namespaces import DEFAULT
from app.kernel.states import FINISHED, TaskState
from app.queue.store import lease_ledger
from app.queue.store.tables import KEPT_COLUMNS
from app.queue.store.worker_names import worker_name

MAX_ROWS = 50_000
# Those of a goal, of a namespace and dead letters lie apart, each on a page of its own.
MAX_SCATTERED_ROWS = 10_000

# Read with a single task only: what may be large, and what nobody is shown.
_NOT_LISTED = {"payload", "payload_text", "checkpoint", "retry_delays", "trace_context", "request_hash"}
_AS_SHOWN = {"depends_on": "coalesce(depends_on, '{}') AS depends_on"}
COLUMNS = ", ".join(["state", *(_AS_SHOWN.get(name, name) for name in KEPT_COLUMNS if name not in _NOT_LISTED)])
LIVE_COLUMNS = (
    "CASE WHEN run_at = 'infinity' THEN due_at ELSE run_at END AS run_at, "
    "coalesce(run_at = 'infinity', false) AS held, NULL::timestamptz AS finished_at, error"
)
HISTORY_COLUMNS = "NULL::timestamptz AS run_at, false AS held, finished_at, error"
# The detail of an error may be long; a list shows its beginning, and the task itself all of it.
_BRIEF_ERROR = """CASE WHEN error ? 'detail'
    THEN (error - 'detail') || jsonb_build_object('detail_excerpt', left((error -> 'detail')::text, 500))
    ELSE error END"""
_SHOWN_COLUMNS = f"{COLUMNS}, {worker_name('task')}, run_at, held, finished_at, {_BRIEF_ERROR} AS error"
# History has partitions of a day: a condition on whole days lets the planner skip the others, and loses no row.
_DAYS = {
    "finished_after": "finished_at >= date_trunc('day', CAST(:finished_after AS timestamptz), 'UTC')",
    "finished_before": "finished_at < date_trunc('day', CAST(:finished_before AS timestamptz), 'UTC') "
    "+ interval '24 hours'",
}


# For the columns that `tasks` and `task_history` share. A span includes its beginning, not its end.
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
class ListingPage:
    """Tasks without payload and result, and the `seq` below which the list goes on; None at its end."""

    items: Sequence[dict[str, Any]]
    next: int | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Selection:
    """Filter of tasks: those that match every field that is set, and carry all of the labels.

    `goal_id` is the stored name of a goal.
    """

    namespace: str | None = None
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
        """Parameters of a statement for the fields that are set."""
        values: dict[str, Any] = {name: getattr(self, name) for name in ("namespace", *_CONDITIONS)}
        values["states"] = [state.value for state in self.states]
        values["labels"] = [json.dumps({name: value}) for name, value in self.labels]
        return {name: value for name, value in values.items() if value is not None and value != []}

    def as_json(self) -> dict[str, Any]:
        """The fields that are set, as JSON."""
        fields: dict[str, Any] = json.loads(json.dumps(self.values(), default=str))
        return fields

    def conditions(self) -> dict[str, str]:
        """SQL conditions by the names of the fields that are set."""
        chosen = {} if self.namespace is None else {"namespace": namespaces.condition(self.namespace)}
        return chosen | {name: _CONDITIONS[name] for name in self.values() if name in _CONDITIONS}

    def where(self, *extra: str) -> str:
        """All conditions, and extra ones, as one."""
        return _all([*extra, *self.conditions().values()])


async def ids(connection: AsyncConnection, prefix: str, namespace: str | None) -> Matches:
    """Live and finished tasks whose ids begin with these digits."""
    tables = ("tasks", "task_history")
    return await prefixes.matches(connection, prefix, tables, condition=namespaces.WITHIN, namespace=namespace)


async def page(
    connection: AsyncConnection, selection: Selection, *, below: int | None, limit: int, max_rows: int | None = None
) -> ListingPage:
    """Return up to `limit` selected tasks with `seq` below `below`, from at most `max_rows` rows of each table."""
    sources = _sources(selection, below)
    if not sources:
        return ListingPage(items=[], next=None)
    max_rows = max_rows or (MAX_SCATTERED_ROWS if any(source.is_scattered for source in sources) else MAX_ROWS)
    values = {**selection.values(), "limit": limit + 1, "max_rows": max_rows, "last": max_rows - 1}
    values["page_bytes"] = PAGE_BYTES
    values |= {} if below is None else {"below": below}
    rows = (await connection.execute(text(_statement(sources)), values)).mappings().all()
    await turn(connection)
    items = [dict(row) for row in rows if row["id"] is not None]
    following = items[-1]["seq"] if len(items) < rows[0]["page_rows"] else rows[0]["floor"]
    return ListingPage(items=items, next=following)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Source:
    """A table, the condition for rows to read, which an index or partition serves, and that for rows to show."""

    name: str
    table: str
    columns: str
    read_condition: str
    shown_condition: str
    is_scattered: bool = False
    is_read_whole: bool = False

    @property
    def rows(self) -> str:
        """Part of a statement: the rows to show among those read."""
        newest = f"SELECT * FROM {self.table} WHERE {self.read_condition} ORDER BY seq DESC LIMIT :max_rows"
        return (
            f"{self.name} AS MATERIALIZED (SELECT {COLUMNS}, {self.columns} FROM ({newest}) newest "
            f"WHERE {self.shown_condition} ORDER BY seq DESC LIMIT :limit)"
        )

    @property
    def floor(self) -> str:
        """SQL expression: the last `seq` that was read; NULL where the limit came first, or the end of the table."""
        if self.is_read_whole:
            return "NULL::bigint"
        last = f"SELECT seq FROM {self.table} WHERE {self.read_condition} ORDER BY seq DESC OFFSET :last LIMIT 1"
        return f"CASE WHEN (SELECT count(*) FROM {self.name}) < :limit THEN ({last}) END"


# Of workers that ended a moment ago too, until their tasks are taken back.
_LEASED = f"""(
    SELECT held.* FROM workers w CROSS JOIN LATERAL {lease_ledger.last_lease("w.id")} last
    CROSS JOIN LATERAL {lease_ledger.held_task("w.id")} held
    WHERE w.ended_at IS NULL OR w.ended_at > now() - interval '1 hour'
) leased"""
_LEASED_STATES = {TaskState.ASSIGNED, TaskState.EXECUTING}


def _statement(sources: Sequence[_Source]) -> str:
    # One statement, and so one snapshot: a task that finishes meanwhile is neither missed nor shown twice. Below the
    # higher of the two floors only one table was read, so nothing from there is shown.
    union = " UNION ALL ".join(f"SELECT * FROM {source.name}" for source in sources)
    return (
        f"WITH {', '.join(source.rows for source in sources)}, "
        f"far AS (SELECT greatest({', '.join(source.floor for source in sources)}) AS floor) "
        # A page has one task at least, however long its texts are.
        "SELECT * FROM (SELECT brief.*, far.floor, count(brief.id) OVER () AS page_rows, "
        "row_number() OVER (ORDER BY seq DESC) AS page_place, "
        "sum(octet_length(CAST(row_to_json(brief) AS text))) OVER (ORDER BY seq DESC) AS page_size FROM far "
        f"LEFT JOIN (SELECT {_SHOWN_COLUMNS} FROM ({union}) task ORDER BY seq DESC LIMIT :limit) brief "
        "ON far.floor IS NULL OR brief.seq >= far.floor) measured "
        "WHERE page_place = 1 OR (page_place < :limit AND page_size <= :page_bytes) ORDER BY page_place"
    )


def _sources(selection: Selection, below: int | None) -> list[_Source]:
    """The tables that may hold such tasks."""
    states, conditions = set(selection.states), selection.conditions()
    days = [_DAYS[name] for name in FINISHED_ONLY if name in conditions]
    index_conditions = ["seq < :below"] if below is not None else []
    if "goal_id" in conditions:
        index_conditions.append(conditions.pop("goal_id"))
    elif selection.namespace not in (None, DEFAULT):
        # No index serves `default`, which most tasks belong to wherever there is one namespace only.
        index_conditions.append(conditions.pop("namespace"))
    # Spelled out, because a parameter would keep the planner from the partial index of dead letters.
    dead_letters = ["state = 'failed'"] if states == {TaskState.FAILED} else []
    shown_condition = _all(conditions.values())
    is_scattered = bool(dead_letters) or len(index_conditions) > (below is not None)
    # Of live tasks those that are leased have a worker, and no others.
    is_leased = selection.worker_id is not None or (bool(states) and states <= _LEASED_STATES)
    live = _Source(
        name="live",
        table=_LEASED if is_leased else "tasks",
        columns=LIVE_COLUMNS,
        read_condition=_all(index_conditions),
        shown_condition=shown_condition,
        is_scattered=is_scattered,
        is_read_whole=is_leased,
    )
    history = _Source(
        name="past",
        table="task_history",
        columns=HISTORY_COLUMNS,
        read_condition=_all([*index_conditions, *days, *dead_letters]),
        shown_condition=shown_condition,
        is_scattered=is_scattered,
    )
    return [
        *([live] if not days and (not states or states - FINISHED) else []),
        *([history] if not states or states & FINISHED else []),
    ]


def _all(conditions: Iterable[str]) -> str:
    return " AND ".join(conditions) or "true"
