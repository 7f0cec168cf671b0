"""The ladder of degradation: read by everybody, moved by whoever holds the lock of its row."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncConnection

from app.db import notify
from app.db.retention import BATCH, deletion
from app.queue.rules.degradation import Decision, DegradationStep, Ladder, LadderHold, LadderMove
from app.queue.rules.events import SystemEvent
from app.queue.store import events


@dataclass(frozen=True, slots=True, kw_only=True)
class Standing:
    """The ladder and the time, by the database's clock; `strain` is what was seen at the last look."""

    ladder: Ladder
    at: datetime
    strain: Mapping[str, Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class Moved:
    """One move of the ladder; `by` is None where the rule has made it."""

    id: int
    at: datetime
    move: LadderMove
    before: DegradationStep
    after: DegradationStep
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

_TELL = text("""
INSERT INTO degradation_moves (at, move, before, after, reason, by, until)
VALUES (now(), :move, :before, :after, :reason, :by, :until)
""")

_PAGE = text("""
SELECT id, at, move, before, after, reason, by, until FROM degradation_moves
WHERE id < :before ORDER BY id DESC LIMIT :limit
""")

_PRUNE = deletion("degradation_moves", "at < now() - make_interval(days => :days)", "at")


async def read(connection: AsyncConnection) -> Standing:
    """Where it stands; at the bottom before anybody has looked."""
    return _standing((await connection.execute(_READ)).mappings().one())


async def lock(connection: AsyncConnection) -> Standing:
    """Where it stands; nobody else moves it until the transaction ends."""
    await connection.execute(_ENSURE)
    return _standing((await connection.execute(_LOCK)).mappings().one())


async def write(
    connection: AsyncConnection,
    before: Ladder,
    decision: Decision,
    *,
    by: str | None = None,
    strain: Mapping[str, Any] | None = None,
) -> None:
    """What the holder of the lock has decided, and a line in the history where it has moved the ladder."""
    ladder, hold = decision.ladder, decision.ladder.hold
    names = ("since", "expires_at", "reason", "tight_since", "easy_since", "looked_at")
    values: dict[str, Any] = {name: getattr(ladder, name) for name in names}
    values |= {"held_until": hold.until if hold else None, "held_by": hold.by if hold else None}
    values |= {"step": ladder.step.value, "strain": None if strain is None else json.dumps(strain)}
    await connection.execute(_WRITE, values)
    if decision.move is not None:
        notify.note(connection, notify.WEIGHTS)
        steps = {"before": before.step.value, "after": ladder.step.value}
        told = {"reason": ladder.reason, "by": by, "until": ladder.expires_at}
        await connection.execute(_TELL, {"move": decision.move.value, **steps, **told})
        until = ladder.expires_at.isoformat() if ladder.expires_at else None
        detail = {"move": decision.move.value, **steps, "reason": ladder.reason, "until": until}
        await events.announce(connection, SystemEvent.DEGRADATION.value, detail)


async def history(connection: AsyncConnection, *, before: int, limit: int) -> list[Moved]:
    """The moves below `before`, newest first."""
    rows = (await connection.execute(_PAGE, {"before": before, "limit": limit})).mappings()
    words = [{**row, "move": LadderMove(row["move"])} for row in rows]
    return [
        Moved(**{**row, "before": DegradationStep(row["before"]), "after": DegradationStep(row["after"])})
        for row in words
    ]


async def prune(connection: AsyncConnection, days: int, limit: int = BATCH) -> int:
    """Forget old moves; returns how many."""
    return (await connection.execute(_PRUNE, {"days": days, "limit": limit})).rowcount


def _standing(row: Any) -> Standing:
    if row["step"] is None:
        return Standing(ladder=Ladder(since=row["at"]), at=row["at"], strain={})
    hold = LadderHold(until=row["held_until"], by=row["held_by"]) if row["held_until"] else None
    names = ("since", "expires_at", "reason", "tight_since", "easy_since", "looked_at")
    ladder = Ladder(step=DegradationStep(row["step"]), hold=hold, **{name: row[name] for name in names})
    return Standing(ladder=ladder, at=row["at"], strain=row["strain"])
