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
# Of one worker or key, so that nobody drives out what others have stored.
MAX_OWN_ANSWERS = 1_000
MAX_OWN_BYTES = 32 << 20


@dataclass(frozen=True, slots=True, kw_only=True)
class CachedAnswer:
    """An answer, and when it was stored."""

    answer: Any
    stored_at: datetime


@dataclass(frozen=True, slots=True, kw_only=True)
class NewAnswer:
    """An answer to store, as JSON text, and the digest of its question."""

    question: bytes
    answer: str
    ttl_seconds: float


_READ = text("""
SELECT key, answer, stored_at FROM llm_cache
WHERE key = ANY (CAST(:keys AS bytea[])) AND expires_at > now()
""")

_WRITE = text("""
INSERT INTO llm_cache AS old (key, written_by, model, answer, size_bytes, stored_at, expires_at)
VALUES (:key, :written_by, :model, CAST(:answer AS jsonb), :size, now(), now() + make_interval(secs => :ttl))
ON CONFLICT (key) DO UPDATE SET written_by = excluded.written_by, model = excluded.model, answer = excluded.answer,
    size_bytes = excluded.size_bytes, stored_at = excluded.stored_at, expires_at = excluded.expires_at
    WHERE old.expires_at <= now()
""")

# Skips rows that a settlement is overwriting: it must not wait, and the new answer must not be deleted.
_DELETE_EXPIRED = text("""
DELETE FROM llm_cache WHERE key IN (SELECT key FROM llm_cache WHERE expires_at <= now() FOR UPDATE SKIP LOCKED)
""")

_DELETE_SURPLUS = text("""
WITH surplus AS MATERIALIZED (
    SELECT key FROM (
        SELECT key, row_number() OVER newest AS place, sum(size_bytes) OVER newest AS bytes,
            row_number() OVER own AS own_place, sum(size_bytes) OVER own AS own_bytes
        FROM llm_cache
        WINDOW newest AS (ORDER BY stored_at DESC, key), own AS (PARTITION BY written_by ORDER BY stored_at DESC, key)
    ) ranked
    WHERE place > :answers OR bytes > :bytes OR own_place > :own_answers OR own_bytes > :own_bytes
)
DELETE FROM llm_cache WHERE key IN (
    SELECT key FROM llm_cache WHERE key IN (SELECT key FROM surplus) FOR UPDATE SKIP LOCKED
)
""")


async def read(connection: AsyncConnection, keys: Collection[bytes]) -> dict[bytes, CachedAnswer]:
    """The answers under these keys that exist and have not expired."""
    rows = (await connection.execute(_READ, {"keys": list(keys)})).mappings()
    return {row["key"]: CachedAnswer(answer=row["answer"], stored_at=row["stored_at"]) for row in rows}


async def write(connection: AsyncConnection, key: bytes, new: NewAnswer, *, model: str, written_by: str) -> None:
    """Store an answer of this model, unless there is one under the key that has not expired."""
    values = {"key": key, "model": model, "answer": new.answer, "size": len(new.answer.encode())}
    values |= {"written_by": written_by}
    await connection.execute(_WRITE, {**values, "ttl": new.ttl_seconds})


async def prune(
    connection: AsyncConnection,
    answers: int = MAX_ANSWERS,
    size: int = MAX_BYTES,
    own_answers: int = MAX_OWN_ANSWERS,
    own_size: int = MAX_OWN_BYTES,
) -> int:
    """Delete expired answers, and the oldest above these numbers or bytes of all or of one; return their number."""
    expired_count = (await connection.execute(_DELETE_EXPIRED)).rowcount
    values = {"answers": answers, "bytes": size, "own_answers": own_answers, "own_bytes": own_size}
    surplus = await connection.execute(_DELETE_SURPLUS, values)
    return expired_count + surplus.rowcount
