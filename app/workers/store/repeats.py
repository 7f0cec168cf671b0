"""Registrations that are repeated, as their answer was lost."""

from uuid import UUID

from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncConnection

_LOCK = text("SELECT pg_advisory_xact_lock(hashtextextended(CAST(:request_id AS text), 1))")

# A launch is known by its key, as workers of the pool are registered by nobody's.
_UNHEARD = text("""
SELECT w.id, w.name, w.incarnation
FROM keys k JOIN workers w ON w.id = k.launches OR w.registered_by = k.id
WHERE k.id = :key_id AND k.revoked_at IS NULL AND (k.expires_at IS NULL OR k.expires_at > now())
  AND w.request_id = :request_id AND w.state = 'starting' AND w.last_seen_at IS NULL
FOR NO KEY UPDATE OF w
""")


async def unheard_worker(connection: AsyncConnection, request_id: UUID, key_id: str) -> tuple[UUID, str, int] | None:
    """Id, name and incarnation of the worker that registered by this request and key and was never heard of, locked.

    Others with the same request wait until the transaction ends.
    """
    await connection.execute(_LOCK, {"request_id": str(request_id)})
    row = (await connection.execute(_UNHEARD, {"request_id": request_id, "key_id": key_id})).first()
    return None if row is None else (row.id, row.name, row.incarnation)
