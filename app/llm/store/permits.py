"""Permits of language-model calls: rows that live until they are settled, released, lost or expired.

Lock order: the gate, models by name, permits by id, what goals have spent by goal, budgets by owner, the minutes,
cached answers by key, the audit log; whoever needs several takes them in this order, and nobody who holds one of them
waits for a lock of another feature. Whoever holds such locks, like one who ends lost workers or deletes old rows, skips
what is locked.
Live permits are counted with the gate locked, so no two transactions count at once. A permit that has expired is ended
by an update before the count, not left out of it: the update waits for a renewal that is under way, so a permit is
either renewed and counted, or ended.
"""

import json
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any
from uuid import UUID

from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncConnection

from app.db import pages
from app.db.namespaces import WITHIN
from app.db.pages import Page
from app.db.retention import deletion
from app.kernel.agents import AgentType
from app.kernel.lanes import Priority
from app.llm.rules.permits import Ending, PermitPolicy, PermitRequest, RequestId


@dataclass(frozen=True, slots=True, kw_only=True)
class NewPermit:
    """A permit to be stored."""

    id: UUID
    token: str
    request: PermitRequest
    is_probe: bool
    reserved_usd: float = 0.0
    reserved_tokens: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Permit(NewPermit):
    """A stored permit; `digest` is the SHA-256 of the settlement that ended it."""

    granted_at: datetime
    expires_at: datetime
    ended_at: datetime | None
    ending: Ending | None
    digest: bytes | None


_REQUEST = "key_id, request_id, model, agent_type, priority, goal_id, task_id, worker_id, estimated_tokens"
# The condition under which their sweep has something to do.
HAS_EXPIRED = "EXISTS (SELECT FROM llm_permits WHERE ended_at IS NULL AND expires_at <= clock_timestamp())"
_PERMIT = f"id, token, {_REQUEST}, cache_key, principal, is_probe, granted_at, expires_at, ended_at, ending, digest"

# Locked in the order of ids, so that two transactions that end the same permits cannot deadlock.
EXPIRE = f"""
WITH over AS MATERIALIZED (
    SELECT id FROM llm_permits WHERE ended_at IS NULL AND expires_at <= clock_timestamp() ORDER BY id FOR UPDATE
)
UPDATE llm_permits p SET ended_at = clock_timestamp(), ending = '{Ending.EXPIRED}' FROM over WHERE p.id = over.id
"""

_READ_BY_REQUEST = text(f"""
SELECT {_PERMIT} FROM llm_permits
JOIN unnest(CAST(:keys AS text[]), CAST(:requests AS uuid[])) AS asked (key_id, request_id) USING (key_id, request_id)
""")

_INSERT = text(f"""
INSERT INTO llm_permits (id, token, {_REQUEST}, cache_key, principal, is_probe, reserved_usd, reserved_tokens,
                         granted_at, expires_at)
SELECT id, token, {_REQUEST}, decode(cache_key, 'hex'), principal, is_probe, reserved_usd, reserved_tokens, :at,
       CAST(:at AS timestamptz) + make_interval(secs => :ttl)
FROM jsonb_to_recordset(CAST(:permits AS jsonb)) AS new (
    id uuid, token text, key_id text, request_id uuid, model text, agent_type text, priority smallint, goal_id text,
    task_id uuid, worker_id uuid, estimated_tokens bigint, cache_key text, principal text, is_probe boolean,
    reserved_usd float8, reserved_tokens bigint)
RETURNING {_PERMIT}
""")

_LOCK = text(f"""
SELECT {_PERMIT} FROM llm_permits WHERE id = ANY (CAST(:ids AS uuid[])) AND {WITHIN} ORDER BY id FOR UPDATE
""")

_MODEL_NAMES = text("SELECT id, model FROM llm_permits WHERE id = ANY (CAST(:ids AS uuid[]))")

# By `clock_timestamp()`: `now()` is when the transaction began, and it may have waited for the row since. A worker
# renews its own permits, for as long as it holds the task of the call; anybody else for so long in all, and not while a
# caller of another key waits for the model, of which this key holds every permit.
_RENEW = text(f"""
UPDATE llm_permits p SET expires_at = least(
    clock_timestamp() + make_interval(secs => :ttl),
    CASE WHEN worker_id IS NOT NULL THEN NULL
         WHEN EXISTS (SELECT FROM llm_claims c
                      WHERE c.model = p.model AND c.key_id <> p.key_id AND c.lapses > clock_timestamp())
              AND NOT EXISTS (SELECT FROM llm_permits o
                              WHERE o.ended_at IS NULL AND o.model = p.model AND o.key_id <> p.key_id)
         THEN expires_at
         ELSE greatest(expires_at, granted_at + make_interval(secs => :longest)) END)
WHERE id = :id AND token = :token AND ended_at IS NULL AND expires_at > clock_timestamp() AND {WITHIN}
  AND (worker_id IS NULL OR worker_id = CAST(:worker_id AS uuid) AND EXISTS (
      SELECT FROM tasks t
      WHERE t.id = p.task_id AND t.worker_id = p.worker_id AND t.lease_expires_at > clock_timestamp()))
RETURNING expires_at
""")

_READ = text(f"SELECT {_PERMIT} FROM llm_permits WHERE id = :id AND {WITHIN}")

_END = text("""
UPDATE llm_permits p SET ended_at = coalesce(p.ended_at, :at), ending = ended.ending, digest = ended.digest
FROM unnest(CAST(:ids AS uuid[]), CAST(:endings AS text[]), CAST(:digests AS bytea[])) AS ended (id, ending, digest)
WHERE p.id = ended.id
""")

# Never waits, as its caller holds locks of workers: a permit that is being settled ends anyway, and one that is being
# renewed expires, as its worker is over.
END_LOST = text(f"""
WITH over AS MATERIALIZED (
    SELECT id FROM llm_permits WHERE worker_id = :worker_id AND ended_at IS NULL FOR UPDATE SKIP LOCKED
)
UPDATE llm_permits p SET ended_at = clock_timestamp(), ending = '{Ending.LOST}' FROM over WHERE p.id = over.id
""")

_LIVE = f"""
SELECT {_PERMIT} FROM llm_permits WHERE ended_at IS NULL AND expires_at > now() AND id > :after_id AND {WITHIN}
ORDER BY id
"""

_PRUNE = deletion("llm_permits", "ended_at < now() - interval '1 hour'", "ended_at")


async def read_by_request(connection: AsyncConnection, request_ids: Collection[RequestId]) -> dict[RequestId, Permit]:
    """The permits that these requests were granted before, live or not."""
    rows = (await connection.execute(_READ_BY_REQUEST, request_id_columns(request_ids))).mappings()
    return {permit.request.id: permit for permit in map(_permit, rows)}


async def expire(connection: AsyncConnection) -> int:
    """End expired permits; return their number."""
    return (await connection.execute(text(EXPIRE))).rowcount


async def insert(
    connection: AsyncConnection, permits: Collection[NewPermit], at: datetime, ttl_seconds: float
) -> dict[RequestId, Permit]:
    """Store new permits, with the gate locked."""
    rows = [
        {
            **request_columns(permit.request),
            **{name: getattr(permit, name) for name in ("id", "token", "is_probe", "reserved_usd", "reserved_tokens")},
            "estimated_tokens": permit.request.tokens,
            "cache_key": permit.request.cache_key.hex() if permit.request.cache_key else None,
            "principal": permit.request.principal or None,
        }
        for permit in permits
    ]
    values = {"permits": json.dumps(rows, default=str), "at": at, "ttl": ttl_seconds}
    result = await connection.execute(_INSERT, values)
    return {permit.request.id: permit for permit in map(_permit, result.mappings())}


async def model_names(connection: AsyncConnection, ids: Collection[UUID]) -> dict[UUID, str]:
    """Models of these permits, to be locked before them; permits deleted since are left out."""
    return {row.id: row.model for row in await connection.execute(_MODEL_NAMES, {"ids": list(ids)})}


async def lock(connection: AsyncConnection, ids: Collection[UUID], namespace: str | None = None) -> dict[UUID, Permit]:
    """Lock and read permits, of one namespace if one is given, with their models locked."""
    rows = (await connection.execute(_LOCK, {"ids": sorted(ids), "namespace": namespace})).mappings()
    return {permit.id: permit for permit in map(_permit, rows)}


async def read(connection: AsyncConnection, permit_id: UUID, namespace: str | None = None) -> Permit | None:
    """A permit, live or not; None when there is none in the namespace, if one is given, or it was deleted."""
    row = (await connection.execute(_READ, {"id": permit_id, "namespace": namespace})).mappings().first()
    return _permit(row) if row else None


async def renew(
    connection: AsyncConnection,
    permit_id: UUID,
    token: str,
    worker_id: UUID | None,
    policy: PermitPolicy,
    namespace: str | None = None,
) -> datetime | None:
    """Renew a live permit; return its new expiry, None when it is over, or not the caller's."""
    values = {"id": permit_id, "token": token, "worker_id": worker_id, "namespace": namespace}
    values |= {"ttl": policy.ttl_seconds, "longest": policy.max_held_seconds}
    expires_at: datetime | None = (await connection.execute(_RENEW, values)).scalar()
    return expires_at


async def end(connection: AsyncConnection, at: datetime, endings: Sequence[tuple[UUID, Ending, bytes | None]]) -> None:
    """End locked permits; one that was over before, and is settled late, keeps the time of its end."""
    ids, reasons, digests = zip(*endings, strict=True)
    values = {"at": at, "ids": list(ids), "endings": [reason.value for reason in reasons], "digests": list(digests)}
    await connection.execute(_END, values)


async def end_lost(connection: AsyncConnection, worker_id: UUID) -> None:
    """End the live permits of a worker that has ended."""
    await connection.execute(END_LOST, {"worker_id": worker_id})


async def page(
    connection: AsyncConnection, *, namespace: str | None = None, after_id: UUID, limit: int
) -> Page[Permit]:
    """Live permits, of one namespace if one is given, with ids above `after_id`, oldest first."""
    return await pages.read(connection, _LIVE, {"namespace": namespace, "after_id": after_id}, limit, _permit)


async def prune(connection: AsyncConnection, limit: int) -> int:
    """Delete permits that ended an hour ago, at most `limit`; return the number deleted."""
    return (await connection.execute(_PRUNE, {"limit": limit})).rowcount


def request_id_columns(ids: Collection[RequestId]) -> dict[str, list[Any]]:
    """The ids as columns, for `unnest`."""
    return {"keys": [id_.key_id for id_ in ids], "requests": [id_.request_id for id_ in ids]}


def request_columns(request: PermitRequest) -> dict[str, Any]:
    """The columns of a request, for JSON that is written with `default=str`."""
    names = ("model", "agent_type", "priority", "tokens", "goal_id", "task_id", "worker_id")
    return request.id._asdict() | {name: getattr(request, name) for name in names}


def _permit(row: Any) -> Permit:
    request = PermitRequest(
        id=RequestId(row["key_id"], row["request_id"]),
        model=row["model"],
        agent_type=AgentType(row["agent_type"]),
        priority=Priority(row["priority"]),
        tokens=row["estimated_tokens"],
        goal_id=row["goal_id"],
        task_id=row["task_id"],
        worker_id=row["worker_id"],
        cache_key=row["cache_key"],
        principal=row["principal"] or "",
    )
    own = ("id", "token", "is_probe", "granted_at", "expires_at", "ended_at", "digest")
    ending = None if row["ending"] is None else Ending(row["ending"])
    return Permit(**{name: row[name] for name in own}, request=request, ending=ending)
