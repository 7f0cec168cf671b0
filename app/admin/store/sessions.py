"""Sessions of browsers, which act for a key, and links that open one; stored as the SHA-256 of their secrets."""

from collections.abc import Sequence
from datetime import datetime

import asyncpg
from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncConnection

from app.admin.store.keys import StoredKey
from app.db import notify
from app.kernel.access import Role

# The lock waits for a rotation under way, which may take the secret from the key. One that the former secret opens is
# as old as that, and ends with it like those of before the rotation; no other one does, also where the clock was set
# back since.
_INSERT = text("""
INSERT INTO sessions (id, key_id, secret_hash, is_link, created_at, expires_at)
SELECT :id, k.id, :secret_hash, :is_link,
       CASE WHEN CAST(:shown_hash AS bytea) = k.former_hash THEN k.rotated_at - interval '1 us'
            ELSE coalesce(CAST(:created_at AS timestamptz), greatest(now(), k.rotated_at)) END,
       least(now() + make_interval(secs => :seconds),
             CASE WHEN :shown_hash IN (k.secret_hash, k.former_hash) THEN NULL
                  WHEN :shown_hash IS NOT NULL THEN now() END)
FROM (SELECT * FROM keys WHERE id = :key_id FOR SHARE) k
""")
# A session that was opened with the former secret of its key ends with that.
_READ = """
SELECT s.id AS session_id, k.id, k.role, k.namespace, s.secret_hash, k.worker_id, k.withheld, k.revoked_at,
       extract(epoch FROM least(s.expires_at, k.expires_at,
           CASE WHEN s.created_at < k.rotated_at THEN k.former_expires_at END) - now())::float8 AS seconds_left,
       EXISTS (SELECT FROM keys other WHERE other.namespace <> 'default') AS is_divided
FROM sessions s JOIN keys k ON k.id = s.key_id WHERE s.id = ANY ($1::text[]) AND NOT s.is_link
"""
# Keys are locked before their sessions, as by a rotation.
_TAKE_LINK = text("""
WITH key AS MATERIALIZED (
    SELECT k.id FROM sessions s JOIN keys k ON k.id = s.key_id WHERE s.id = :id FOR SHARE OF k
)
DELETE FROM sessions s USING key WHERE s.id = :id AND s.secret_hash = :secret_hash AND is_link AND s.expires_at > now()
RETURNING s.key_id, s.created_at
""")
_END = text("DELETE FROM sessions WHERE id = :id AND NOT is_link RETURNING key_id")
# Opened with the former secret, which the next rotation makes the one before it. The lock is a statement of its own, so
# that the next one sees what was opened while this waited.
_LOCK_KEY = text("SELECT id FROM keys WHERE id = :key_id FOR UPDATE")
_END_FORMER = text("""
DELETE FROM sessions s USING keys k WHERE k.id = :key_id AND s.key_id = k.id AND s.created_at < k.rotated_at
""")
_TIDY = text("""
WITH key AS MATERIALIZED (SELECT id FROM keys WHERE id = :key_id FOR SHARE)
DELETE FROM sessions WHERE (SELECT count(*) FROM key) > 0 AND (expires_at <= now() OR id IN (
    SELECT id FROM sessions WHERE key_id = :key_id ORDER BY created_at DESC OFFSET :kept
))
""")


async def insert(
    connection: AsyncConnection,
    session_id: str,
    key_id: str,
    secret_hash: bytes,
    *,
    is_link: bool,
    seconds: float,
    shown_hash: bytes | None,
    created_at: datetime | None,
) -> None:
    """Store a session, or a link that opens one.

    It ends with the secret of the key that was shown, where one was; a session that a link opens is as old as the link.
    """
    values = {"id": session_id, "key_id": key_id, "secret_hash": secret_hash, "is_link": is_link, "seconds": seconds}
    await connection.execute(_INSERT, {**values, "shown_hash": shown_hash, "created_at": created_at})


async def read(connection: "asyncpg.Connection[asyncpg.Record]", session_ids: Sequence[str]) -> dict[str, StoredKey]:
    """The keys that these sessions act for, each with the secret and the end of its session."""
    rows = [dict(row) for row in await connection.fetch(_READ, session_ids)]
    absent = {"former_hash": None, "former_seconds": None, "capabilities": None, "ends_at": None, "offer": None}
    absent |= {"worker_state": None, "ended_reason": None}
    return {row.pop("session_id"): StoredKey(**row | absent | {"role": Role(row["role"])}) for row in rows}


async def take_link(connection: AsyncConnection, session_id: str, secret_hash: bytes) -> tuple[str, datetime] | None:
    """Use up a link; return the key that it stands for, and since when; None where it is no link, or not any more."""
    row = (await connection.execute(_TAKE_LINK, {"id": session_id, "secret_hash": secret_hash})).first()
    return None if row is None else (row.key_id, row.created_at)


async def end(connection: AsyncConnection, session_id: str) -> str | None:
    """End a session in all processes; return the key that it acted for, None where it has ended."""
    notify.note(connection, notify.KEYS)
    return (await connection.execute(_END, {"id": session_id})).scalar()


async def end_former(connection: AsyncConnection, key_id: str) -> None:
    """End the sessions and links of the former secret of a key, as it is about to be rotated."""
    await connection.execute(_LOCK_KEY, {"key_id": key_id})
    await connection.execute(_END_FORMER, {"key_id": key_id})


async def tidy(connection: AsyncConnection, key_id: str, *, kept: int) -> None:
    """Delete the sessions that have expired, and of a key all but the newest `kept`."""
    await connection.execute(_TIDY, {"key_id": key_id, "kept": kept})
