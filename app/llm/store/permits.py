"""Permits of language-model calls: rows that live until they are settled, released, lost or expired.

Lock order: the gate, models by name, permits by id, the minutes, cached answers by key, the audit log; whoever needs
several takes them in this order, and nobody who holds one of them waits for another noun. Whoever holds others, like
one who finds workers lost or makes room, takes only what is free. Live permits are counted with the gate
locked, so no two count at once. A permit that has expired is ended by an update before the count, not left out of it:
the update waits for a renewal that is under way, so a permit is either renewed and counted, or ended.
"""

import json
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any
from uuid import UUID

from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncConnection

from app.kernel.agents import AgentType
from app.kernel.lanes import Priority
from app.llm.rules.permits import AskId, Ending, PermitRequest


@dataclass(frozen=True, slots=True, kw_only=True)
class Permit:
    """A permit as it is kept; `digest` tells its settlement."""

    id: UUID
    token: str
    ask: PermitRequest
    is_probe: bool
    granted_at: datetime
    expires_at: datetime
    ended_at: datetime | None
    ending: Ending | None
    digest: bytes | None


@dataclass(frozen=True, slots=True, kw_only=True)
class NewPermit:
    """What is to become a permit."""

    id: UUID
    token: str
    ask: PermitRequest
    is_probe: bool


_ASK = "key_id, request_id, model, agent_type, priority, goal_id, task_id, worker_id, estimated_tokens"
_PERMIT = f"id, token, {_ASK}, is_probe, granted_at, expires_at, ended_at, ending, digest"

# Locked in their order, once: so two who end the same permits do not wait for each other.
EXPIRE = f"""
WITH over AS MATERIALIZED (
    SELECT id FROM llm_permits WHERE ended_at IS NULL AND expires_at <= clock_timestamp() ORDER BY id FOR UPDATE
)
UPDATE llm_permits p SET ended_at = clock_timestamp(), ending = '{Ending.EXPIRED}' FROM over WHERE p.id = over.id
"""

_KNOWN = text(f"""
SELECT {_PERMIT} FROM llm_permits
JOIN unnest(CAST(:keys AS text[]), CAST(:requests AS uuid[])) AS asked (key_id, request_id) USING (key_id, request_id)
""")

_INSERT = text(f"""
INSERT INTO llm_permits (id, token, {_ASK}, is_probe, granted_at, expires_at)
SELECT id, token, {_ASK}, is_probe, :at, CAST(:at AS timestamptz) + make_interval(secs => :ttl)
FROM jsonb_to_recordset(CAST(:permits AS jsonb)) AS new (
    id uuid, token text, key_id text, request_id uuid, model text, agent_type text, priority smallint, goal_id text,
    task_id uuid, worker_id uuid, estimated_tokens bigint, is_probe boolean)
RETURNING {_PERMIT}
""")

_LOCK = text(f"SELECT {_PERMIT} FROM llm_permits WHERE id = ANY (CAST(:ids AS uuid[])) ORDER BY id FOR UPDATE")

_MODELS = text("SELECT id, model FROM llm_permits WHERE id = ANY (CAST(:ids AS uuid[]))")

_RENEW = text("""
UPDATE llm_permits SET expires_at = clock_timestamp() + make_interval(secs => :ttl)
WHERE id = :id AND token = :token AND ended_at IS NULL AND expires_at > clock_timestamp() RETURNING expires_at
""")

_READ = text(f"SELECT {_PERMIT} FROM llm_permits WHERE id = :id")

_END = text("""
UPDATE llm_permits p SET ended_at = coalesce(p.ended_at, :at), ending = ended.ending, digest = ended.digest
FROM unnest(CAST(:ids AS uuid[]), CAST(:endings AS text[]), CAST(:digests AS bytea[])) AS ended (id, ending, digest)
WHERE p.id = ended.id
""")

# Never waits: a permit that is being settled ends anyway, and one that is being renewed, when nobody does so again.
LOSE = text(f"""
WITH over AS MATERIALIZED (
    SELECT id FROM llm_permits WHERE worker_id = :worker_id AND ended_at IS NULL FOR UPDATE SKIP LOCKED
)
UPDATE llm_permits p SET ended_at = clock_timestamp(), ending = '{Ending.LOST}' FROM over WHERE p.id = over.id
""")

_LIVE = text(f"""
SELECT {_PERMIT} FROM llm_permits WHERE ended_at IS NULL AND expires_at > now() AND id > :after ORDER BY id LIMIT :limit
""")

_PRUNE = text("""
DELETE FROM llm_permits WHERE id IN (
    SELECT id FROM llm_permits WHERE ended_at < now() - interval '1 hour' ORDER BY ended_at LIMIT :bite
    FOR UPDATE SKIP LOCKED
)
""")


async def known(connection: AsyncConnection, asked: Collection[AskId]) -> dict[AskId, Permit]:
    """The permits that these requests have led to already."""
    rows = (await connection.execute(_KNOWN, ids_of(asked))).mappings()
    return {permit.ask.id: permit for permit in map(_permit, rows)}


async def expire(connection: AsyncConnection) -> int:
    """End the permits whose time is over; returns how many."""
    return (await connection.execute(text(EXPIRE))).rowcount


async def insert(
    connection: AsyncConnection, permits: Collection[NewPermit], at: datetime, ttl_seconds: float
) -> dict[AskId, Permit]:
    """Keep new permits, with the gate locked."""
    rows = [
        {
            "id": str(permit.id),
            "token": permit.token,
            "is_probe": permit.is_probe,
            **plain_ask(permit.ask),
            "goal_id": permit.ask.goal_id,
            "worker_id": _text(permit.ask.worker_id),
            "estimated_tokens": permit.ask.tokens,
        }
        for permit in permits
    ]
    made = await connection.execute(_INSERT, {"permits": json.dumps(rows), "at": at, "ttl": ttl_seconds})
    return {permit.ask.id: permit for permit in map(_permit, made.mappings())}


async def models_of(connection: AsyncConnection, ids: Collection[UUID]) -> dict[UUID, str]:
    """Whose models must be locked before these permits; those that nobody remembers are left out."""
    return {row.id: row.model for row in await connection.execute(_MODELS, {"ids": list(ids)})}


async def lock(connection: AsyncConnection, ids: Collection[UUID]) -> dict[UUID, Permit]:
    """Lock permits, with their models locked."""
    rows = (await connection.execute(_LOCK, {"ids": sorted(ids)})).mappings()
    return {permit.id: permit for permit in map(_permit, rows)}


async def read(connection: AsyncConnection, permit_id: UUID) -> Permit | None:
    """A permit as it is; None when nobody remembers it."""
    row = (await connection.execute(_READ, {"id": permit_id})).mappings().first()
    return _permit(row) if row else None


async def renew(connection: AsyncConnection, permit_id: UUID, token: str, ttl_seconds: float) -> datetime | None:
    """Let a live permit live on; None when it does not live, or has another token."""
    values = {"id": permit_id, "token": token, "ttl": ttl_seconds}
    expires_at: datetime | None = (await connection.execute(_RENEW, values)).scalar()
    return expires_at


async def end(connection: AsyncConnection, at: datetime, endings: Sequence[tuple[UUID, Ending, bytes | None]]) -> None:
    """End locked permits. One that expired or was lost, and is settled late, keeps the time of its end."""
    ids, kinds, digests = zip(*endings, strict=True)
    values = {"at": at, "ids": list(ids), "endings": [kind.value for kind in kinds], "digests": list(digests)}
    await connection.execute(_END, values)


async def lose(connection: AsyncConnection, worker_id: UUID) -> int:
    """End what a worker held that is over; returns how many."""
    return (await connection.execute(LOSE, {"worker_id": worker_id})).rowcount


async def page(connection: AsyncConnection, *, after: UUID, limit: int) -> list[Permit]:
    """Live permits, the oldest first."""
    rows = (await connection.execute(_LIVE, {"after": after, "limit": limit})).mappings()
    return [_permit(row) for row in rows]


async def prune(connection: AsyncConnection, bite: int = 5000) -> int:
    """Forget permits that ended an hour ago; returns how many."""
    return (await connection.execute(_PRUNE, {"bite": bite})).rowcount


def ids_of(ids: Collection[AskId]) -> dict[str, list[Any]]:
    """The ids as a statement takes them."""
    return {"keys": [one.key_id for one in ids], "requests": [one.request_id for one in ids]}


def plain_ask(ask: PermitRequest) -> dict[str, Any]:
    """What permits and claims have in common, as JSON has it."""
    return {
        "key_id": ask.id.key_id,
        "request_id": str(ask.id.request_id),
        "model": ask.model,
        "agent_type": ask.agent_type.value,
        "priority": ask.priority.value,
        "task_id": _text(ask.task_id),
    }


def _text(value: UUID | None) -> str | None:
    return None if value is None else str(value)


def _permit(row: Any) -> Permit:
    ask = PermitRequest(
        id=AskId(row["key_id"], row["request_id"]),
        model=row["model"],
        agent_type=AgentType(row["agent_type"]),
        priority=Priority(row["priority"]),
        tokens=row["estimated_tokens"],
        goal_id=row["goal_id"],
        task_id=row["task_id"],
        worker_id=row["worker_id"],
    )
    own = ("id", "token", "is_probe", "granted_at", "expires_at", "ended_at", "digest")
    ending = None if row["ending"] is None else Ending(row["ending"])
    return Permit(**{name: row[name] for name in own}, ask=ask, ending=ending)
