"""Checkpoints: one consistent look at what is in flight, and the checkpoints that are kept."""

import json
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncConnection

from app.db.columns import metadata
from app.db.database import now
from app.db.folds import HORIZON
from app.goals.store import compute
from app.memory.rules.checkpoints import CheckpointPolicy, Since
from app.queue.store import counters, events, lease_ledger
from app.queue.store.events import Cursor

_ROWS = 1000

_TELL = text("""
INSERT INTO events (kind, task_id, agent_type, goal_id, token, priority, detail)
SELECT CASE WHEN id = ANY (CAST(:released AS uuid[])) THEN 'task.released' ELSE 'task.submitted' END,
       id, agent_type, goal_id, nullif(token, 0), priority, CAST(:detail AS jsonb)
FROM tasks ORDER BY seq
""")
_NEXT = text("SELECT setval(pg_get_serial_sequence('tasks', 'seq'), max(seq)) FROM tasks")
# JSON does not tell a value that is null from one that is not there.
_NULLS = text("UPDATE context_entries SET value = CAST('null' AS jsonb) WHERE value IS NULL AND NOT deleted")


@dataclass(slots=True, kw_only=True)
class Snapshot:
    """What there is at one moment; rows as JSON text."""

    taken_at: datetime
    revision: str
    cursor: Cursor
    # By id, leased ones first.
    tasks: dict[str, str] = field(default_factory=dict)
    leased: int = 0
    # (task, the task that it waits for)
    edges: list[tuple[str, str]] = field(default_factory=list)
    parts: dict[str, list[str]] = field(default_factory=dict)
    is_cut: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class NewCheckpoint:
    """A checkpoint as it is stored: content compressed by zlib; size and SHA-256 of what it was before."""

    taken_at: datetime
    reason: str
    taken_by: str | None
    revision: str
    cursor: Cursor
    counts: str
    is_cut: bool
    size_bytes: int
    sha256: bytes
    content: bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class Checkpoint:
    """What is known of a checkpoint without opening it."""

    id: int
    taken_at: datetime
    reason: str
    taken_by: str | None
    revision: str
    cursor: Cursor
    counts: Mapping[str, int]
    is_cut: bool
    size_bytes: int
    stored_bytes: int
    sha256: bytes


_ONE_LOOK = text("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ, READ ONLY")
_REVISION = text("SELECT version_num FROM alembic_version")

# Each worker's last lease leads to its task, so that nobody has to look through all tasks for them.
_LEASED = text(f"""
SELECT CAST(t.id AS text) AS id, CAST(to_jsonb(t) AS text) AS line
FROM workers w CROSS JOIN LATERAL {lease_ledger.last_lease("w.id")} last
JOIN tasks t ON t.id = last.task_id AND t.token = last.token AND t.worker_id = w.id
ORDER BY t.seq LIMIT :limit
""")
_OTHERS = text("""
SELECT CAST(t.id AS text) AS id, CAST(to_jsonb(t) AS text) AS line FROM tasks t
WHERE t.worker_id IS NULL ORDER BY t.seq LIMIT :limit
""")
_EDGES = text("""
SELECT CAST(task_id AS text) AS task_id, CAST(depends_on AS text) AS depends_on FROM task_dependencies
WHERE task_id = ANY (CAST(:ids AS uuid[]))
""")
_SMALL = (
    {
        name: text(f"SELECT CAST(to_jsonb(t) AS text) FROM {name} t ORDER BY {order} LIMIT :limit")
        for name, order in (
            ("goals", "id"),
            ("lanes", "agent_type, priority"),
            ("pauses", "agent_type"),
            ("agent_results", "agent_type"),
            ("holds", "goal_id"),
        )
    }
    | {
        # With what is not folded yet, as its events are left behind.
        "goal_compute": text(f"SELECT CAST(to_jsonb(t) AS text) FROM ({compute.ALL_SPENT}) t LIMIT :limit"),
        # Of goals that go on: they are judged by all of their iterations.
        "goal_iterations": text("""
SELECT CAST(to_jsonb(i) AS text) FROM goals g JOIN goal_iterations i ON i.goal_id = g.id
WHERE g.state IN ('running', 'paused') ORDER BY i.goal_id, i.number LIMIT :limit
"""),
    }
    | {
        # Of what has versions, the one in force.
        name: text(f"SELECT CAST(to_jsonb(t) AS text) FROM {name} t ORDER BY version DESC LIMIT least(1, :limit)")
        for name in ("config_versions", "weights")
    }
)
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

_META = """id, taken_at, reason, taken_by, revision, cursor_transaction, cursor_seq, counts, is_cut, size_bytes,
    octet_length(content) AS stored_bytes, sha256"""
_INSERT = text(f"""
INSERT INTO checkpoints (taken_at, reason, taken_by, revision, cursor_transaction, cursor_seq, counts, is_cut,
                         size_bytes, sha256, content)
VALUES (:taken_at, :reason, :taken_by, :revision, :transaction, :seq, CAST(:counts AS jsonb), :is_cut, :size_bytes,
        :sha256, :content)
RETURNING {_META}
""")
_PAGE = text(f"SELECT {_META} FROM checkpoints WHERE id < :before ORDER BY id DESC LIMIT :limit")
_READ = text(f"SELECT {_META} FROM checkpoints WHERE id = :id")
_CONTENT = text("SELECT content FROM checkpoints WHERE id = :id")
_LAST = text("""
SELECT extract(epoch FROM now() - taken_at) AS seconds, cursor_transaction, cursor_seq
FROM checkpoints ORDER BY id DESC LIMIT 1
""")
_SINCE = text(f"""
SELECT count(*) AS changes, count(*) FILTER (WHERE kind = 'task.completed') AS completed FROM (
    SELECT kind FROM events WHERE (transaction, seq) > (:transaction, :seq) AND transaction < {HORIZON}
    ORDER BY transaction, seq LIMIT :most
) recent
""")
_PRUNE = text("""
DELETE FROM checkpoints WHERE id NOT IN (SELECT id FROM checkpoints ORDER BY id DESC LIMIT :keep) AND id NOT IN (
    SELECT max(id) FROM checkpoints WHERE taken_at > now() - make_interval(days => :days)
    GROUP BY date_trunc('day', taken_at AT TIME ZONE 'UTC')
)
""")


async def snapshot(connection: AsyncConnection, policy: CheckpointPolicy) -> Snapshot:
    """What is in flight, all as of one moment. The caller's transaction has just begun, and only reads.

    It is given no transaction number, so it holds up no reader of events, however long it takes.
    """
    await connection.execute(_ONE_LOOK)
    revision = (await connection.execute(_REVISION)).scalar_one()
    found = Snapshot(taken_at=await now(connection), revision=revision, cursor=await events.latest(connection))
    budget = await _take_tasks(connection, found, policy)
    for name, query in _SMALL.items():
        found.parts[name] = list((await connection.execute(query, {"limit": policy.most_entries})).scalars())
    found.parts["context"] = await _take_entries(connection, found, policy, budget)
    rows = await connection.execute(_EDGES, {"ids": list(found.tasks)})
    found.edges = [(row.task_id, row.depends_on) for row in rows]
    return found


async def _take_tasks(connection: AsyncConnection, found: Snapshot, policy: CheckpointPolicy) -> int:
    """Take as many tasks as fit, and say how many bytes are left."""
    budget = policy.most_bytes
    for query in (_LEASED, _OTHERS):
        # One more than fits, to learn whether there are more.
        limit = policy.most_tasks - len(found.tasks) + 1
        rows = await connection.stream(query, {"limit": limit}, execution_options={"yield_per": 100})
        async for row in rows:
            budget -= len(row.line)
            if budget < 0 or len(found.tasks) == policy.most_tasks:
                found.is_cut = True
                break
            found.tasks[row.id] = row.line
            found.leased += query is _LEASED
        await rows.close()
        if found.is_cut:
            break
    return budget


async def _take_entries(
    connection: AsyncConnection, found: Snapshot, policy: CheckpointPolicy, budget: int
) -> list[str]:
    """The last version of each entry of the Context Memory, as many as fit."""
    taken: list[str] = []
    rows = await connection.stream(_ENTRIES, {"limit": policy.most_entries + 1}, execution_options={"yield_per": 100})
    async for row in rows:
        budget -= len(row.line)
        if budget < 0 or len(taken) == policy.most_entries:
            found.is_cut = True
            break
        taken.append(row.line)
    await rows.close()
    return taken


async def queue(connection: AsyncConnection) -> list[dict[str, Any]]:
    """How many live tasks there are in all, by lane and phase."""
    return [
        {
            "agent_type": count.lane.agent_type.value,
            "priority": count.lane.priority.value,
            "phase": count.phase,
            "tasks": count.tasks,
        }
        for count in await counters.read(connection)
    ]


async def since_last(connection: AsyncConnection, most: int) -> Since | None:
    """What has happened since the last checkpoint, counted up to `most` changes; None when there is none."""
    last = (await connection.execute(_LAST)).mappings().first()
    if last is None:
        return None
    place = {"transaction": last["cursor_transaction"], "seq": last["cursor_seq"]}
    row = (await connection.execute(_SINCE, {**place, "most": most})).mappings().one()
    return Since(seconds=float(last["seconds"]), **row)


async def insert(connection: AsyncConnection, new: NewCheckpoint) -> Checkpoint:
    """Keep a checkpoint."""
    values = {name: getattr(new, name) for name in NewCheckpoint.__dataclass_fields__ if name != "cursor"}
    place = {"transaction": new.cursor.transaction, "seq": new.cursor.seq}
    return _checkpoint((await connection.execute(_INSERT, {**values, **place})).mappings().one())


async def page(connection: AsyncConnection, *, before: int, limit: int) -> list[Checkpoint]:
    """Checkpoints below an id, newest first."""
    rows = (await connection.execute(_PAGE, {"before": before, "limit": limit})).mappings()
    return [_checkpoint(row) for row in rows]


async def read(connection: AsyncConnection, checkpoint_id: int) -> Checkpoint | None:
    """What is known of a checkpoint."""
    row = (await connection.execute(_READ, {"id": checkpoint_id})).mappings().first()
    return _checkpoint(row) if row else None


async def content(connection: AsyncConnection, checkpoint_id: int) -> bytes | None:
    """The compressed content."""
    found: bytes | None = (await connection.execute(_CONTENT, {"id": checkpoint_id})).scalar()
    return found


async def prune(connection: AsyncConnection, *, keep: int, days: int) -> int:
    """Keep the newest `keep`, and the last of each of the last `days`; returns how many went."""
    return (await connection.execute(_PRUNE, {"keep": keep, "days": days})).rowcount


def _checkpoint(row: Any) -> Checkpoint:
    plain = dict(row)
    cursor = Cursor(transaction=plain.pop("cursor_transaction"), seq=plain.pop("cursor_seq"))
    return Checkpoint(cursor=cursor, **plain)


def unknown_columns(table: str, rows: Sequence[Mapping[str, Any]]) -> set[str]:
    """Columns of the rows that the table does not have."""
    return {name for row in rows for name in row} - {column.name for column in metadata.tables[table].c}


async def load(connection: AsyncConnection, table: str, rows: Sequence[Mapping[str, Any]]) -> None:
    """Insert rows as they were; columns that they do not know get their defaults. What is there already stays."""
    columns = sorted({name for row in rows for name in row})
    listed = ", ".join(f'"{name}"' for name in columns)
    query = text(
        f"INSERT INTO {table} ({listed}) OVERRIDING SYSTEM VALUE "
        f"SELECT {listed} FROM jsonb_populate_recordset(CAST(NULL AS {table}), CAST(:rows AS jsonb)) "
        "ON CONFLICT DO NOTHING"
    )
    for start in range(0, len(rows), _ROWS):
        await connection.execute(query, {"rows": json.dumps([dict(row) for row in rows[start : start + _ROWS]])})


async def settle(connection: AsyncConnection, released: Collection[str], reason: str) -> None:
    """After the rows are in: go on counting tasks where they end, and tell what has become of each."""
    await connection.execute(_NEXT)
    await connection.execute(_NULLS)
    await connection.execute(_TELL, {"released": list(released), "detail": json.dumps({"reason": reason})})
