"""The degradation ladder, one row that its writer locks, and the history of its moves."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncConnection

from app.db import notify, pages
from app.db.pages import Page
from app.db.retention import pruning
from app.kernel.events import SystemEvent
from app.queue.rules.degradation import Decision, DegradationStep, Ladder, LadderHold, LadderMove
from app.queue.store import events


@dataclass(frozen=True, slots=True, kw_only=True)
class LadderState:
    """The ladder, the time by the database's clock, and the strain on resources at the last look."""

    ladder: Ladder
    at: datetime
    strain: Mapping[str, Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class RecordedMove:
    """One move of the ladder in its history; `by` is the id of a key, None for a move of the rule."""

    id: int
    at: datetime
    move: LadderMove
    old_step: DegradationStep
    new_step: DegradationStep
    reason: str
    by: str | None
    until: datetime | None


_COLUMNS = (
    "step, since, expires_at, reason, held_until, held_by, tight_since, easy_since, looked_at, strain, now() AS at"
)

_ENSURE = text("""
INSERT INTO degradation (step, since, reason, strain) VALUES (0, now(), '', '{}') ON CONFLICT DO NOTHING
""")

_READ = text(f"SELECT {_COLUMNS} FROM (SELECT 1) one LEFT JOIN degradation ON true")

_LOCK = text(f"SELECT {_COLUMNS} FROM degradation FOR UPDATE")

_WRITE = text("""
UPDATE degradation SET step = :step, since = :since, expires_at = :expires_at, reason = :reason,
    held_until = :held_until, held_by = :held_by, tight_since = :tight_since, easy_since = :easy_since,
    looked_at = :looked_at, strain = coalesce(CAST(:strain AS jsonb), strain)
""")

_RECORD = text("""
INSERT INTO degradation_moves (at, move, before, after, reason, by, until)
VALUES (now(), :move, :before, :after, :reason, :by, :until)
""")

_PAGE = """
SELECT id, at, move, before AS old_step, after AS new_step, reason, by, until FROM degradation_moves
WHERE id < :below_id ORDER BY id DESC
"""

prune = pruning("degradation_moves", "at")


async def read(connection: AsyncConnection) -> LadderState:
    """Read the ladder; at its lowest step as long as nobody has moved it."""
    return _state((await connection.execute(_READ)).mappings().one())


async def lock(connection: AsyncConnection) -> LadderState:
    """Read the ladder and keep others from moving it until the transaction ends."""
    await connection.execute(_ENSURE)
    return _state((await connection.execute(_LOCK)).mappings().one())


async def write(
    connection: AsyncConnection,
    old_ladder: Ladder,
    decision: Decision,
    *,
    by: str | None = None,
    strain: Mapping[str, Any] | None = None,
) -> None:
    """Write a decision, and record a move where it is one; the caller has locked the ladder.

    `strain` None keeps the former one.
    """
    ladder, hold = decision.ladder, decision.ladder.hold
    names = ("since", "expires_at", "reason", "tight_since", "easy_since", "looked_at")
    values: dict[str, Any] = {name: getattr(ladder, name) for name in names}
    values |= {"held_until": hold.until if hold else None, "held_by": hold.by if hold else None}
    values |= {"step": ladder.step.value, "strain": None if strain is None else json.dumps(strain)}
    await connection.execute(_WRITE, values)
    if decision.move is not None:
        notify.note(connection, notify.WEIGHTS)
        steps = {"before": old_ladder.step.value, "after": ladder.step.value}
        record = {"move": decision.move.value, **steps, "reason": ladder.reason, "by": by, "until": ladder.expires_at}
        await connection.execute(_RECORD, record)
        until = ladder.expires_at.isoformat() if ladder.expires_at else None
        detail = {"move": decision.move.value, **steps, "reason": ladder.reason, "until": until}
        await events.append_system(connection, SystemEvent.DEGRADATION.value, detail)


async def history(connection: AsyncConnection, *, below_id: int, limit: int) -> Page[RecordedMove]:
    """Return up to `limit` moves, newest first, that come before the one with this id."""
    return await pages.read(connection, _PAGE, {"below_id": below_id}, limit, _recorded_move)


def _recorded_move(row: Mapping[str, Any]) -> RecordedMove:
    steps = {name: DegradationStep(row[name]) for name in ("old_step", "new_step")}
    return RecordedMove(**{**row, **steps, "move": LadderMove(row["move"])})


def _state(row: Any) -> LadderState:
    if row["step"] is None:
        return LadderState(ladder=Ladder(since=row["at"]), at=row["at"], strain={})
    hold = LadderHold(until=row["held_until"], by=row["held_by"]) if row["held_until"] else None
    names = ("since", "expires_at", "reason", "tight_since", "easy_since", "looked_at")
    ladder = Ladder(step=DegradationStep(row["step"]), hold=hold, **{name: row[name] for name in names})
    return LadderState(ladder=ladder, at=row["at"], strain=row["strain"])
