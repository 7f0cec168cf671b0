"""Answers of language models that may stand in where a call is not permitted."""

from collections.abc import Collection
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncConnection

# Room for an hour of a busy system; the oldest answers go first.
MOST_ANSWERS = 10_000
MOST_BYTES = 256 << 20


@dataclass(frozen=True, slots=True, kw_only=True)
class CachedAnswer:
    """An answer, by the SHA-256 of model and canonical request."""

    key: bytes
    model: str
    answer: Any
    stored_at: datetime
    expires_at: datetime


@dataclass(frozen=True, slots=True, kw_only=True)
class NewAnswer:
    """An answer to keep, as JSON text."""

    key: bytes
    answer: str
    ttl_seconds: float


_READ = text("""
SELECT key, model, answer, stored_at, expires_at FROM llm_cache
WHERE key = ANY (CAST(:keys AS bytea[])) AND expires_at > now()
""")

_WRITE = text("""
INSERT INTO llm_cache (key, model, answer, size_bytes, stored_at, expires_at)
VALUES (:key, :model, CAST(:answer AS jsonb), :size, now(), now() + make_interval(secs => :ttl))
ON CONFLICT (key) DO UPDATE SET model = excluded.model, answer = excluded.answer, size_bytes = excluded.size_bytes,
    stored_at = excluded.stored_at, expires_at = excluded.expires_at
""")

# What is being written anew just now is left for the next time.
_EXPIRED = text("""
DELETE FROM llm_cache WHERE key IN (SELECT key FROM llm_cache WHERE expires_at <= now() FOR UPDATE SKIP LOCKED)
""")

_SURPLUS = text("""
WITH surplus AS MATERIALIZED (
    SELECT key FROM (
        SELECT key, row_number() OVER newest AS place, sum(size_bytes) OVER newest AS bytes FROM llm_cache
        WINDOW newest AS (ORDER BY stored_at DESC, key)
    ) kept
    WHERE place > :answers OR bytes > :bytes
)
DELETE FROM llm_cache WHERE key IN (
    SELECT key FROM llm_cache WHERE key IN (SELECT key FROM surplus) FOR UPDATE SKIP LOCKED
)
""")


async def read(connection: AsyncConnection, keys: Collection[bytes]) -> dict[bytes, CachedAnswer]:
    """Those of these answers that are known and not too old."""
    rows = (await connection.execute(_READ, {"keys": list(keys)})).mappings()
    return {row["key"]: CachedAnswer(**row) for row in rows}


async def write(connection: AsyncConnection, model: str, new: NewAnswer) -> None:
    """Keep an answer of this model, in the place of an older one to the same request."""
    values = {"key": new.key, "model": model, "answer": new.answer, "size": len(new.answer.encode())}
    await connection.execute(_WRITE, {**values, "ttl": new.ttl_seconds})


async def prune(connection: AsyncConnection, answers: int = MOST_ANSWERS, size: int = MOST_BYTES) -> int:
    """Forget answers that are too old, and the oldest of too many; returns how many."""
    expired = (await connection.execute(_EXPIRED)).rowcount
    surplus = await connection.execute(_SURPLUS, {"answers": answers, "bytes": size})
    return expired + surplus.rowcount
