"""Cached answers of language models, for callers who are refused a permit."""

from collections.abc import Collection
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncConnection

# An hour of a busy system; above either bound the oldest answers are deleted.
MAX_ANSWERS = 10_000
MAX_BYTES = 256 << 20


@dataclass(frozen=True, slots=True, kw_only=True)
class CachedAnswer:
    """An answer under its key: the SHA-256 of model and canonical request."""

    key: bytes
    answer: Any
    stored_at: datetime


@dataclass(frozen=True, slots=True, kw_only=True)
class NewAnswer:
    """An answer to store, as JSON text."""

    key: bytes
    answer: str
    ttl_seconds: float


_READ = text("""
SELECT key, answer, stored_at FROM llm_cache
WHERE key = ANY (CAST(:keys AS bytea[])) AND expires_at > now()
""")

_WRITE = text("""
INSERT INTO llm_cache (key, model, answer, size_bytes, stored_at, expires_at)
VALUES (:key, :model, CAST(:answer AS jsonb), :size, now(), now() + make_interval(secs => :ttl))
ON CONFLICT (key) DO UPDATE SET model = excluded.model, answer = excluded.answer, size_bytes = excluded.size_bytes,
    stored_at = excluded.stored_at, expires_at = excluded.expires_at
""")

# Skips rows that a settlement is overwriting: it must not wait, and the new answer must not be deleted.
_DELETE_EXPIRED = text("""
DELETE FROM llm_cache WHERE key IN (SELECT key FROM llm_cache WHERE expires_at <= now() FOR UPDATE SKIP LOCKED)
""")

_DELETE_SURPLUS = text("""
WITH surplus AS MATERIALIZED (
    SELECT key FROM (
        SELECT key, row_number() OVER newest AS place, sum(size_bytes) OVER newest AS bytes FROM llm_cache
        WINDOW newest AS (ORDER BY stored_at DESC, key)
    ) ranked
    WHERE place > :answers OR bytes > :bytes
)
DELETE FROM llm_cache WHERE key IN (
    SELECT key FROM llm_cache WHERE key IN (SELECT key FROM surplus) FOR UPDATE SKIP LOCKED
)
""")


async def read(connection: AsyncConnection, keys: Collection[bytes]) -> dict[bytes, CachedAnswer]:
    """The answers under these keys that exist and have not expired."""
    rows = (await connection.execute(_READ, {"keys": list(keys)})).mappings()
    return {row["key"]: CachedAnswer(**row) for row in rows}


async def write(connection: AsyncConnection, model: str, new: NewAnswer) -> None:
    """Store an answer of this model; it replaces an older one under the same key."""
    values = {"key": new.key, "model": model, "answer": new.answer, "size": len(new.answer.encode())}
    await connection.execute(_WRITE, {**values, "ttl": new.ttl_seconds})


async def prune(connection: AsyncConnection, answers: int = MAX_ANSWERS, size: int = MAX_BYTES) -> int:
    """Delete expired answers, and the oldest above `answers` or `size` bytes; return the number deleted."""
    expired_count = (await connection.execute(_DELETE_EXPIRED)).rowcount
    surplus = await connection.execute(_DELETE_SURPLUS, {"answers": answers, "bytes": size})
    return expired_count + surplus.rowcount
