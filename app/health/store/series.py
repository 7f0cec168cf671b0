"""Statements on pushed series, with one point a minute for each."""

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any
from uuid import UUID

from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncConnection

from app.db import pages
from app.db.pages import Page
from app.db.retention import BATCH, deletion, pruning
from app.health.rules.series import BegunSeries, CurrentValue, MetricKind, Point, Series
from app.kernel.agents import AgentType


@dataclass(frozen=True, slots=True, kw_only=True)
class MetricName:
    """Name of a metric, with the number of its series."""

    name: str
    kind: MetricKind
    series: int
    last_at: datetime


@dataclass(frozen=True, slots=True, kw_only=True)
class PointFilter:
    """Points to select: of these labels (None: any), from `since` on and before `until`."""

    name: str
    since: datetime
    until: datetime
    agent: str | None = None
    worker: str | None = None
    goal: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class StoredPoint(Point):
    """A point with the id of its series."""

    series_id: int


# A batch that is sent again while its first sending is being stored waits here for the end of that transaction.
_TAKE = text("""
INSERT INTO metric_batches (sent_by, batch_id, digest) VALUES (:sent_by, :batch_id, :digest)
ON CONFLICT DO NOTHING RETURNING digest
""")

_TAKEN = text("SELECT digest FROM metric_batches WHERE sent_by = :sent_by AND batch_id = :batch_id")

# Senders of new series take turns, so that each counts those of the one before and the bound holds.
_LOCK_SERIES = text("SELECT pg_advisory_xact_lock(7241, 9)")

_LABELS = """unnest(CAST(:names AS text[]), CAST(:agents AS text[]), CAST(:workers AS text[]), CAST(:goals AS text[]))
     AS requested (name, agent, worker, goal)"""

_FIND = text(f"""
SELECT s.id, s.name, s.agent, s.worker, s.goal FROM {_LABELS} JOIN metric_series s USING (name, agent, worker, goal)
""")

# A series that is about to be deleted is locked by this and stays; one that was deleted is not found afterwards. Those
# written to within the hour need no lock: retention waits an hour longer than its days.
_TOUCH = text(f"""
UPDATE metric_series SET last_at = now() WHERE id IN (
    SELECT s.id FROM {_LABELS} JOIN metric_series s USING (name, agent, worker, goal)
    WHERE s.last_at < now() - interval '1 hour' ORDER BY s.id FOR NO KEY UPDATE OF s
)
""")

_CREATE = text(f"""
INSERT INTO metric_series (name, kind, agent, worker, goal, created_by, principal)
SELECT requested.name, kinds.kind, agent, worker, goal, :created_by, :principal FROM {_LABELS}
JOIN unnest(CAST(:kind_names AS text[]), CAST(:kinds AS text[])) AS kinds (name, kind) ON kinds.name = requested.name
ON CONFLICT DO NOTHING
""")

_BEGUN = text("""
SELECT count(*) FILTER (WHERE created_by = :created_by) AS own,
       count(*) FILTER (WHERE principal = :principal) AS of_key,
       (SELECT count(*) FROM (SELECT FROM metric_series GROUP BY name HAVING bool_and(principal = :principal)) alone)
           AS names_of_key
FROM metric_series
""")

_NAMES = text("""
SELECT name, min(kind) AS kind, count(*) AS series, max(last_at) AS last_at FROM metric_series GROUP BY name ORDER BY 1
""")

# In the order of the key, so that two senders never wait for each other in a circle.
_ADD = text("""
INSERT INTO metric_minutes AS known (series_id, minute, samples, total, low, high, last, last_at)
SELECT * FROM unnest(CAST(:ids AS bigint[]), CAST(:minute AS timestamptz[]), CAST(:samples AS bigint[]),
    CAST(:total AS float8[]), CAST(:low AS float8[]), CAST(:high AS float8[]), CAST(:last AS float8[]),
    CAST(:last_at AS timestamptz[])) AS new (series_id, minute, samples, total, low, high, last, last_at)
ORDER BY series_id, minute
ON CONFLICT (series_id, minute) DO UPDATE
SET samples = known.samples + excluded.samples, total = known.total + excluded.total,
    low = least(known.low, excluded.low), high = greatest(known.high, excluded.high),
    last = CASE WHEN excluded.last_at >= known.last_at THEN excluded.last ELSE known.last END,
    last_at = greatest(known.last_at, excluded.last_at)
""")

# From series to series, and in each from its first minute on: the cost of a page is that of its points.
_PAGE = """
SELECT s.id AS series_id, s.name, s.agent, s.worker, s.goal,
       m.minute, m.samples, m.total, m.low, m.high, m.last, m.last_at
FROM metric_series s CROSS JOIN LATERAL (
    SELECT * FROM metric_minutes m
    WHERE m.series_id = s.id AND m.minute >= :since AND m.minute < :until
      AND m.minute > CASE WHEN s.id = :after_series THEN CAST(:after_minute AS timestamptz) ELSE '-infinity' END
    ORDER BY m.minute LIMIT :page_limit
) m
WHERE s.name = :name AND s.id >= :after_series
  AND (CAST(:agent AS text) IS NULL OR s.agent = :agent) AND (CAST(:worker AS text) IS NULL OR s.worker = :worker)
  AND (CAST(:goal AS text) IS NULL OR s.goal = :goal)
ORDER BY s.id, m.minute
"""

# Rates are those of the last whole minute; a gauge is what it was last, at most two minutes ago.
_CURRENT = text("""
WITH span AS MATERIALIZED (SELECT date_trunc('minute', now()) AS closes)
SELECT s.name, s.kind, s.agent,
       CASE WHEN s.kind = 'gauge' THEN avg(m.last)
            ELSE sum(m.total) FILTER (WHERE m.minute < span.closes) / 60 END AS value
FROM span JOIN metric_minutes m ON m.minute >= span.closes - interval '1 minute'
JOIN metric_series s ON s.id = m.series_id
GROUP BY s.name, s.kind, s.agent ORDER BY 1, 3
""")

prune_points = pruning("metric_minutes", "minute")
# `_TOUCH` may leave `last_at` up to an hour behind, so a series lives an hour longer than its last points.
_PRUNE_SERIES = deletion("metric_series", "last_at < now() - make_interval(days => :days, hours => 1)", "id")
# No sender repeats a batch that old.
prune_batches = pruning("metric_batches", "received_at")


async def register_batch(connection: AsyncConnection, sent_by: str, batch_id: UUID, digest: bytes) -> bytes | None:
    """Register a batch; return the digest of the batch registered before under this id, None when there was none.

    Waits for another transaction that is registering it, and then knows whether it has.
    """
    values = {"sent_by": sent_by, "batch_id": batch_id, "digest": digest}
    if (await connection.execute(_TAKE, values)).first() is not None:
        return None
    earlier_digest: bytes = (await connection.execute(_TAKEN, values)).scalar_one()
    return earlier_digest


async def find_ids(connection: AsyncConnection, series: Collection[Series]) -> dict[Series, int]:
    """Ids of the series that exist; none of these is deleted while this transaction lasts."""
    labels = _columns(series)
    await connection.execute(_TOUCH, labels)
    return {_series(row): row["id"] for row in (await connection.execute(_FIND, labels)).mappings()}


async def lock_series(connection: AsyncConnection) -> None:
    """Wait until no other transaction adds series, and let none do so until this one ends."""
    await connection.execute(_LOCK_SERIES)


async def names(connection: AsyncConnection) -> list[MetricName]:
    """All names of metrics."""
    rows = (await connection.execute(_NAMES)).mappings()
    return [MetricName(**{**row, "kind": MetricKind(row["kind"])}) for row in rows]


async def count_begun(connection: AsyncConnection, created_by: str, principal: str) -> BegunSeries:
    """Series that this sender, and the key that vouches for it, have begun."""
    values = {"created_by": created_by, "principal": principal}
    return BegunSeries(**(await connection.execute(_BEGUN, values)).mappings().one())


async def create_series(
    connection: AsyncConnection,
    new: Collection[Series],
    kinds: Mapping[str, MetricKind],
    created_by: str,
    principal: str,
) -> None:
    """Add series; existing ones stay as they are."""
    kind_columns = {"kind_names": list(kinds), "kinds": [kind.value for kind in kinds.values()]}
    values = {"created_by": created_by, "principal": principal}
    await connection.execute(_CREATE, {**_columns(new), **kind_columns, **values})


async def add_points(connection: AsyncConnection, points: Sequence[Point], ids: Mapping[Series, int]) -> None:
    """Add points to the minutes that are stored."""
    names = Point.__dataclass_fields__.keys() - {"series"}
    columns = {name: [getattr(point, name) for point in points] for name in names}
    await connection.execute(_ADD, {**columns, "ids": [ids[point.series] for point in points]})


async def page(
    connection: AsyncConnection, selection: PointFilter, *, after_point: tuple[int, datetime] | None, limit: int
) -> Page[StoredPoint]:
    """Points that follow `after_point` (id of a series, and a minute), series by series, oldest first."""
    series_id, minute = after_point or (0, selection.since)
    values = {name: getattr(selection, name) for name in PointFilter.__dataclass_fields__}
    values |= {"after_series": series_id, "after_minute": minute}
    return await pages.read(connection, _PAGE, values, limit, _stored_point)


async def current_values(connection: AsyncConnection) -> list[CurrentValue]:
    """Values pushed within the last minute or two, by name and agent type."""
    rows = (await connection.execute(_CURRENT)).mappings()
    return [
        CurrentValue(
            name=row["name"],
            kind=MetricKind(row["kind"]),
            agent=AgentType(row["agent"]) if row["agent"] else None,
            value=row["value"],
        )
        for row in rows
        if row["value"] is not None
    ]


async def prune_names(connection: AsyncConnection, days: int, limit: int = BATCH) -> int:
    """Delete series without points, at most `limit`; return the number deleted.

    A series that another transaction is just writing to stays.
    """
    return (await connection.execute(_PRUNE_SERIES, {"days": days, "limit": limit})).rowcount


def _columns(series: Iterable[Series]) -> dict[str, list[str]]:
    ordered_series = sorted(series)
    return {f"{name}s": [getattr(entry, name) for entry in ordered_series] for name in Series.__dataclass_fields__}


def _series(row: Any) -> Series:
    return Series(**{name: row[name] for name in Series.__dataclass_fields__})


def _stored_point(row: Any) -> StoredPoint:
    figures = {name: row[name] for name in StoredPoint.__dataclass_fields__ if name != "series"}
    return StoredPoint(series=_series(row), **figures)
