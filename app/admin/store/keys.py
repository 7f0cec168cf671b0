"""Keys, stored as the SHA-256 of their secrets."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any
from uuid import UUID

import asyncpg
from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncConnection

from app.db import notify
from app.db.retention import BATCH, deletion
from app.kernel.access import Role, Scope
from app.kernel.namespaces import DEFAULT


@dataclass(frozen=True, slots=True, kw_only=True)
class NewKey:
    """A key to be made; `withheld` are scopes of its role that it is not to have; no namespace: all."""

    role: Role
    label: str
    namespace: str | None = None
    withheld: frozenset[Scope] = frozenset()
    worker_id: UUID | None = None
    launches: UUID | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class StoredKey:
    """A stored key, with the capabilities of its worker if it is a worker's own.

    `is_divided`: some key belongs to another namespace than `default`, be it revoked.
    """

    id: str
    role: Role
    namespace: str | None
    is_divided: bool
    secret_hash: bytes
    worker_id: UUID | None
    withheld: Sequence[str]
    capabilities: Sequence[str] | None
    revoked_at: datetime | None


_INSERT = text("""
INSERT INTO keys (id, role, label, namespace, secret_hash, worker_id, withheld, launches)
VALUES (:id, :role, :label, :namespace, :secret_hash, :worker_id, :withheld, :launches)
""")
# For asyncpg, with its placeholders: heartbeats and leases look their keys up on the hot path.
_READ = """
SELECT k.id, k.role, k.namespace, k.secret_hash, k.worker_id, k.withheld, w.capabilities, k.revoked_at,
       EXISTS (SELECT FROM keys other WHERE other.namespace <> 'default') AS is_divided
FROM keys k LEFT JOIN workers w ON w.id = k.worker_id WHERE k.id = ANY ($1::text[])
"""
# A key that is revoked twice keeps the time of the first.
_REVOKE = text("UPDATE keys SET revoked_at = coalesce(revoked_at, now()) WHERE id = :id RETURNING id")
_PRUNE = deletion(
    "keys",
    "EXISTS (SELECT FROM workers w WHERE w.id = coalesce(keys.worker_id, keys.launches) "
    "AND w.ended_at < now() - interval '1 hour')",
    "id",
)
# Of two registrations at once the second waits here, and finds the row gone.
_TAKE_LAUNCH = text(
    "DELETE FROM keys WHERE id = :id AND launches IS NOT NULL AND revoked_at IS NULL RETURNING launches"
)
# The lock makes a revocation wait for registrations under way, so that afterwards no worker of this key appears.
_HOLD = text("""
SELECT id FROM keys
WHERE id = :id AND launches IS NULL AND revoked_at IS NULL AND (expires_at IS NULL OR expires_at > now()) FOR SHARE
""")
_PAGE = text("""
SELECT id, role, label, namespace, withheld, created_at, revoked_at FROM keys
WHERE id > :after AND worker_id IS NULL AND launches IS NULL ORDER BY id LIMIT :limit
""")


async def insert(connection: AsyncConnection, key_id: str, secret_hash: bytes, key: NewKey) -> None:
    """Store a new key."""
    values = {"role": key.role.value, "withheld": sorted(key.withheld), "id": key_id, "secret_hash": secret_hash}
    same = {name: getattr(key, name) for name in ("label", "namespace", "worker_id", "launches")}
    await connection.execute(_INSERT, {**values, **same})
    if key.namespace not in (None, DEFAULT):
        # The first one of another namespace confines those of `default`, which processes remember as free.
        notify.note(connection, notify.KEYS)


async def read(connection: "asyncpg.Connection[asyncpg.Record]", key_ids: Sequence[str]) -> dict[str, StoredKey]:
    """The keys of these ids that exist, revoked or not."""
    rows = await connection.fetch(_READ, key_ids)
    return {row["id"]: StoredKey(**{**row, "role": Role(row["role"])}) for row in rows}


async def revoke(connection: AsyncConnection, key_id: str) -> bool:
    """Revoke a key; False when there is none with this id."""
    notify.note(connection, notify.KEYS)
    return (await connection.execute(_REVOKE, {"id": key_id})).first() is not None


async def take_launch(connection: AsyncConnection, key_id: str) -> UUID | None:
    """Use up the key of a launch; return the worker that it registers, None where it is no such key any more."""
    return (await connection.execute(_TAKE_LAUNCH, {"id": key_id})).scalar()


async def hold(connection: AsyncConnection, key_id: str) -> bool:
    """Lock a key against its revocation until the transaction ends; False when it has been revoked or has expired."""
    return (await connection.execute(_HOLD, {"id": key_id})).first() is not None


async def page(connection: AsyncConnection, *, after: str, limit: int) -> list[dict[str, Any]]:
    """Keys without secrets, by id; those of workers are left out."""
    rows = await connection.execute(_PAGE, {"after": after, "limit": limit})
    return [dict(row) for row in rows.mappings()]


async def prune(connection: AsyncConnection, limit: int = BATCH) -> int:
    """Delete keys of workers that ended more than an hour ago, at most `limit`; return the number deleted."""
    return (await connection.execute(_PRUNE, {"limit": limit})).rowcount
