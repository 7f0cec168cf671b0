"""Keys, stored as the SHA-256 of their secrets."""

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any
from uuid import UUID

import asyncpg
from sqlalchemy import RowMapping, text
from sqlalchemy.ext.asyncio import AsyncConnection

from app.db import notify, pages
from app.db.pages import Page
from app.db.retention import BATCH, deletion
from app.kernel.access import Role, Scope
from app.kernel.namespaces import DEFAULT


@dataclass(frozen=True, slots=True, kw_only=True)
class NewKey:
    """A key to be made; `withheld` are scopes of its role that it is not to have.

    `is_of_all` makes it one of the whole service instead of a namespace. `uses_left` is the number of workers that it
    may register, None: any number; `launches` the one that it registers.
    """

    role: Role
    label: str
    namespace: str | None = None
    is_of_all: bool = False
    withheld: frozenset[Scope] = frozenset()
    worker_id: UUID | None = None
    launches: UUID | None = None
    uses_left: int | None = None
    expires_in_seconds: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class CreatedKey:
    """A key with its text, which is stored nowhere."""

    id: str
    role: Role
    label: str
    namespace: str | None
    withheld: Sequence[str]
    uses_left: int | None
    expires_at: datetime | None
    text: str

    def description(self) -> dict[str, Any]:
        """All but the text, as JSON."""
        plain = {name: getattr(self, name) for name in ("id", "role", "label", "namespace", "withheld", "uses_left")}
        return plain | {"expires_at": self.expires_at and self.expires_at.isoformat()}


@dataclass(frozen=True, slots=True, kw_only=True)
class OwnKey:
    """Of a key what its holder may know besides its role."""

    label: str
    created_at: datetime
    expires_at: datetime | None


@dataclass(frozen=True, slots=True, kw_only=True)
class StoredKey:
    """A stored key, with the state of its worker if it is a worker's own.

    Before its last rotation it had the `former_hash`, which is good for `former_seconds` more. Without `seconds_left`
    it does not expire. `is_divided`: some key belongs to another namespace than `default`, be it revoked.
    """

    id: str
    role: Role
    namespace: str | None
    is_divided: bool
    secret_hash: bytes
    former_hash: bytes | None
    former_seconds: float | None
    seconds_left: float | None
    worker_id: UUID | None
    withheld: Sequence[str]
    capabilities: Sequence[str] | None
    ends_at: datetime | None
    offer: str | None
    worker_state: str | None
    ended_reason: str | None
    revoked_at: datetime | None


_READ_OWN = text("SELECT label, created_at, expires_at FROM keys WHERE id = :id")
_WORKER_OF = text("SELECT worker_id FROM keys WHERE id = :id")
_INSERT = text("""
INSERT INTO keys (id, role, label, namespace, secret_hash, worker_id, withheld, launches, uses_left, expires_at)
VALUES (:id, :role, :label, :namespace, :secret_hash, :worker_id, :withheld, :launches, :uses_left,
        now() + make_interval(secs => :expires_in_seconds))
RETURNING id, role, label, namespace, withheld, uses_left, expires_at
""")
# For asyncpg, with its placeholders: heartbeats and leases look their keys up on the hot path. A key that is used up is
# shown again by a worker that may not have got its answer.
_READ = """
SELECT k.id, k.role, k.namespace, k.secret_hash, k.worker_id, k.withheld, w.capabilities, w.ends_at,
       jsonb_strip_nulls(jsonb_build_object('cores', w.cpu_cores, 'memory_gb', w.memory_gb, 'gpus', w.gpus,
                                            'named', w.resources))::text AS offer,
       CASE WHEN k.uses_left = 0 AND NOT EXISTS (
           SELECT FROM workers new WHERE new.state = 'starting' AND new.last_seen_at IS NULL
             AND new.request_id IS NOT NULL AND (new.id = k.launches OR new.registered_by = k.id)
       ) THEN now() ELSE k.revoked_at END AS revoked_at,
       w.state AS worker_state, w.ended_reason, k.former_hash,
       extract(epoch FROM k.former_expires_at - now())::float8 AS former_seconds,
       extract(epoch FROM k.expires_at - now())::float8 AS seconds_left,
       EXISTS (SELECT FROM keys other WHERE other.namespace <> 'default') AS is_divided
FROM keys k LEFT JOIN workers w ON w.id = k.worker_id WHERE k.id = ANY ($1::text[])
"""
# Far back, as a transaction that began earlier may commit only now.
_CHANGED = """
SELECT id FROM keys WHERE greatest(revoked_at, rotated_at) > now() - interval '1 min'
UNION ALL
SELECT k.id FROM workers w JOIN keys k ON k.worker_id = w.id WHERE w.ended_at > now() - interval '1 min'
UNION ALL
SELECT id FROM keys WHERE namespace = 'default' AND EXISTS (
    SELECT FROM keys other WHERE other.namespace <> 'default' AND other.created_at > now() - interval '1 min'
)
"""
_NOTE_USE = "UPDATE keys SET last_used_at = now() WHERE id = ANY ($1::text[])"
# A key that is revoked twice keeps the time of the first.
_REVOKE = text("""
UPDATE keys k SET revoked_at = coalesce(k.revoked_at, now()) FROM (SELECT * FROM keys WHERE id = :id FOR UPDATE) former
WHERE k.id = former.id RETURNING former.revoked_at IS NULL AS was_valid
""")
# Of several rotations within an overlap the last former secret is good. Later than whatever this has waited for, so
# that each session which a former secret has opened is older.
_ROTATE = text("""
UPDATE keys SET secret_hash = :secret_hash, rotated_at = clock_timestamp(), former_hash = secret_hash,
    former_expires_at = now() + make_interval(secs => :overlap_seconds),
    expires_at = coalesce(now() + make_interval(secs => :expires_in_seconds), expires_at)
WHERE id = :id AND worker_id IS NULL AND launches IS NULL AND uses_left IS NULL AND revoked_at IS NULL
  AND (expires_at IS NULL OR expires_at > now())
RETURNING id, role, label, namespace, withheld, uses_left, expires_at
""")
_REVOKE_OF_WORKER = text("UPDATE keys SET revoked_at = now() WHERE worker_id = :id AND revoked_at IS NULL RETURNING id")
# By `worker_id IS NULL` an index leads past the keys of workers, which are many, and go with the rows of their workers.
_PRUNE = deletion(
    "keys",
    "worker_id IS NULL AND (launches IS NOT NULL AND NOT EXISTS (SELECT FROM workers w WHERE w.id = keys.launches "
    "AND (w.ended_at IS NULL OR w.ended_at >= now() - interval '1 hour') "
    "AND (keys.uses_left IS NULL OR w.last_seen_at IS NULL)) "
    "OR uses_left IS NOT NULL AND expires_at < now() - interval '30 days')",
    "id",
)
# Of two registrations at once the second waits here, and finds the row gone, or used up.
_IS_LAUNCH = "id = :id AND launches IS NOT NULL AND uses_left IS NULL AND revoked_at IS NULL RETURNING launches"
_TAKE_LAUNCH = text(f"DELETE FROM keys WHERE {_IS_LAUNCH}")
_USE_LAUNCH = text(f"UPDATE keys SET uses_left = 0 WHERE {_IS_LAUNCH}")
_TAKE_USE = text("""
UPDATE keys SET uses_left = uses_left - 1
WHERE id = :id AND uses_left > 0 AND revoked_at IS NULL AND (expires_at IS NULL OR expires_at > now()) RETURNING id
""")
# The lock makes a revocation wait for registrations under way, so that afterwards no worker of this key appears.
_HOLD = text("""
SELECT id FROM keys
WHERE id = :id AND launches IS NULL AND uses_left IS NULL AND revoked_at IS NULL
  AND (expires_at IS NULL OR expires_at > now())
FOR SHARE
""")
_PAGE = """
SELECT id, role, label, namespace, withheld, uses_left, created_at, rotated_at, expires_at, last_used_at, revoked_at
FROM keys
WHERE id > :after AND worker_id IS NULL AND launches IS NULL ORDER BY id
"""


async def insert(
    connection: AsyncConnection, key_id: str, secret_hash: bytes, key: NewKey, text_of_key: str
) -> CreatedKey:
    """Store a new key, without its text."""
    values = {"role": key.role.value, "withheld": sorted(key.withheld), "id": key_id, "secret_hash": secret_hash}
    names = ("label", "namespace", "worker_id", "launches", "uses_left", "expires_in_seconds")
    row = (await connection.execute(_INSERT, {**values, **{name: getattr(key, name) for name in names}})).mappings()
    if key.namespace not in (None, DEFAULT):
        # The first one of another namespace confines those of `default`, which processes remember as free.
        notify.note(connection, notify.KEYS)
    return _created(row.one(), text_of_key)


async def read(connection: "asyncpg.Connection[asyncpg.Record]", key_ids: Sequence[str]) -> dict[str, StoredKey]:
    """The keys of these ids that exist, revoked or not."""
    rows = await connection.fetch(_READ, key_ids)
    return {row["id"]: StoredKey(**{**row, "role": Role(row["role"])}) for row in rows}


async def read_own(connection: AsyncConnection, key_id: str) -> OwnKey | None:
    """The key of this id; None when it is gone."""
    row = (await connection.execute(_READ_OWN, {"id": key_id})).mappings().first()
    return OwnKey(**row) if row else None


async def worker_of(connection: AsyncConnection, key_id: str) -> UUID | None:
    """The worker whose own key this is; None for all other keys."""
    worker_id: UUID | None = (await connection.execute(_WORKER_OF, {"id": key_id})).scalar()
    return worker_id


async def changed(connection: "asyncpg.Connection[asyncpg.Record]") -> set[str]:
    """Ids of the keys that were revoked or rotated, or confined, or whose worker has ended, within the last minute."""
    return {row["id"] for row in await connection.fetch(_CHANGED)}


async def note_use(connection: "asyncpg.Connection[asyncpg.Record]", key_ids: Collection[str]) -> None:
    """Record that these keys are in use."""
    await connection.execute(_NOTE_USE, sorted(key_ids))


async def revoke_of_worker(connection: AsyncConnection, worker_id: UUID) -> bool:
    """Revoke the credential of a worker; False when it has none that is not revoked."""
    notify.note(connection, notify.KEYS)
    return (await connection.execute(_REVOKE_OF_WORKER, {"id": worker_id})).first() is not None


async def revoke(connection: AsyncConnection, key_id: str) -> bool | None:
    """Revoke a key; whether it was not revoked before, None when there is none with this id."""
    notify.note(connection, notify.KEYS)
    row = (await connection.execute(_REVOKE, {"id": key_id})).first()
    return None if row is None else row.was_valid


async def rotate(
    connection: AsyncConnection,
    key_id: str,
    secret_hash: bytes,
    *,
    overlap_seconds: float,
    expires_in_seconds: float | None,
    text_of_key: str,
) -> CreatedKey | None:
    """Give a key another secret, beside which the former is good for a while; None when there is no valid such key."""
    notify.note(connection, notify.KEYS)
    values = {"overlap_seconds": overlap_seconds, "expires_in_seconds": expires_in_seconds}
    row = (await connection.execute(_ROTATE, {"id": key_id, "secret_hash": secret_hash, **values})).mappings().first()
    return None if row is None else _created(row, text_of_key)


def _created(row: RowMapping, text_of_key: str) -> CreatedKey:
    return CreatedKey(**{**row, "role": Role(row["role"])}, text=text_of_key)


async def take_launch(connection: AsyncConnection, key_id: str, *, is_repeatable: bool) -> UUID | None:
    """Use up the key of a launch; return the worker that it registers, None where it is no such key any more.

    It is kept where the registration `is_repeatable`, until the worker is heard of.
    """
    statement = _USE_LAUNCH if is_repeatable else _TAKE_LAUNCH
    return (await connection.execute(statement, {"id": key_id})).scalar()


async def take_use(connection: AsyncConnection, key_id: str) -> bool:
    """Use a key that registers a number of workers once more; False where it is no such key, or not any more."""
    return (await connection.execute(_TAKE_USE, {"id": key_id})).first() is not None


async def hold(connection: AsyncConnection, key_id: str) -> bool:
    """Lock a key against its revocation until the transaction ends; False when it has been revoked or has expired."""
    return (await connection.execute(_HOLD, {"id": key_id})).first() is not None


async def page(connection: AsyncConnection, *, after: str, limit: int) -> Page[dict[str, Any]]:
    """Keys without secrets, by id; those of workers are left out."""
    return await pages.read(connection, _PAGE, {"after": after}, limit, lambda row: row)


async def prune(connection: AsyncConnection, limit: int = BATCH) -> int:
    """Delete keys of launches that ended an hour ago or whose worker was heard of, and of so many uses that expired
    30 days ago; return the number.

    At most `limit` are deleted.
    """
    return (await connection.execute(_PRUNE, {"limit": limit})).rowcount
