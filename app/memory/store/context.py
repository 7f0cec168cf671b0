"""Context Memory: versioned entries of a namespace, written by compare-and-set, with their history."""

from dataclasses import dataclass
from datetime import datetime
from typing import Any

from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncConnection

from app.db.retention import BATCH, deletion

# Stored sizes count, which are known without reading the values; one value goes out however large it is.
PAGE_BYTES = 4 << 20


@dataclass(frozen=True, slots=True, kw_only=True)
class Name:
    """Where an entry is."""

    namespace: str
    key: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Write:
    """What is to become the next version: `value` is JSON text, None deletes."""

    value: str | None
    written_by: str
    request_id: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Version:
    """One version of an entry. `value` is None where the entry was deleted, or where values were not asked for."""

    key: str
    version: int
    deleted: bool
    written_by: str
    written_at: datetime
    value: Any = None


_COLUMNS = "key, version, deleted, written_by, written_at"
_HEAD = """SELECT {columns} FROM context_entries e
    WHERE e.namespace = :namespace AND e.key = {key} ORDER BY e.version DESC LIMIT 1"""

_READ = text(_HEAD.format(columns=f"{_COLUMNS}, value", key=":key"))

_READ_VERSION = text(f"""
SELECT {_COLUMNS}, value FROM context_entries WHERE namespace = :namespace AND key = :key AND version = :version
""")

# Of two rivals that both see the version they build on, the primary key lets one have the next.
_WRITE = text(f"""
INSERT INTO context_entries (namespace, key, version, value, deleted, written_by, request_id)
SELECT :namespace, :key, CAST(:expected AS bigint) + 1, CAST(:value AS jsonb), CAST(:value AS jsonb) IS NULL,
       :written_by, :request_id
WHERE coalesce(({_HEAD.format(columns="version", key=":key")}), 0) = :expected
ON CONFLICT DO NOTHING
RETURNING {_COLUMNS}
""")

_REPEATED = text(f"""
SELECT {_COLUMNS} FROM context_entries
WHERE namespace = :namespace AND key = :key AND version = :version AND written_by = :written_by
  AND request_id IS NOT DISTINCT FROM :request_id AND value IS NOT DISTINCT FROM CAST(:value AS jsonb)
""")

_LAST_DELETION = text("""
SELECT coalesce(max(version), 0) FROM context_entries WHERE namespace = :namespace AND key = :key AND deleted
""")

# From key to key by one probe each, and from each to its last version by another: the cost is that of the page, however
# many versions there are.
_PAGE = """
WITH RECURSIVE keys AS (
    (SELECT key FROM context_entries WHERE namespace = :namespace AND key > :after ORDER BY key LIMIT 1)
    UNION ALL
    SELECT (SELECT e.key FROM context_entries e WHERE e.namespace = :namespace AND e.key > keys.key
            ORDER BY e.key LIMIT 1)
    FROM keys WHERE keys.key IS NOT NULL
), heads AS (
    SELECT head.* FROM keys CROSS JOIN LATERAL ({head}) head WHERE keys.key IS NOT NULL LIMIT :limit
)
SELECT {columns} FROM heads ORDER BY key
"""
_SIZED = f"{_COLUMNS}, value, sum(coalesce(pg_column_size(value), 0)) OVER (ORDER BY {{order}}) AS bytes"
_KEYS = text(_PAGE.format(head=_HEAD.format(columns=_COLUMNS, key="keys.key"), columns=_COLUMNS))
_VALUES = text(
    _PAGE.format(head=_HEAD.format(columns=f"{_COLUMNS}, value", key="keys.key"), columns=_SIZED.format(order="key"))
)

_HISTORY = text(f"""
SELECT {_SIZED.format(order="version DESC")} FROM (
    SELECT {_COLUMNS}, value FROM context_entries
    WHERE namespace = :namespace AND key = :key AND version < :before ORDER BY version DESC LIMIT :limit
) page ORDER BY version DESC
""")

_PRUNE = deletion(
    "context_entries",
    """written_at < now() - make_interval(days => :days)
      AND version <= (SELECT e.version FROM context_entries e
                      WHERE e.namespace = context_entries.namespace AND e.key = context_entries.key
                      ORDER BY e.version DESC LIMIT 1) - :keep""",
    "written_at",
)


async def read(connection: AsyncConnection, name: Name) -> Version | None:
    """The last version, which may be a deletion; None when there never was one."""
    return _first(await connection.execute(_READ, _place(name)))


async def read_version(connection: AsyncConnection, name: Name, version: int) -> Version | None:
    """A certain version; None when it never was or has been pruned."""
    return _first(await connection.execute(_READ_VERSION, {**_place(name), "version": version}))


async def write(connection: AsyncConnection, name: Name, expected: int, change: Write) -> Version | None:
    """Add the version after `expected` (0: there is none yet); None when that is not the last one any more.

    Waits for a rival that is just doing the same, and then knows whether it has.
    """
    return _first(await connection.execute(_WRITE, {**_place(name), **_values(change), "expected": expected}))


async def repeated(connection: AsyncConnection, name: Name, version: int, change: Write) -> Version | None:
    """The version, if it is this very write that made it."""
    return _first(await connection.execute(_REPEATED, {**_place(name), **_values(change), "version": version}))


async def last_deletion(connection: AsyncConnection, name: Name) -> int:
    """The version of the last deletion, 0 when there was none."""
    return int((await connection.execute(_LAST_DELETION, _place(name))).scalar_one())


async def page(
    connection: AsyncConnection, namespace: str, *, after: str, limit: int, values: bool
) -> tuple[list[Version], str | None]:
    """The entries of up to `limit` keys that follow `after`, and the key to go on from, None at the end.

    Deleted ones are left out, so a page may hold less than `limit` and still not be the last.
    """
    given = {"namespace": namespace, "after": after, "limit": limit}
    rows = [dict(row) for row in (await connection.execute(_VALUES if values else _KEYS, given)).mappings()]
    versions = _affordable(rows)
    following = versions[-1].key if len(versions) == limit or len(versions) < len(rows) else None
    return [version for version in versions if not version.deleted], following


async def history(
    connection: AsyncConnection, name: Name, *, before: int, limit: int
) -> tuple[list[Version], int | None]:
    """Versions below `before` with their values, newest first, and the one to go on from, None at the end."""
    rows = [
        dict(row)
        for row in (await connection.execute(_HISTORY, {**_place(name), "before": before, "limit": limit})).mappings()
    ]
    versions = _affordable(rows)
    following = versions[-1].version if len(versions) == limit or len(versions) < len(rows) else None
    return versions, following


async def prune(connection: AsyncConnection, *, keep: int, days: int, limit: int = BATCH) -> int:
    """Forget versions that are older than `days` and not among the newest `keep` of their entry; returns how many.

    The last version stays for ever, deletions too: version numbers never start anew.
    """
    return (await connection.execute(_PRUNE, {"keep": keep, "days": days, "limit": limit})).rowcount


def _place(name: Name) -> dict[str, Any]:
    return {"namespace": name.namespace, "key": name.key}


def _values(change: Write) -> dict[str, Any]:
    return {"value": change.value, "written_by": change.written_by, "request_id": change.request_id}


def _first(rows: Any) -> Version | None:
    row = rows.mappings().first()
    return Version(**row) if row else None


def _affordable(rows: list[dict[str, Any]]) -> list[Version]:
    """The first of them, and as many more as fit into a page."""
    return [Version(**row) for place, row in enumerate(rows) if row.pop("bytes", 0) <= PAGE_BYTES or place == 0]
