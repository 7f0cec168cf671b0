"""Context Memory: versioned entries of a namespace, written by compare-and-set, with their history."""

from dataclasses import asdict, dataclass
from datetime import datetime
from typing import Any, NamedTuple

from sqlalchemy import TextClause, text
from sqlalchemy.ext.asyncio import AsyncConnection

from app.db.pages import PAGE_BYTES
from app.db.retention import BATCH
from app.db.turns import turn


@dataclass(frozen=True, slots=True, kw_only=True)
class EntryKey:
    """The key of an entry within its namespace."""

    namespace: str
    key: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Write:
    """A version to write: `value` is JSON text, None deletes; `request_id` tells a repetition from an equal write."""

    value: str | None
    written_by: str
    request_id: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Version:
    """One version of an entry; `value` is None where it deletes the entry, or where values were not requested."""

    key: str
    version: int
    deleted: bool
    written_by: str
    written_at: datetime
    value: Any = None


class Place(NamedTuple):
    """A version by its place among those of all entries."""

    namespace: str
    key: str
    version: int


FIRST = Place("", "", 0)


@dataclass(frozen=True, slots=True, kw_only=True)
class NamespaceSize:
    """Entries of a namespace and the bytes of their values, without former versions."""

    entries: int
    bytes: int


_COLUMNS = "key, version, deleted, written_by, written_at"
_LAST_VERSION = """SELECT {columns} FROM context_entries e
    WHERE e.namespace = :namespace AND e.key = {key} ORDER BY e.version DESC LIMIT 1"""

_READ = text(_LAST_VERSION.format(columns=f"{_COLUMNS}, value", key=":key"))

_READ_VERSION = text(f"""
SELECT {_COLUMNS}, value FROM context_entries WHERE namespace = :namespace AND key = :key AND version = :version
""")

# Compare-and-set in one statement: it inserts only on top of the expected version. Where two writers both see that one
# as the last, the primary key lets one of them have the next, and the other inserts nothing.
_WRITE = text(f"""
INSERT INTO context_entries (namespace, key, version, value, deleted, written_by, request_id)
SELECT :namespace, :key, CAST(:expected AS bigint) + 1, CAST(:value AS jsonb), CAST(:value AS jsonb) IS NULL,
       :written_by, :request_id
WHERE coalesce(({_LAST_VERSION.format(columns="version", key=":key")}), 0) = :expected
ON CONFLICT DO NOTHING
RETURNING {_COLUMNS}
""")

# Null-safe comparisons: a deletion has no value, and most writes have no request id.
_FIND_REPETITION = text(f"""
SELECT {_COLUMNS} FROM context_entries
WHERE namespace = :namespace AND key = :key AND version = :version AND written_by = :written_by
  AND request_id IS NOT DISTINCT FROM :request_id AND value IS NOT DISTINCT FROM CAST(:value AS jsonb)
""")

_LAST_DELETION = text("""
SELECT coalesce(max(version), 0) FROM context_entries WHERE namespace = :namespace AND key = :key AND deleted
""")

# From key to key by one probe each, and from each to its last version by another: the cost grows with the page, and not
# with the number of versions.
_HEADS = f"""
WITH RECURSIVE keys AS (
    (SELECT key FROM context_entries WHERE namespace = :namespace AND key > :after ORDER BY key LIMIT 1)
    UNION ALL
    SELECT (SELECT e.key FROM context_entries e WHERE e.namespace = :namespace AND e.key > keys.key
            ORDER BY e.key LIMIT 1)
    FROM keys WHERE keys.key IS NOT NULL
), heads AS (
    SELECT head.* FROM keys CROSS JOIN LATERAL ({_LAST_VERSION.format(columns=_COLUMNS, key="keys.key")}) head
    WHERE keys.key IS NOT NULL LIMIT :limit
)
"""
# One by one, so that no value is unpacked beyond the one with which the page is full, which is left out. Nobody joins
# them: each step might then look for all entries of the page again.
_UNTIL_FULL = f"""
, placed AS MATERIALIZED (
    SELECT {_COLUMNS}, row_number() OVER (ORDER BY {{order}}) AS place FROM heads
), walk (place, bytes) AS (
    SELECT 0::bigint, 0::bigint
    UNION ALL
    SELECT placed.place, walk.bytes + coalesce((
               SELECT octet_length(e.value::text) FROM context_entries e
               WHERE e.namespace = :namespace AND e.key = placed.key AND e.version = placed.version
           ), 0)
    FROM walk JOIN placed ON placed.place = walk.place + 1 WHERE walk.bytes < :page_bytes
)
SELECT {", ".join(f"placed.{name.strip()}" for name in _COLUMNS.split(","))}, e.value, walk.bytes
FROM walk JOIN placed USING (place) LEFT JOIN context_entries e
  ON e.namespace = :namespace AND e.key = placed.key AND e.version = placed.version
  AND (walk.bytes <= :page_bytes OR place = 1)
ORDER BY place
"""
_PAGE_OF_KEYS = text(f"{_HEADS} SELECT {_COLUMNS} FROM heads ORDER BY key")
_PAGE_OF_VALUES = text(_HEADS + _UNTIL_FULL.format(order="key"))

_HISTORY = text(f"""
WITH RECURSIVE heads AS (
    SELECT {_COLUMNS} FROM context_entries
    WHERE namespace = :namespace AND key = :key AND version < :before ORDER BY version DESC LIMIT :limit
) {_UNTIL_FULL.format(order="version DESC")}
""")

# In one pass, backwards along the primary key. Without a join, which compares each entry with each other one where
# PostgreSQL knows of few in a namespace, as of one that is new: 4,000 entries took 5 s.
_SIZE = text("""
SELECT count(*) AS entries, coalesce(sum(octet_length(value::text)), 0)::bigint AS bytes
FROM (
    SELECT DISTINCT ON (key) deleted, value FROM context_entries WHERE namespace = :namespace
    ORDER BY key DESC, version DESC
) last
WHERE NOT deleted
""")

# Along the primary key, whose entries tell of a former version by themselves: the one so many places further is of the
# same entry. Only such rows are read, as a look at every row that is old took ten seconds for a million.
_PRUNE = text("""
WITH looked_at AS MATERIALIZED (
    SELECT namespace, key, version, row_number() OVER all_rows AS place,
           (lead(namespace, :keep) OVER all_rows, lead(key, :keep) OVER all_rows) = (namespace, key) AS is_former
    FROM (
        SELECT namespace, key, version FROM context_entries
        WHERE (namespace, key, version) > (:namespace, :key, :version)
        ORDER BY namespace, key, version LIMIT CAST(:limit AS int) + :keep
    ) next_rows
    WINDOW all_rows AS (ORDER BY namespace, key, version)
), gone AS (
    DELETE FROM context_entries WHERE ctid = ANY (ARRAY(
        SELECT (
            SELECT e.ctid FROM context_entries e
            WHERE e.namespace = l.namespace AND e.key = l.key AND e.version = l.version
              AND e.written_at < now() - make_interval(days => :days) FOR UPDATE SKIP LOCKED
        )
        FROM looked_at l WHERE place <= :limit AND is_former
    )) RETURNING version
)
SELECT (SELECT count(*) FROM gone) AS deleted, last.namespace, last.key, last.version
FROM (SELECT) one LEFT JOIN (SELECT * FROM looked_at WHERE place = :limit) last ON true
""")


async def read(connection: AsyncConnection, entry: EntryKey) -> Version | None:
    """Read the last version, which may be a deletion; None when there never was one."""
    return _first(await connection.execute(_READ, asdict(entry)))


async def read_version(connection: AsyncConnection, entry: EntryKey, version: int) -> Version | None:
    """Read a certain version; None when it never existed or has been pruned."""
    return _first(await connection.execute(_READ_VERSION, {**asdict(entry), "version": version}))


async def write(connection: AsyncConnection, entry: EntryKey, expected_version: int, change: Write) -> Version | None:
    """Add the version after `expected_version` (0: none exists yet); None when that is no longer the last one.

    Waits for a concurrent transaction that writes the same version, and returns None if that one commits.
    """
    parameters = {**asdict(entry), **asdict(change), "expected": expected_version}
    return _first(await connection.execute(_WRITE, parameters))


async def find_repetition(connection: AsyncConnection, entry: EntryKey, version: int, change: Write) -> Version | None:
    """The given version where this very write has made it; None otherwise."""
    parameters = {**asdict(entry), **asdict(change), "version": version}
    return _first(await connection.execute(_FIND_REPETITION, parameters))


async def last_deleted_version(connection: AsyncConnection, entry: EntryKey) -> int:
    """Number of the version that deleted the entry last; 0 when it was never deleted."""
    return int((await connection.execute(_LAST_DELETION, asdict(entry))).scalar_one())


async def page(
    connection: AsyncConnection, namespace: str, *, after_key: str, limit: int, with_values: bool
) -> tuple[list[Version], str | None]:
    """Entries of up to `limit` keys beyond `after_key`, and the key to continue after; None at the end.

    Deleted entries are left out, so a page may be short without being the last.
    """
    query = _PAGE_OF_VALUES if with_values else _PAGE_OF_KEYS
    parameters = {"namespace": namespace, "after": after_key, "limit": limit}
    parameters |= {"page_bytes": PAGE_BYTES} if with_values else {}
    versions, last = await _page_of(connection, query, parameters, limit)
    return [version for version in versions if not version.deleted], last.key if last else None


async def size(connection: AsyncConnection, namespace: str) -> NamespaceSize:
    """Number and bytes of the entries of a namespace as they are now."""
    return NamespaceSize(**(await connection.execute(_SIZE, {"namespace": namespace})).mappings().one())


async def history(
    connection: AsyncConnection, entry: EntryKey, *, before_version: int, limit: int
) -> tuple[list[Version], int | None]:
    """Versions below `before_version`, newest first, and the number to continue below; None at the end."""
    parameters = {**asdict(entry), "before": before_version, "limit": limit, "page_bytes": PAGE_BYTES}
    versions, last = await _page_of(connection, _HISTORY, parameters, limit)
    return versions, last.version if last else None


async def prune(
    connection: AsyncConnection, *, keep: int, days: int, after: Place = FIRST, limit: int = BATCH
) -> tuple[int, Place | None]:
    """Delete versions older than `days` that are not among the newest `keep` of their entry.

    It looks at `limit` of them behind a place; returns the number of those deleted, and the place to go on after, None
    at the end. The last version stays for ever, also where it is a deletion: version numbers must never start anew.
    """
    parameters = {**after._asdict(), "keep": keep, "days": days, "limit": limit}
    row = (await connection.execute(_PRUNE, parameters)).one()
    return row.deleted, None if row.key is None else Place(row.namespace, row.key, row.version)


def _first(rows: Any) -> Version | None:
    row = rows.mappings().first()
    return Version(**row) if row else None


async def _page_of(
    connection: AsyncConnection, query: TextClause, parameters: dict[str, Any], limit: int
) -> tuple[list[Version], Version | None]:
    """Versions of the first row and of as many more as fit into a page, and the last of them where more may follow."""
    result = (await connection.execute(query, parameters)).mappings().all()
    await turn(connection)
    rows = [dict(row) for row in result]
    sizes = [row.pop("bytes", 0) for row in rows]
    versions = [Version(**row) for row, size in zip(rows, sizes, strict=True) if size <= PAGE_BYTES or row is rows[0]]
    is_full = len(versions) == limit or (bool(sizes) and sizes[-1] >= PAGE_BYTES)
    return versions, versions[-1] if is_full else None
