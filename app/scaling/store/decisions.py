"""Decisions on the pool, kept with their inputs, and what the scaling loop remembers between them."""

import hashlib
import json
from collections.abc import Collection
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncConnection

from app.db.retention import BATCH


@dataclass(frozen=True, slots=True, kw_only=True)
class NewDecision:
    """A decision to keep; inputs, output and roster are JSON texts, the last of which is kept apart."""

    decided_at: datetime
    decision_type: str
    current_workers: int
    target_workers: int
    inputs: str
    output: str
    roster: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Kept(NewDecision):
    """A decision as it is kept."""

    id: int
    roster_id: int


# Nothing is written while the roster is not kept, which mostly it is.
_WRITE = text("""
INSERT INTO decisions (decided_at, decision_type, current_workers, target_workers, inputs, output, roster_id)
SELECT CAST(:decided_at AS timestamptz), :decision_type, CAST(:current_workers AS integer),
       CAST(:target_workers AS integer), CAST(:inputs AS json), CAST(:output AS json), id
FROM rosters WHERE digest = :digest
RETURNING id
""")

_WRITE_ROSTER = text("""
INSERT INTO rosters (digest, content) VALUES (:digest, CAST(:roster AS json)) ON CONFLICT (digest) DO NOTHING
""")

_COLUMNS = "d.id, decided_at, decision_type, current_workers, target_workers, roster_id"
# The text as it was written; a JSON value would have to be put into words again.
_OUTPUT = "CAST(output AS text) AS output"
_WHOLE = f"{_COLUMNS}, CAST(inputs AS text) AS inputs, {_OUTPUT}, CAST(r.content AS text) AS roster"
_BRIEF = f"{_COLUMNS}, '' AS inputs, {_OUTPUT}, '' AS roster"

_READ = text(f"SELECT {_WHOLE} FROM decisions d JOIN rosters r ON r.id = d.roster_id WHERE d.id = :id")

_LATEST = text(f"SELECT {_WHOLE} FROM decisions d JOIN rosters r ON r.id = d.roster_id ORDER BY d.id DESC LIMIT 1")

_ONWARD = text(f"""
SELECT {_WHOLE} FROM decisions d JOIN rosters r ON r.id = d.roster_id WHERE d.id > :after ORDER BY d.id LIMIT :limit
""")

_PAGE = text(f"SELECT {_BRIEF} FROM decisions d WHERE d.id < :before ORDER BY d.id DESC LIMIT :limit")

_CHANGES = text(f"""
SELECT {_BRIEF} FROM decisions d
WHERE d.id < :before AND decision_type <> 'maintain' ORDER BY d.id DESC LIMIT :limit
""")

_TARGET = text("SELECT target_workers FROM decisions ORDER BY id DESC LIMIT 1")

_MEMORY = text("""
SELECT now() AS now, decided_at, CAST(content AS text) AS content FROM (SELECT 1) one LEFT JOIN scaling_state ON true
""")

_REMEMBER = text("""
INSERT INTO scaling_state (decided_at, content) VALUES (:decided_at, CAST(:content AS jsonb))
ON CONFLICT (is_only) DO UPDATE SET decided_at = excluded.decided_at, content = excluded.content
RETURNING CASE WHEN CAST(:may_be_lost AS boolean) THEN set_config('synchronous_commit', 'off', true) END
""")

# That nothing had to change is of no interest after a day.
_PRUNE = text("""
DELETE FROM decisions WHERE id = ANY (ARRAY(
    SELECT id FROM decisions WHERE decided_at < now() - interval '1 day'
      AND (decision_type = 'maintain' OR decided_at < now() - make_interval(days => :days))
    ORDER BY decided_at LIMIT :limit
))
RETURNING roster_id
""")

_PRUNE_ROSTERS = text("""
DELETE FROM rosters r WHERE id = ANY (CAST(:ids AS bigint[]))
  AND NOT EXISTS (SELECT FROM decisions d WHERE d.roster_id = r.id)
""")


async def write(connection: AsyncConnection, decision: NewDecision) -> int:
    """Keep a decision, and its roster unless it is kept already; returns the decision's id.

    The caller holds the pool, so that no roster goes meanwhile.
    """
    values = {name: getattr(decision, name) for name in NewDecision.__dataclass_fields__}
    values["digest"] = hashlib.sha256(decision.roster.encode()).digest()
    written = (await connection.execute(_WRITE, values)).scalar()
    if written is None:
        await connection.execute(_WRITE_ROSTER, values)
        written = (await connection.execute(_WRITE, values)).scalar_one()
    return int(written)


async def read(connection: AsyncConnection, decision_id: int) -> Kept | None:
    """A decision with its inputs; None when there is none, or no more."""
    row = (await connection.execute(_READ, {"id": decision_id})).mappings().first()
    return Kept(**row) if row else None


async def latest(connection: AsyncConnection) -> Kept | None:
    """The last decision with its inputs; None before the first."""
    row = (await connection.execute(_LATEST)).mappings().first()
    return Kept(**row) if row else None


async def onward(connection: AsyncConnection, *, after: int, limit: int) -> list[Kept]:
    """Decisions above `after` with their inputs, oldest first."""
    return [Kept(**row) for row in (await connection.execute(_ONWARD, {"after": after, "limit": limit})).mappings()]


async def page(connection: AsyncConnection, *, before: int, limit: int, changes: bool = False) -> list[Kept]:
    """Decisions below `before`, newest first and without their inputs; only those that changed something, if asked."""
    query = _CHANGES if changes else _PAGE
    return [Kept(**row) for row in (await connection.execute(query, {"before": before, "limit": limit})).mappings()]


async def target(connection: AsyncConnection) -> int | None:
    """How many workers the last decision wants; None before the first."""
    found: int | None = (await connection.execute(_TARGET)).scalar()
    return found


async def memory(connection: AsyncConnection) -> tuple[datetime, dict[str, Any]]:
    """The time of this transaction by the database's clock, and what the next decision is to know of the last one.

    With `decided_at`, when the last one was made; empty before the first.
    """
    row = (await connection.execute(_MEMORY)).mappings().one()
    if row["decided_at"] is None:
        return row["now"], {}
    return row["now"], {**json.loads(row["content"]), "decided_at": row["decided_at"]}


async def remember(
    connection: AsyncConnection, decided_at: datetime, content: str, *, may_be_lost: bool = False
) -> None:
    """Keep for the next decision what it is to know. One at a time: the caller holds a duty's turn.

    A transaction that `may_be_lost`, whole, if the database crashes within a moment of its end, does not wait for the
    disk, and so nobody waits for the pool that it holds.
    """
    values = {"decided_at": decided_at, "content": content, "may_be_lost": may_be_lost}
    await connection.execute(_REMEMBER, values)


async def prune(connection: AsyncConnection, days: int, limit: int = BATCH) -> tuple[int, set[int]]:
    """Forget old decisions; returns how many, and the rosters that they referred to."""
    gone = (await connection.execute(_PRUNE, {"days": days, "limit": limit})).scalars().all()
    return len(gone), {roster_id for roster_id in gone if roster_id is not None}


async def prune_rosters(connection: AsyncConnection, ids: Collection[int]) -> None:
    """Forget those of these rosters that no decision refers to.

    The caller holds the pool, so that no decision is made meanwhile that refers to one which goes.
    """
    await connection.execute(_PRUNE_ROSTERS, {"ids": sorted(ids)})
