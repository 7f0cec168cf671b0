"""Rows of events that hold those of many tasks: written by one statement, read like any others."""

from collections.abc import Iterable

from app.queue.store.event_tables import EVENTS_IN_A_ROW

# A task may have two events in a row.
_TASKS = EVENTS_IN_A_ROW // 2


def entry(kind: str, source: str, place: str, *, next_kind: str = "NULL", **arrays: str) -> str:
    """Return the INSERT that appends an event, or two, for each row of `source`.

    It has `id`, `agent_type`, `goal_id` and `priority`; those that are alike in all but the id share a row of events.
    `place` numbers the rows: it bounds the size of what they share, and rows of events come in the order of their first
    places. `kind` and `next_kind` are SQL expressions, as are those of `arrays`, by the names of their columns.
    """
    columns = {"task_ids": "id", **arrays}
    listed = ", ".join(f"{expression} AS {name}" for name, expression in columns.items())
    return f"""INSERT INTO events (kind, next_kind, agent_type, goal_id, priority, size, {", ".join(columns)})
    SELECT kind, next_kind, agent_type, goal_id, priority, count(*) * CASE WHEN next_kind IS NULL THEN 1 ELSE 2 END,
           {", ".join(f"array_agg({name})" for name in columns)}
    FROM (
        SELECT {kind} AS kind, {next_kind} AS next_kind, agent_type, goal_id, priority, {place} AS place,
               ({place}) / {_TASKS} AS part, {listed}
        FROM {source}
    ) event GROUP BY kind, next_kind, agent_type, goal_id, priority, part ORDER BY min(place)"""


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
