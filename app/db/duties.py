"""Turns of background duties: a row each, claimed in the transaction of the work that it guards."""

import json
from collections.abc import Collection
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncConnection

from app.db.retention import BATCH, deletion

_TURNS = text("""
SELECT duty, now() - last_run_at AS ago, CAST(result AS text) AS result FROM loop_ticks
WHERE duty = ANY (CAST(:duties AS text[])) AND last_run_at IS NOT NULL
""")


@dataclass(frozen=True, slots=True, kw_only=True)
class Turn:
    """A duty's turn that is ours until the transaction ends.

    `held_back_seconds` is since when the last turns held back, where their results say that (`held_back_since`).
    """

    duty: str
    seconds_since_last: float
    held_back: bool
    held_back_seconds: float | None = None


_ENSURE = text("INSERT INTO loop_ticks (duty) VALUES (:duty) ON CONFLICT DO NOTHING")

_CLAIM = text("""
SELECT duty, coalesce(extract(epoch FROM now() - last_run_at), 0) AS seconds_since_last, held_back,
       CASE WHEN held_back THEN extract(epoch FROM now() - (result ->> 'held_back_since')::timestamptz) END AS held_for
FROM loop_ticks
WHERE duty = :duty AND (last_run_at IS NULL OR last_run_at <= now() - make_interval(secs => :interval))
FOR UPDATE SKIP LOCKED
""")

_DONE = text("""
UPDATE loop_ticks SET last_run_at = now(), runs = runs + 1, held_back = :held_back,
    result = CAST(:result AS jsonb), every_seconds = :every WHERE duty = :duty
""")

_CONCLUDE = text("UPDATE loop_ticks SET result = CAST(:result AS jsonb) WHERE duty = :duty")

_TAKE_BACK = text("""
UPDATE loop_ticks SET last_run_at = last_run_at - make_interval(secs => :since) WHERE duty = :duty
""")

_PRUNE = deletion("loop_ticks", "every_seconds IS NULL AND last_run_at < now() - make_interval(days => :days)", "duty")

_ALL = text("SELECT duty, last_run_at, runs, result FROM loop_ticks ORDER BY duty")


async def ensure(connection: AsyncConnection, duty: str) -> None:
    """Make sure that the duty has its row."""
    await connection.execute(_ENSURE, {"duty": duty})


async def claim(connection: AsyncConnection, duty: str, interval_seconds: float) -> Turn | None:
    """Take the turn when it is due and nobody else is at it."""
    row = (await connection.execute(_CLAIM, {"duty": duty, "interval": interval_seconds})).mappings().first()
    if row is None:
        return None
    return Turn(
        duty=duty,
        seconds_since_last=float(row["seconds_since_last"]),
        held_back=row["held_back"],
        held_back_seconds=None if row["held_for"] is None else float(row["held_for"]),
    )


async def done(
    connection: AsyncConnection,
    duty: str,
    result: dict[str, Any],
    *,
    held_back: bool,
    every_seconds: float | None = None,
) -> None:
    """Record the turn; it commits together with its work or not at all.

    `every_seconds` is the pace by which others may tell that the duty is late; None when it has none.
    """
    values = {"duty": duty, "result": json.dumps(result, default=str), "held_back": held_back, "every": every_seconds}
    await connection.execute(_DONE, values)


async def conclude(connection: AsyncConnection, turn: Turn, result: dict[str, Any], *, counts: bool) -> None:
    """Say what came of a turn whose work was done after the transaction that has recorded it.

    One that does not count leaves the duty as due as it was before, so that others can tell when it goes on like that.
    """
    await connection.execute(_CONCLUDE, {"duty": turn.duty, "result": json.dumps(result, default=str)})
    if not counts:
        await connection.execute(_TAKE_BACK, {"duty": turn.duty, "since": turn.seconds_since_last})


async def prune(connection: AsyncConnection, days: int, limit: int = BATCH) -> int:
    """Forget duties that nobody misses and that last ran long ago; returns how many.

    Every host has one of its own, by its name, and hosts come and go. A duty that others may tell to be late stays,
    however long ago it ran; one that was forgotten and is due again gets a new row.
    """
    return (await connection.execute(_PRUNE, {"days": days, "limit": limit})).rowcount


async def page(connection: AsyncConnection) -> list[dict[str, Any]]:
    """All duties with their last turn."""
    return [dict(row) for row in (await connection.execute(_ALL)).mappings()]


@dataclass(frozen=True, slots=True, kw_only=True)
class LastTurn:
    """When a background duty last had its turn, and what came of it."""

    ago: timedelta
    result: dict[str, Any]


async def turns(connection: AsyncConnection, duties: Collection[str]) -> dict[str, LastTurn]:
    """The last turns of these duties; those that never ran are left out."""
    rows = (await connection.execute(_TURNS, {"duties": list(duties)})).mappings()
    return {row["duty"]: LastTurn(ago=row["ago"], result=json.loads(row["result"] or "{}")) for row in rows}
