"""New tasks: what the submitter says of them, and their insertion with events and counts."""

from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime
from operator import attrgetter, itemgetter
from uuid import UUID

import asyncpg
from sqlalchemy import text
from sqlalchemy.dialects import postgresql
from sqlalchemy.ext.asyncio import AsyncConnection

from app.db import notify
from app.db.hot_path import HotConnection
from app.kernel.agents import AgentType
from app.kernel.events import TaskEvent
from app.kernel.lanes import Priority
from app.kernel.namespaces import split_name
from app.kernel.states import TaskState
from app.queue.rules.payloads import kept_text
from app.queue.rules.tasks import RetryPolicy
from app.queue.store import counters, event_rows, holds, lanes, tables
from app.queue.store.tasks import StoredTask


# Not frozen: to make one of a thousand tasks so would take twice as long as all else that is done with it. Nor are
# these fields by name only, as a task is made of the values of its submission, in their order.
@dataclass(slots=True)
class TaskFields:
    """Fields that the submitter of a task chooses; JSON values are text.

    Those that are named like a column of `tasks` are inserted and read without further mention. The goal is given by
    its stored name, which tells the namespace.
    """

    agent_type: AgentType
    goal_id: str | None
    priority: Priority
    payload: str
    labels: str
    timeout_seconds: float | None
    deadline: datetime | None
    run_at: datetime | None
    retry: RetryPolicy
    trace_context: str | None
    idempotency_key: str | None = None
    depends_on: Sequence[UUID] = ()
    # Canonical, as `Resources.text` writes it.
    resources: str | None = None

    @property
    def namespace(self) -> str:
        """The namespace of the task."""
        return split_name(self.goal_id)[0]

    @property
    def max_attempts(self) -> int:
        """Attempts until the task fails for good."""
        return self.retry.max_attempts

    @property
    def retry_delays(self) -> Sequence[float]:
        """Seconds, upper bounds of the random wait before each retry."""
        return self.retry.delays_seconds


@dataclass(slots=True, kw_only=True)
class NewTask(TaskFields):
    """A task to insert; the submit fills in what follows from the state of the queue."""

    id: UUID
    id_is_chosen: bool
    request_hash: bytes
    submitted_priority: Priority | None = None
    blockers: int = 0
    tag: float = 0.0
    is_held: bool = False
    resource_class: int | None = None

    @property
    def payload_text(self) -> str | None:
        """The payload as it was written, where it has to be kept so."""
        return kept_text(self.payload)

    @property
    def state(self) -> TaskState:
        """State in which the task begins."""
        return TaskState.BLOCKED if self.blockers else TaskState.PENDING


# The state follows from the blockers, in the statement.
_INSERTED = {
    column.name: column.type.compile(dialect=postgresql.dialect())  # type: ignore[no-untyped-call]
    for column in tables.tasks.c
    if column.name != "state" and hasattr(NewTask, column.name)
}
# Arrays of arrays would have to be rectangular, so each goes as PostgreSQL writes it.
_ARRAYS = frozenset(name for name, sql_type in _INSERTED.items() if sql_type.endswith("[]"))
# JSON too: the driver passes on texts by itself, where it would call a function for each value of another type.
_AS_TEXT = {name: kind for name, kind in _INSERTED.items() if name in _ARRAYS or kind == "JSONB"}
_VALUES = {
    **{name: f"CAST({name} AS {_AS_TEXT[name]})" if name in _AS_TEXT else name for name in _INSERTED},
    "depends_on": "nullif(CAST(depends_on AS uuid[]), '{}')",
    "state": "CASE WHEN blockers > 0 THEN 'blocked' ELSE 'pending' END",
    "run_at": "CASE WHEN is_held THEN 'infinity' WHEN run_at > now() THEN run_at END",
    "due_at": "CASE WHEN is_held AND run_at > now() THEN run_at END",
    "created_at": "now()",
}
_PARAMETERS = {**{name: "text" if name in _AS_TEXT else kind for name, kind in _INSERTED.items()}, "is_held": "boolean"}
_NAMES = (*_PARAMETERS, *(f"all_{name}" for name in _PARAMETERS))
_values_of = itemgetter(*_NAMES)
_SPELLINGS = tuple((name, f"all_{name}", attrgetter(name), name in _ARRAYS) for name in _PARAMETERS)


def _insertion(parameter: Callable[[str], str], condition: str = "true") -> str:
    """The INSERT of tasks if a condition holds; `parameter` writes a parameter of this name.

    A column that is the same for all tasks comes as one value, `all_...`, with an empty array.
    """
    each_or_all = (
        f"coalesce(each.{name}, CAST({parameter(f'all_{name}')} AS {kind})) AS {name}"
        for name, kind in _PARAMETERS.items()
    )
    arrays = (f"CAST({parameter(name)} AS {kind}[])" for name, kind in _PARAMETERS.items())
    return f"""
INSERT INTO tasks ({", ".join(_VALUES)})
SELECT {", ".join(_VALUES.values())}
FROM (
    SELECT place, {", ".join(each_or_all)}
    FROM unnest({", ".join(arrays)}) WITH ORDINALITY AS each ({", ".join(_PARAMETERS)}, place)
) new
WHERE {condition} ORDER BY place
"""


_INSERT = _insertion(":{}".format)
_RETURNED = "RETURNING id, seq, agent_type, goal_id, priority"


def _reservation(key: str) -> str:
    """The number of the advisory lock on the id of a task, an SQL expression."""
    return f"hashtextextended({key}, 7241)"


_RESERVE = text(f"SELECT pg_try_advisory_xact_lock({_reservation('key')}) FROM unnest(CAST(:keys AS text[])) AS key")

_INSERT_ONLY = text(f"{_INSERT} ON CONFLICT (id) DO NOTHING {_RETURNED}")


def _log_submitted(source: str) -> str:
    return event_rows.entry(event_rows.TaskEvents(f"'{TaskEvent.SUBMITTED}'", source, "seq"))


_INSERT_AND_LOG = text(f"""
WITH fresh AS ({_INSERT} {_RETURNED}), logged AS (
    {_log_submitted("fresh")}
)
SELECT id FROM fresh
""")

# As the driver takes them, by their places.
_PLACES = {name: f"${place}" for place, name in enumerate(("epoch", "all_or_none", "goal_ids", *_NAMES), start=1)}
# The gates of goals and of admission, and the insert behind them. What the statement sees is as old as it is, however
# long it waits for the gate: whoever passed alone meanwhile, and may have changed much, has changed the epoch.
_IS_OPEN = f"""(SELECT epoch FROM gate) = $1 AND {counters.COUNTS_ITSELF}
    AND NOT ($2 AND (SELECT goal_ids FROM gated) <> '{{}}')
    AND coalesce(goal_id, '') <> ALL ((SELECT goal_ids FROM gated)::text[])"""
# Nor of ids that another submit is about, for which nobody waits here, or that a finished task has.
_IS_UNKNOWN = f"""pg_try_advisory_xact_lock({_reservation("new.id::text")})
    AND (SELECT h.id FROM task_history h WHERE h.id = new.id LIMIT 1) IS NULL"""


def _insertion_at_gate(condition: str, conflict: str = "") -> str:
    return f"""
WITH gate AS MATERIALIZED (
    {counters.ENTER_SHARED}
), gated AS MATERIALIZED (
    SELECT {holds.gated("$3")} AS goal_ids
), fresh AS (
    {_insertion(_PLACES.__getitem__, condition)} {conflict} {_RETURNED}, state, run_at, submitted_priority
), logged AS (
    {_log_submitted("fresh")}
), counted AS (
    {counters.entry_of_new("fresh")}
)
SELECT array_agg(id) FROM fresh
"""


_INSERT_AT_GATE = _insertion_at_gate(_IS_OPEN)
_INSERT_CHOSEN_AT_GATE = _insertion_at_gate(f"{_IS_OPEN} AND {_IS_UNKNOWN}", "ON CONFLICT (id) DO NOTHING")
_IS_ANY_FINISHED = "SELECT EXISTS (SELECT FROM task_history WHERE id = ANY ($1::uuid[]))"

_DELETE_FINISHED = text("""
DELETE FROM tasks WHERE id = ANY (:ids) AND EXISTS (SELECT FROM task_history h WHERE h.id = tasks.id) RETURNING id
""")

_LOG_SUBMITTED = text(_log_submitted("(SELECT * FROM tasks WHERE id = ANY (:ids) ORDER BY seq) fresh"))


async def insert(connection: AsyncConnection, tasks: Sequence[NewTask]) -> list[StoredTask]:
    """Insert the tasks whose ids are new; return only those, as the others exist already."""
    if not tasks:
        return []
    chosen_ids = [task.id for task in tasks if task.id_is_chosen]
    statement = _INSERT_ONLY if chosen_ids else _INSERT_AND_LOG
    new_ids = set((await connection.execute(statement, _parameters(tasks))).scalars())
    if chosen_ids:
        # An id that the client chose may belong to a task that finished between our snapshot and our insert. The insert
        # succeeds only when that task's row is gone for good, so a later statement is certain to see it in history.
        new_ids -= set((await connection.execute(_DELETE_FINISHED, {"ids": chosen_ids})).scalars())
        await connection.execute(_LOG_SUBMITTED, {"ids": list(new_ids)})
    fresh = [task for task in tasks if task.id in new_ids]
    notify.note(connection, notify.EVENTS)
    ready = [task for task in fresh if not task.blockers and not task.is_held]
    notify.note_work(connection, lanes.lowest_tags(_lane_and_tag(task) for task in ready))
    return [StoredTask(id=task.id, state=task.state, request_hash=task.request_hash) for task in fresh]


async def insert_at_gate(
    connection: HotConnection, tasks: Sequence[NewTask], epoch: int, *, all_or_none: bool
) -> frozenset[UUID]:
    """Insert tasks that depend on nothing, of which all or none have chosen ids; return the ids of those inserted.

    The others are of goals that are held or have stopped, for `all_or_none` the whole batch with them, or have ids that
    are not new; and none is inserted where the gate of admission has another epoch. Raises asyncpg.SerializationError
    where a task of such an id has finished meanwhile.
    """
    goal_ids = {task.goal_id for task in tasks if task.goal_id is not None}
    values = [epoch, all_or_none, sorted(goal_ids), *_values_of(_parameters(tasks))]
    if not tasks[0].id_is_chosen:
        return frozenset(await connection.fetchval(_INSERT_AT_GATE, *values) or ())
    async with connection.transaction():
        ids = frozenset(await connection.fetchval(_INSERT_CHOSEN_AT_GATE, *values) or ())
        # Between the snapshot and the insert, as in `insert`: only a later statement is certain to see it.
        if ids and await connection.fetchval(_IS_ANY_FINISHED, ids):
            raise asyncpg.SerializationError("a task of this id has finished meanwhile")
    return ids


def _parameters(tasks: Sequence[NewTask]) -> dict[str, object]:
    parameters: dict[str, object] = {}
    for name, name_of_all, value_of, is_array in _SPELLINGS:
        values = [*map(value_of, tasks)]
        head = values[0]
        # Never the ids, which the rows go by.
        if name != "id" and values.count(head) == len(values):
            parameters[name], parameters[name_of_all] = [], _array(head) if is_array else head
        else:
            parameters[name], parameters[name_of_all] = list(map(_array, values)) if is_array else values, None
    return parameters


async def reserve_keys(connection: AsyncConnection, keys: Collection[str]) -> bool:
    """Reserve idempotency keys until the transaction ends; False when another transaction has one of them."""
    rows = await connection.execute(_RESERVE, {"keys": sorted(set(keys))})
    return all(rows.scalars())


def _lane_and_tag(task: NewTask) -> dict[str, object]:
    return {"agent_type": task.agent_type, "priority": task.priority, "tag": task.tag}


def _array(values: Iterable[object]) -> str:
    return "{" + ",".join(map(str, values)) + "}"
