"""Decisions on the pool, kept with their inputs, and what the scaling loop remembers between them."""

import json
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncConnection


@dataclass(frozen=True, slots=True, kw_only=True)
class NewDecision:
    """A decision to keep; inputs and output are JSON texts."""

    decided_at: datetime
    decision_type: str
    current_workers: int
    target_workers: int
    inputs: str
    output: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Kept(NewDecision):
    """A decision as it is kept."""

    id: int


_WRITE = text("""
INSERT INTO decisions (decided_at, decision_type, current_workers, target_workers, inputs, output)
VALUES (:decided_at, :decision_type, :current_workers, :target_workers, CAST(:inputs AS json), CAST(:output AS json))
RETURNING id
""")

_COLUMNS = "id, decided_at, decision_type, current_workers, target_workers"
# The text as it was written; a JSON value would have to be put into words again.
_TEXTS = "CAST(inputs AS text) AS inputs, CAST(output AS text) AS output"

_READ = text(f"SELECT {_COLUMNS}, {_TEXTS} FROM decisions WHERE id = :id")

_PAGE = text(f"""
SELECT {_COLUMNS}, '' AS inputs, CAST(output AS text) AS output FROM decisions
WHERE id < :before ORDER BY id DESC LIMIT :limit
""")

_CHANGES = text(f"""
SELECT {_COLUMNS}, '' AS inputs, CAST(output AS text) AS output FROM decisions
WHERE id < :before AND decision_type <> 'maintain' ORDER BY id DESC LIMIT :limit
""")

_TARGET = text("SELECT target_workers FROM decisions ORDER BY id DESC LIMIT 1")

_STATE = text("SELECT decided_at, CAST(content AS text) AS content FROM scaling_state")

_REMEMBER = text("""
INSERT INTO scaling_state (decided_at, content) VALUES (:decided_at, CAST(:content AS jsonb))
ON CONFLICT (is_only) DO UPDATE SET decided_at = excluded.decided_at, content = excluded.content
""")

# That nothing had to change is of no interest after a day.
_PRUNE = text("""
DELETE FROM decisions WHERE decided_at < now() - make_interval(days => :days)
    OR (decision_type = 'maintain' AND decided_at < now() - interval '1 day')
""")


async def write(connection: AsyncConnection, decision: NewDecision) -> int:
    """Keep a decision; returns its id."""
    values = {name: getattr(decision, name) for name in NewDecision.__dataclass_fields__}
    return int((await connection.execute(_WRITE, values)).scalar_one())


async def read(connection: AsyncConnection, decision_id: int) -> Kept | None:
    """A decision with its inputs; None when there is none, or no more."""
    row = (await connection.execute(_READ, {"id": decision_id})).mappings().first()
    return Kept(**row) if row else None


async def page(connection: AsyncConnection, *, before: int, limit: int, changes: bool = False) -> list[Kept]:
    """Decisions below `before`, newest first and without their inputs; only those that changed something, if asked."""
    query = _CHANGES if changes else _PAGE
    return [Kept(**row) for row in (await connection.execute(query, {"before": before, "limit": limit})).mappings()]


async def target(connection: AsyncConnection) -> int | None:
    """How many workers the last decision wants; None before the first."""
    found: int | None = (await connection.execute(_TARGET)).scalar()
    return found


async def state(connection: AsyncConnection) -> tuple[datetime, dict[str, Any]] | None:
    """When the last decision was made, and what the next one is to know of it; None before the first."""
    row = (await connection.execute(_STATE)).mappings().first()
    return (row["decided_at"], json.loads(row["content"])) if row else None


async def remember(connection: AsyncConnection, decided_at: datetime, content: str) -> None:
    """Keep for the next decision what it is to know. One at a time: the caller holds a duty's turn."""
    await connection.execute(_REMEMBER, {"decided_at": decided_at, "content": content})


async def prune(connection: AsyncConnection, days: int) -> int:
    """Forget old decisions; returns how many."""
    return (await connection.execute(_PRUNE, {"days": days})).rowcount
