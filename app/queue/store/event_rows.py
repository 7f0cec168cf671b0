"""Rows of events that hold those of many tasks: written by one statement, read like any others."""

from collections.abc import Collection, Iterable, Mapping
from types import MappingProxyType
from typing import NamedTuple

from app.kernel.agents import AgentType
from app.queue.store.event_tables import EVENTS_IN_A_ROW

# A row stays below the 2 KB from which PostgreSQL would move its arrays into another table.
_TASKS_IN_A_ROW = 32
# A new type goes last, and into the view `every_event`.
_AGENTS = f"ARRAY[{', '.join(repr(agent.value) for agent in AgentType)}]"
# As the view `every_event` takes them apart.
_LANE = f"(8 * array_position({_AGENTS}, agent_type) + coalesce(priority, 0))::smallint"


class TaskEvents(NamedTuple):
    """Events of one kind, or of two that follow each other, for each row of `source`: SQL expressions.

    The source has `id`, `agent_type`, `goal_id` and `priority`; `place` numbers its rows; events come in that order.
    `arrays` are further values of each task, by the names of their columns.
    """

    kind: str
    source: str
    place: str
    arrays: Mapping[str, str] = MappingProxyType({})
    next_kind: str = "NULL"


def entry(*steps: TaskEvents) -> str:
    """Return the INSERT that appends events, those of the first step before those of the next.

    Those of many tasks share a row of events.
    """
    columns = dict.fromkeys(("task_ids", "lanes", "goal_ids", *(name for events in steps for name in events.arrays)))
    values = {name: name for name in columns} | _one_or_all("goal_id", "goal_ids")
    if "tokens" in columns:
        values |= _one_or_all("token", "tokens")
    grouped = " UNION ALL ".join(_grouped(step, events, columns) for step, events in enumerate(steps))
    return f"""INSERT INTO events (kind, next_kind, size, {", ".join(values)})
    SELECT kind, next_kind, cardinality(task_ids) * CASE WHEN next_kind IS NULL THEN 1 ELSE 2 END,
           {", ".join(values.values())}
    FROM ({grouped}) shared ORDER BY step, part"""


def _grouped(step: int, events: TaskEvents, columns: Collection[str]) -> str:
    """The SELECT of what is in each row of events of a step: these columns, each an array.

    Each aggregate costs a statement as much as some ten tasks that go through it, so there is one for each column.
    """
    own = {"task_ids": "id", "lanes": _LANE, "goal_ids": "goal_id", **events.arrays}
    gathered = ", ".join(f"{f'array_agg({name})' if name in own else 'NULL'} AS {name}" for name in columns)
    listed = ", ".join(f"{expression} AS {name}" for name, expression in own.items())
    return f"""(
        SELECT {step} AS step, {events.kind} AS kind, next_kind, part, {gathered} FROM (
            SELECT {events.next_kind} AS next_kind, ({events.place}) / {_TASKS_IN_A_ROW} AS part, {listed}
            FROM {events.source}
        ) event GROUP BY next_kind, part
    )"""


def _one_or_all(one: str, every: str) -> dict[str, str]:
    """The value that is in all places of an array, for the column `one`, or else the array, for the column `every`."""
    is_one = f"{every}[1] = ALL ({every})"
    return {one: f"CASE WHEN {is_one} THEN {every}[1] END", every: f"CASE WHEN {is_one} THEN NULL ELSE {every} END"}


def of_kinds(kinds: Iterable[str]) -> str:
    """Return the condition on `every_event` that an event may be of these kinds, by those of the row that it is in.

    It goes with one on the kind itself: rows of other kinds are left out before they are unfolded, which costs more
    than all that is done with an event.
    """
    listed = ", ".join(f"'{kind}'" for kind in kinds)
    return f"(row_kind IN ({listed}) OR row_next_kind IN ({listed}))"


def window(limit: str) -> str:
    """Return CTEs of which `event` has the first `limit` events after `:transaction, :seq`.

    They read no further than `:last_transaction, :last_seq`.
    """
    # The row in which the cursor stands begins less than a full row before it.
    first = f"(:transaction, CAST(:seq AS bigint) - {EVENTS_IN_A_ROW})"
    return f"""ahead AS MATERIALIZED (
    SELECT transaction, seq, sum(size) OVER (ORDER BY transaction, seq) - size AS events_before FROM (
        SELECT transaction, seq, size FROM events
        WHERE (transaction, seq) > {first} AND (transaction, seq + size - 1) > (:transaction, :seq)
          AND (transaction, seq) <= (:last_transaction, :last_seq)
        ORDER BY transaction, seq LIMIT {limit}
    ) following
), last AS MATERIALIZED (
    SELECT transaction, seq FROM ahead WHERE events_before < {limit} + {EVENTS_IN_A_ROW}
    ORDER BY transaction DESC, seq DESC LIMIT 1
), event AS MATERIALIZED (
    SELECT * FROM every_event
    WHERE (transaction, row_seq) > {first} AND (transaction, seq) > (:transaction, :seq)
      AND (transaction, row_seq) <= ((SELECT transaction FROM last), (SELECT seq FROM last))
    ORDER BY transaction, seq LIMIT {limit}
)"""
