"""Turns of background duties: one row for each duty, claimed in the transaction of the work that it guards."""

import json
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncConnection

from app.db.hot_path import HotConnection
from app.db.retention import BATCH, deletion

_TURNS = text("""
SELECT duty, greatest(now() - last_run_at, interval '0') AS ago, CAST(result AS text) AS result FROM loop_ticks
WHERE duty = ANY (CAST(:duties AS text[])) AND last_run_at IS NOT NULL
""")


@dataclass(frozen=True, slots=True, kw_only=True)
class Turn:
    """A turn of a duty that this transaction has claimed.

    `held_back_seconds` is for how long turns have held back, where their results tell it by `held_back_since`.
    `set_forward_seconds` is by how much the clock was set forward at least since this process took its last turn.
    """

    duty: str
    seconds_since_last: float
    held_back: bool
    held_back_seconds: float | None = None
    set_forward_seconds: float = 0.0


_ENSURE = text("INSERT INTO loop_ticks (duty) VALUES (:duty) ON CONFLICT DO NOTHING")

# Where one has run in the future the clock was set back, and nobody waits until it has come there again. Some seconds
# are none: another replica may have run since this transaction began.
_CLAIM = text("""
SELECT duty, greatest(extract(epoch FROM now() - last_run_at), 0) AS seconds_since_last, held_back,
       CASE WHEN held_back AND result ? 'held_back_since' THEN
           greatest(extract(epoch FROM now() - (result ->> 'held_back_since')::timestamptz), 0) END AS held_for
FROM loop_ticks
WHERE duty = :duty AND (last_run_at IS NULL OR last_run_at <= now() - make_interval(secs => :interval)
                        OR last_run_at > now() + interval '5 s')
FOR UPDATE SKIP LOCKED
""")

_RECORD = text("""
UPDATE loop_ticks SET last_run_at = now(), runs = runs + 1, held_back = :held_back,
    result = CAST(:result AS jsonb), every_seconds = :every WHERE duty = :duty
""")

_CONCLUDE = text("UPDATE loop_ticks SET result = CAST(:result AS jsonb) WHERE duty = :duty")

_RESTORE = text("""
UPDATE loop_ticks SET last_run_at = last_run_at - make_interval(secs => :since) WHERE duty = :duty
""")

_PRUNE = deletion("loop_ticks", "every_seconds IS NULL AND last_run_at < now() - make_interval(days => :days)", "duty")


async def ensure(connection: AsyncConnection, duty: str) -> bool:
    """Create the row of a duty, and return whether there was none."""
    return (await connection.execute(_ENSURE, {"duty": duty})).rowcount == 1


async def look(connection: HotConnection, conditions: Mapping[str, str]) -> frozenset[str]:
    """Return the names of the conditions, which are expressions of SQL, that hold."""
    if not conditions:
        return frozenset()
    rows = ", ".join(f"('{name}', ({condition}))" for name, condition in conditions.items())
    matches = await connection.fetch(f"SELECT name FROM (VALUES {rows}) condition (name, holds) WHERE holds")
    return frozenset(row["name"] for row in matches)


def may_have_come(duty: str, seconds: float) -> str:
    """Return the condition that what a duty looks for may have come, in place of another look for it.

    Its last turn has told by `none_before` in its result until when there is none, which holds for so many seconds.
    """
    # Where it has run in the future the clock was set back.
    return f"""NOT EXISTS (SELECT FROM loop_ticks WHERE duty = '{duty}'
        AND last_run_at BETWEEN now() - interval '{seconds} s' AND now()
        AND (result ->> 'none_before')::timestamptz > now())"""


async def claim(connection: AsyncConnection, duty: str, interval_seconds: float) -> Turn | None:
    """Claim the turn of a duty; None when it is not due, or another process has claimed it."""
    # The row lock is the claim: it ends with the transaction, whatever becomes of the process, and SKIP LOCKED lets all
    # others do something else meanwhile.
    row = (await connection.execute(_CLAIM, {"duty": duty, "interval": interval_seconds})).mappings().first()
    if row is None:
        return None
    return Turn(
        duty=duty,
        seconds_since_last=float(row["seconds_since_last"]),
        held_back=row["held_back"],
        held_back_seconds=None if row["held_for"] is None else float(row["held_for"]),
    )


async def record(
    connection: AsyncConnection,
    duty: str,
    result: dict[str, Any],
    *,
    held_back: bool,
    every_seconds: float | None = None,
) -> None:
    """Record a turn, which commits together with its work or not at all.

    `every_seconds` is the interval by which others notice that the duty is late; None when it has none.
    """
    values = {"duty": duty, "result": json.dumps(result, default=str), "held_back": held_back, "every": every_seconds}
    await connection.execute(_RECORD, values)


async def conclude(connection: AsyncConnection, turn: Turn, result: dict[str, Any], *, counts: bool) -> None:
    """Replace the result of a turn whose work came after the transaction that recorded it.

    A turn that does not count leaves the duty as late as it was, so that others notice when none ever counts.
    """
    await connection.execute(_CONCLUDE, {"duty": turn.duty, "result": json.dumps(result, default=str)})
    if not counts:
        await connection.execute(_RESTORE, {"duty": turn.duty, "since": turn.seconds_since_last})


async def prune(connection: AsyncConnection, days: int, limit: int = BATCH) -> int:
    """Delete duties without an interval that last ran more than `days` ago, at most `limit`; return the number deleted.

    Every host has a duty of its own, by its name, and hosts come and go. One that is due again gets a new row.
    """
    return (await connection.execute(_PRUNE, {"days": days, "limit": limit})).rowcount


@dataclass(frozen=True, slots=True, kw_only=True)
class LastTurn:
    """Time since the last turn of a duty, and its result."""

    ago: timedelta
    result: dict[str, Any]


async def last_turns(connection: AsyncConnection, duties: Collection[str]) -> dict[str, LastTurn]:
    """Return the last turns of these duties, without those that never ran."""
    rows = (await connection.execute(_TURNS, {"duties": list(duties)})).mappings()
    return {row["duty"]: LastTurn(ago=row["ago"], result=json.loads(row["result"] or "{}")) for row in rows}
