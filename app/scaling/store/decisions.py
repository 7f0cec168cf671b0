"""Decisions with their inputs, and the one row of state between them."""

import hashlib
import json
from collections.abc import Collection
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from sqlalchemy import TextClause, text
from sqlalchemy.ext.asyncio import AsyncConnection

from app.db import pages
from app.db.pages import Page
from app.db.retention import BATCH


@dataclass(frozen=True, slots=True, kw_only=True)
class NewDecision:
    """A decision to store; inputs, output and roster are JSON texts, the last of which has a table of its own."""

    decided_at: datetime
    decision_type: str
    current_workers: int
    target_workers: int
    inputs: str
    output: str
    roster: str


@dataclass(frozen=True, slots=True, kw_only=True)
class StoredDecision(NewDecision):
    """A decision as it is stored."""

    id: int
    roster_id: int


# Inserts nothing while the roster is not stored yet; mostly it is, and one statement is enough.
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
# As text, since a replay compares it byte by byte and a parsed value would have to be serialised again.
_OUTPUT = "CAST(output AS text) AS output"
_WHOLE = f"{_COLUMNS}, CAST(inputs AS text) AS inputs, {_OUTPUT}, CAST(r.content AS text) AS roster"
_BRIEF = f"{_COLUMNS}, '' AS inputs, {_OUTPUT}, '' AS roster"

_READ = text(f"SELECT {_WHOLE} FROM decisions d JOIN rosters r ON r.id = d.roster_id WHERE d.id = :id")

_LATEST = text(f"SELECT {_WHOLE} FROM decisions d JOIN rosters r ON r.id = d.roster_id ORDER BY d.id DESC LIMIT 1")

_ONWARD = text(f"""
SELECT {_WHOLE} FROM decisions d JOIN rosters r ON r.id = d.roster_id WHERE d.id > :above ORDER BY d.id LIMIT :limit
""")

_PAGE = f"SELECT {_BRIEF} FROM decisions d WHERE d.id < :below {{only}} ORDER BY d.id DESC"
_ANY, _CHANGES = _PAGE.format(only=""), _PAGE.format(only="AND decision_type <> 'maintain'")

_TARGET = text("SELECT target_workers FROM decisions ORDER BY id DESC LIMIT 1")


def is_due(at_most_seconds: float, early_seconds: float) -> str:
    """Return the condition that a decision is due by its time, or the configuration has changed since the last one."""
    again_after = f"least((content ->> 'again_after_seconds')::float8, {at_most_seconds}) - {early_seconds}"
    return f"""NOT EXISTS (
        SELECT FROM scaling_state WHERE decided_at > now() - make_interval(secs => {again_after})
        AND decided_at <= now()
        AND (content #>> '{{brief,config_version}}')::bigint
            = coalesce((SELECT version FROM config_versions ORDER BY version DESC LIMIT 1), 0)
    )"""


_READ_STATE = text("""
SELECT now() AS now, decided_at, CAST(content AS text) AS content FROM (SELECT 1) one LEFT JOIN scaling_state ON true
""")

_BOTTLENECK = text("""
SELECT coalesce(content #>> '{brief,bottleneck_agent}', '') FROM scaling_state
WHERE decided_at >= now() - make_interval(secs => :within)
""")

# The setting is local to the transaction, so that only this commit does not wait for the disk.
_WRITE_STATE = text("""
INSERT INTO scaling_state (decided_at, content) VALUES (:decided_at, CAST(:content AS jsonb))
ON CONFLICT (is_only) DO UPDATE SET decided_at = excluded.decided_at, content = excluded.content
RETURNING CASE WHEN CAST(:may_be_lost AS boolean) THEN set_config('synchronous_commit', 'off', true) END
""")

# That nothing had to change is of no interest after a day, nor that nobody has acted on a target yet, which is decided
# on again at every tick.
_PRUNE = text("""
DELETE FROM decisions WHERE id = ANY (ARRAY(
    SELECT id FROM decisions d WHERE decided_at < now() - interval '1 day'
      AND (decision_type = 'maintain' OR decided_at < now() - make_interval(days => :days)
           OR CASE WHEN decision_type IN ('scale_up', 'scale_down') AND (
               SELECT (decision_type, current_workers, target_workers)
                      = (d.decision_type, d.current_workers, d.target_workers)
               FROM decisions former WHERE former.id < d.id ORDER BY former.id DESC LIMIT 1
           ) THEN inputs ->> 'provisions' = 'false' AND output ->> 'moved_workers' = '0'
                  AND output -> 'classes' IS NULL AND output ->> 'agent_weight_adjustments' = '{}' END)
    ORDER BY decided_at LIMIT :limit
))
RETURNING roster_id
""")

_PRUNE_ROSTERS = text("""
DELETE FROM rosters r WHERE id = ANY (CAST(:ids AS bigint[]))
  AND NOT EXISTS (SELECT FROM decisions d WHERE d.roster_id = r.id)
""")


async def write(connection: AsyncConnection, decision: NewDecision) -> int:
    """Store a decision, and its roster unless it is stored already; return the decision's id.

    The caller holds the pool, so that no roster is pruned meanwhile.
    """
    values = {name: getattr(decision, name) for name in NewDecision.__dataclass_fields__}
    values["digest"] = hashlib.sha256(decision.roster.encode()).digest()
    decision_id = (await connection.execute(_WRITE, values)).scalar()
    if decision_id is None:
        await connection.execute(_WRITE_ROSTER, values)
        decision_id = (await connection.execute(_WRITE, values)).scalar_one()
    return int(decision_id)


async def read(connection: AsyncConnection, decision_id: int) -> StoredDecision | None:
    """A decision with its inputs; None when there is none, or it was pruned."""
    return next(iter(await _fetch(connection, _READ, id=decision_id)), None)


async def latest(connection: AsyncConnection) -> StoredDecision | None:
    """The last decision with its inputs; None before the first."""
    return next(iter(await _fetch(connection, _LATEST)), None)


async def onward(connection: AsyncConnection, *, above: int, limit: int) -> list[StoredDecision]:
    """Decisions with ids above `above` and their inputs, oldest first."""
    return await _fetch(connection, _ONWARD, above=above, limit=limit)


async def page(connection: AsyncConnection, *, below: int, limit: int, changes: bool = False) -> Page[StoredDecision]:
    """Decisions with ids below `below`, newest first, without inputs; with `changes` only those with one."""
    return await pages.read(connection, _CHANGES if changes else _ANY, {"below": below}, limit, _decision)


async def _fetch(connection: AsyncConnection, query: TextClause, **values: int) -> list[StoredDecision]:
    return [_decision(row) for row in (await connection.execute(query, values)).mappings()]


def _decision(row: Any) -> StoredDecision:
    return StoredDecision(**row)


async def target(connection: AsyncConnection) -> int | None:
    """Target size of the pool by the last decision; None before the first."""
    workers: int | None = (await connection.execute(_TARGET)).scalar()
    return workers


async def read_state(connection: AsyncConnection) -> tuple[datetime, dict[str, Any]]:
    """The time of this transaction by the database's clock, and the stored state; empty before the first decision.

    `decided_at` in it is when the last decision was made.
    """
    row = (await connection.execute(_READ_STATE)).mappings().one()
    if row["decided_at"] is None:
        return row["now"], {}
    return row["now"], {**json.loads(row["content"]), "decided_at": row["decided_at"]}


async def bottleneck(connection: AsyncConnection, *, within_seconds: float) -> str | None:
    """Agent type with the most outstanding work per worker by the last decision, "" for none; None without a decision.

    It leaves the rest of the state, which holds all arrivals of the last minutes, in the database.
    """
    agent: str | None = (await connection.execute(_BOTTLENECK, {"within": within_seconds})).scalar()
    return agent


async def write_state(
    connection: AsyncConnection, decided_at: datetime, content: str, *, may_be_lost: bool = False
) -> None:
    """Replace the state; the caller holds the turn of its duty, so that there is one writer at a time.

    With `may_be_lost` the whole transaction commits without waiting for the disk, and so nobody waits for the pool
    that it holds; a crash of the database within a moment of its end undoes it.
    """
    values = {"decided_at": decided_at, "content": content, "may_be_lost": may_be_lost}
    await connection.execute(_WRITE_STATE, values)


async def prune(connection: AsyncConnection, days: int, limit: int = BATCH) -> tuple[int, set[int]]:
    """Delete old decisions, at most `limit`; return their number and the rosters that they referred to."""
    roster_ids = (await connection.execute(_PRUNE, {"days": days, "limit": limit})).scalars().all()
    return len(roster_ids), {roster_id for roster_id in roster_ids if roster_id is not None}


async def prune_rosters(connection: AsyncConnection, ids: Collection[int]) -> None:
    """Delete those of these rosters that no decision refers to.

    The caller holds the pool, so that no decision is made meanwhile that refers to a roster being deleted.
    """
    await connection.execute(_PRUNE_ROSTERS, {"ids": sorted(ids)})
