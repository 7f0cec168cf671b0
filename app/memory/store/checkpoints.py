"""Checkpoints: one consistent reading of the work in flight, and the stored checkpoints."""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from datetime import datetime
from typing import Any

from sqlalchemy import TextClause, text
from sqlalchemy.ext.asyncio import AsyncConnection

from app.db import pages
from app.db.database import hold_moment, now
from app.db.pages import Page
from app.goals.store import compute, iterations
from app.kernel.events import TaskEvent
from app.llm.store import models
from app.memory.rules.checkpoints import Activity, CheckpointPolicy
from app.memory.store.packed_lines import PackedLines
from app.queue.store import counters, event_rows, lease_ledger
from app.queue.store.events import Cursor


@dataclass(slots=True, kw_only=True)
class Snapshot:
    """The work in flight at one moment; rows as JSON text, which has no line breaks as the database writes it."""

    taken_at: datetime
    revision: str
    cursor: Cursor
    # Leased ones first, and their ids in the same order.
    tasks: PackedLines = field(default_factory=PackedLines)
    task_ids: list[str] = field(default_factory=list)
    leased_count: int = 0
    # (task, the task that it waits for)
    edges: list[tuple[str, str]] = field(default_factory=list)
    parts: dict[str, PackedLines] = field(default_factory=dict)
    is_cut: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class CheckpointFacts:
    """Facts about a checkpoint; size and SHA-256 are those before compression."""

    taken_at: datetime
    reason: str
    taken_by: str | None
    revision: str
    cursor: Cursor
    counts: Mapping[str, int]
    is_cut: bool
    size_bytes: int
    sha256: bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class NewCheckpoint(CheckpointFacts):
    """A checkpoint to store, its content compressed by zlib."""

    content: bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class Checkpoint(CheckpointFacts):
    """A stored checkpoint without its content."""

    id: int
    stored_bytes: int


_REVISION = text("SELECT version_num FROM alembic_version")

# Each worker's last lease leads to its task, so that the tasks need not be searched for leased ones.
_LEASED = text(f"""
SELECT CAST(t.id AS text) AS id, CAST(to_jsonb(t) AS text) AS line
FROM workers w CROSS JOIN LATERAL {lease_ledger.last_lease("w.id")} last
CROSS JOIN LATERAL {lease_ledger.held_task("w.id")} t
ORDER BY t.seq LIMIT :limit
""")
_UNLEASED = text("""
SELECT CAST(t.id AS text) AS id, CAST(to_jsonb(t) AS text) AS line FROM tasks t
WHERE t.worker_id IS NULL ORDER BY t.seq LIMIT :limit
""")
_EDGES = text("""
SELECT CAST(task_id AS text) AS task_id, CAST(depends_on AS text) AS depends_on FROM task_dependencies
WHERE task_id = ANY (CAST(:ids AS uuid[]))
""")
_LINE = "SELECT CAST(to_jsonb(t) AS text) AS line"
_PARTS = {
    # Only the version in force.
    name: text(f"{_LINE} FROM {name} t ORDER BY version DESC LIMIT least(1, :limit)")
    for name in ("config_versions", "weights")
} | {
    name: text(f"{_LINE} FROM {rows} t ORDER BY {order} LIMIT :limit")
    for name, rows, order in (
        ("lanes", "lanes", "agent_type, priority"),
        ("resource_lanes", "resource_lanes", "resource_class, agent_type, priority"),
        ("pauses", "pauses", "agent_type"),
        ("agent_results", "agent_results", "agent_type"),
        ("llm_models", f"({models.SETTINGS})", "model"),
        ("llm_budgets", "llm_budgets", "scope, name"),
    )
}
# A goal that was given a weight, or that tasks name, is as good as one that runs.
_OF_GOALS = {
    name: text(f"""
{_LINE} FROM {rows} t LEFT JOIN goals g ON g.id = t.{goal}
WHERE (coalesce(g.state, 'running') IN ('running', 'paused')) = :is_live
ORDER BY g.ended_at DESC, t.{goal}{order} LIMIT :limit
""")
    for name, rows, goal, order in (
        ("goals", "goals", "id", ""),
        ("holds", "holds", "goal_id", ""),
        ("llm_spending", "llm_spending", "goal_id", ""),
        # Including attempts not folded yet: their events stay behind, so nobody could fold them after a restore.
        ("goal_compute", f"({compute.ALL_SPENT})", "goal_id", ", t.agent_type"),
        ("goal_iterations", f"({iterations.OF_LIVE_GOALS})", "goal_id", ", t.number"),
    )
}
# From key to key by one probe each: a DISTINCT would read every version of every entry.
_ENTRIES = text("""
WITH RECURSIVE names AS (
    (SELECT namespace, key FROM context_entries ORDER BY namespace, key LIMIT 1)
    UNION ALL
    SELECT following.* FROM names CROSS JOIN LATERAL (
        SELECT e.namespace, e.key FROM context_entries e WHERE (e.namespace, e.key) > (names.namespace, names.key)
        ORDER BY e.namespace, e.key LIMIT 1
    ) following
)
SELECT CAST(to_jsonb(head) AS text) AS line FROM names CROSS JOIN LATERAL (
    SELECT * FROM context_entries e WHERE e.namespace = names.namespace AND e.key = names.key
    ORDER BY e.version DESC LIMIT 1
) head LIMIT :limit
""")

_METADATA = """id, taken_at, reason, taken_by, revision, cursor_transaction, cursor_seq, counts, is_cut, size_bytes,
    octet_length(content) AS stored_bytes, sha256"""
_INSERT = text(f"""
INSERT INTO checkpoints (taken_at, reason, taken_by, revision, cursor_transaction, cursor_seq, counts, is_cut,
                         size_bytes, sha256, content)
VALUES (:taken_at, :reason, :taken_by, :revision, :transaction, :seq, CAST(:counts AS jsonb), :is_cut, :size_bytes,
        :sha256, :content)
RETURNING {_METADATA}
""")
_PAGE = f"SELECT {_METADATA} FROM checkpoints WHERE id < :before ORDER BY id DESC"
_READ = text(f"SELECT {_METADATA} FROM checkpoints WHERE id = :id")
_CONTENT = text("SELECT content FROM checkpoints WHERE id = :id")
# One of a time to come is one of before the clock was set back, and as old as it is far.
_LAST_CHECKPOINT = text("""
SELECT abs(extract(epoch FROM now() - taken_at)) AS seconds, cursor_transaction, cursor_seq
FROM checkpoints ORDER BY id DESC LIMIT 1
""")
# From the cursor of the checkpoint rather than its time: an event may become visible long after its own time.
_MAX_NUMBER = 2**63 - 1
_COUNT_CHANGES = text(f"""
WITH {event_rows.window(":max_changes")}
SELECT count(*) AS changes, count(*) FILTER (WHERE kind = '{TaskEvent.COMPLETED}') AS completions FROM event
""")
_PRUNE = text("""
DELETE FROM checkpoints WHERE id NOT IN (SELECT id FROM checkpoints ORDER BY id DESC LIMIT :keep) AND id NOT IN (
    SELECT max(id) FROM checkpoints WHERE taken_at > now() - make_interval(days => :days)
    GROUP BY date_trunc('day', taken_at AT TIME ZONE 'UTC')
)
""")


async def read_snapshot(connection: AsyncConnection, cursor: Cursor, policy: CheckpointPolicy) -> Snapshot:
    """Read the work in flight as of one moment. The caller's transaction has just begun, and only reads.

    The rows have all events up to the cursor, which was taken before.
    """
    await hold_moment(connection)
    revision = (await connection.execute(_REVISION)).scalar_one()
    snapshot = Snapshot(taken_at=await now(connection), revision=revision, cursor=cursor)
    bytes_left = await _add_tasks(connection, snapshot, policy)
    await _add_parts(connection, snapshot, policy)
    entries = snapshot.parts["context"] = PackedLines()
    await _add_rows(connection, snapshot, _ENTRIES, entries, policy.max_entries, bytes_left)
    # Of the tasks that fit only. An edge to a task outside shows which of them could never run.
    rows = await connection.execute(_EDGES, {"ids": snapshot.task_ids})
    snapshot.edges = [(row.task_id, row.depends_on) for row in rows]
    return snapshot


async def _add_tasks(connection: AsyncConnection, snapshot: Snapshot, policy: CheckpointPolicy) -> int:
    """Add as many tasks to the snapshot as fit; return the number of bytes left."""
    bytes_left = await _add_rows(connection, snapshot, _LEASED, snapshot.tasks, policy.max_tasks, policy.max_bytes)
    snapshot.leased_count = len(snapshot.tasks)
    if not snapshot.is_cut:
        bytes_left = await _add_rows(connection, snapshot, _UNLEASED, snapshot.tasks, policy.max_tasks, bytes_left)
    return bytes_left


async def _add_parts(connection: AsyncConnection, snapshot: Snapshot, policy: CheckpointPolicy) -> None:
    """Add what is neither tasks nor entries, with bytes of its own: what has ended comes last, and may be left out."""
    bytes_left = policy.max_bytes
    for name, query in _PARTS.items():
        lines = snapshot.parts[name] = PackedLines()
        bytes_left = await _add_rows(connection, snapshot, query, lines, policy.max_rows, bytes_left)
    for is_live in (True, False):
        for name, query in _OF_GOALS.items():
            lines = snapshot.parts.setdefault(name, PackedLines())
            # Goals are judged by all of their iterations, and those that have ended by none.
            if is_live or name != "goal_iterations":
                bytes_left = await _add_rows(
                    connection,
                    snapshot,
                    query.bindparams(is_live=is_live),
                    lines,
                    policy.max_rows,
                    bytes_left,
                    is_live=is_live,
                )


async def _add_rows(
    connection: AsyncConnection,
    snapshot: Snapshot,
    query: TextClause,
    lines: PackedLines,
    limit: int,
    max_bytes: int,
    *,
    is_live: bool = True,
) -> int:
    """Add the first rows to the lines, which may become `limit`, and return the bytes left.

    The snapshot is cut where there are more rows that are live.
    """
    bytes_left, room = max_bytes, limit - len(lines)
    # One more than fits, to learn whether there are more. Streamed, so that reading ends where the bytes do.
    rows = await connection.stream(query, {"limit": room + 1}, execution_options={"yield_per": 100})
    async for row in rows:
        size = len(row.line.encode())
        if size > bytes_left or len(lines) == limit:
            snapshot.is_cut |= is_live
            break
        bytes_left -= size
        lines.append(row.line)
        if lines is snapshot.tasks:
            snapshot.task_ids.append(row.id)
    await rows.close()
    return bytes_left


async def count_queue(connection: AsyncConnection) -> list[dict[str, Any]]:
    """Number of all live tasks by lane and phase, also of those that a cut checkpoint leaves out."""
    return [
        {
            "agent_type": count.lane.agent_type.value,
            "priority": count.lane.priority.value,
            "phase": count.phase,
            "tasks": count.tasks,
        }
        for count in await counters.read(connection)
    ]


async def read_activity(connection: AsyncConnection, max_changes: int) -> Activity | None:
    """Activity since the last checkpoint, counted up to `max_changes` changes; None where there is no checkpoint."""
    last = (await connection.execute(_LAST_CHECKPOINT)).mappings().first()
    if last is None:
        return None
    cursor = {"transaction": last["cursor_transaction"], "seq": last["cursor_seq"]}
    values = {**cursor, "last_transaction": _MAX_NUMBER, "last_seq": _MAX_NUMBER, "max_changes": max_changes}
    counts = (await connection.execute(_COUNT_CHANGES, values)).mappings().one()
    return Activity(seconds=float(last["seconds"]), **counts)


async def insert(connection: AsyncConnection, new: NewCheckpoint) -> Checkpoint:
    """Store a checkpoint."""
    values = {**asdict(new), "counts": json.dumps(new.counts)}
    cursor = values.pop("cursor")
    return _checkpoint((await connection.execute(_INSERT, {**values, **cursor})).mappings().one())


async def page(connection: AsyncConnection, *, before_id: int, limit: int) -> Page[Checkpoint]:
    """Checkpoints below an id, newest first."""
    return await pages.read(connection, _PAGE, {"before": before_id}, limit, _checkpoint)


async def read(connection: AsyncConnection, checkpoint_id: int) -> Checkpoint | None:
    """Read a checkpoint without its content; None where there is none."""
    row = (await connection.execute(_READ, {"id": checkpoint_id})).mappings().first()
    return _checkpoint(row) if row else None


async def read_content(connection: AsyncConnection, checkpoint_id: int) -> bytes | None:
    """Read the compressed content of a checkpoint; None where there is none."""
    content: bytes | None = (await connection.execute(_CONTENT, {"id": checkpoint_id})).scalar()
    return content


async def prune(connection: AsyncConnection, *, keep: int, days: int) -> int:
    """Delete all but the newest `keep` and the last of each of the last `days`; return the number deleted."""
    return (await connection.execute(_PRUNE, {"keep": keep, "days": days})).rowcount


def _checkpoint(row: Any) -> Checkpoint:
    plain = dict(row)
    cursor = Cursor(transaction=plain.pop("cursor_transaction"), seq=plain.pop("cursor_seq"))
    return Checkpoint(cursor=cursor, **plain)
