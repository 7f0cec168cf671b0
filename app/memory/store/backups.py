"""Making a restored database fit for work: nobody else at it, transactions counted on, and no leases of the past."""

import json

from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncConnection

from app.memory.rules.backups import next_offset

_STRANGERS = text("""
SELECT count(*) FROM pg_stat_activity
WHERE datname = current_database() AND pid <> pg_backend_pid() AND application_name = 'convener'
""")

# What an extension has brought is no sign of use.
_RELATIONS = text("""
SELECT count(*) FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
WHERE n.nspname <> 'information_schema' AND n.nspname NOT LIKE 'pg\\_%' AND c.relkind IN ('r', 'p', 'v', 'm', 'S')
  AND NOT EXISTS (SELECT FROM pg_depend d WHERE d.objid = c.oid AND d.deptype = 'e')
""")

# The loops of a new system may have told of it as a whole, for one that it has no workers yet.
_USED = text("""
SELECT EXISTS (SELECT FROM tasks) OR EXISTS (SELECT FROM task_history)
    OR EXISTS (SELECT FROM events WHERE task_id IS NOT NULL OR goal_id IS NOT NULL)
    OR EXISTS (SELECT FROM context_entries) OR EXISTS (SELECT FROM goals) OR EXISTS (SELECT FROM pauses)
    OR EXISTS (SELECT FROM weights)
""")

_ALONE = text("LOCK TABLE tasks, context_entries IN SHARE ROW EXCLUSIVE MODE")

_HIGHEST = text("""
SELECT greatest(convener_transaction_offset(),
                (SELECT max(transaction) FROM events), (SELECT max(transaction) FROM queue_changes),
                (SELECT max(transaction) FROM folds), (SELECT max(transaction) FROM judgements),
                (SELECT max(cursor_transaction) FROM checkpoints))
""")

_RELEASE = text("""
WITH held AS MATERIALIZED (
    SELECT t.*, coalesce(l.virtual_time, 0) AS virtual_time FROM tasks t
    LEFT JOIN lanes l ON l.agent_type = t.agent_type AND l.priority = t.priority WHERE t.worker_id IS NOT NULL
), freed AS (
    UPDATE tasks t SET state = 'pending', worker_id = NULL, leased_at = NULL, lease_expires_at = NULL,
        deadline_at = NULL, waiting_since = now(), tag = greatest(t.tag, held.virtual_time)
    FROM held WHERE held.id = t.id
), recorded AS (
    INSERT INTO task_attempts (task_id, attempt, token, worker_id, leased_at, outcome)
    SELECT id, failures + 1, token, worker_id, leased_at, 'released' FROM held
), told AS (
    INSERT INTO events (kind, task_id, agent_type, goal_id, worker_id, token, priority, detail)
    SELECT 'task.released', id, agent_type, goal_id, worker_id, token, priority, CAST(:detail AS jsonb)
    FROM held ORDER BY seq
)
SELECT count(*) FROM held
""")


async def strangers(connection: AsyncConnection) -> int:
    """How many other sessions of ours are at work on this database; ask on the only connection of this process."""
    return int((await connection.execute(_STRANGERS)).scalar_one())


async def is_empty(connection: AsyncConnection) -> bool:
    """Whether there is nothing in this database, not even a schema of ours."""
    return int((await connection.execute(_RELATIONS)).scalar_one()) == 0


async def is_unused(connection: AsyncConnection) -> bool:
    """Whether the tables are there, and hold no task, goal, pause or entry, nor an event of any."""
    return not (await connection.execute(_USED)).scalar_one()


async def keep_others_out(connection: AsyncConnection) -> None:
    """Nobody else writes a task or an entry until this transaction ends."""
    await connection.execute(_ALONE)


async def take_your_time(connection: AsyncConnection) -> None:
    """Let statements of this transaction take as long as the size of the database demands."""
    await connection.execute(text("SET LOCAL statement_timeout = 0"))


async def count_on(connection: AsyncConnection, known: int = 0) -> int:
    """Make the number of every later transaction higher than all that are stored, and than `known`.

    Returns the offset by which they are higher than the server's own.
    """
    highest = (await connection.execute(_HIGHEST)).scalar_one()
    offset = next_offset(max(int(highest), known))
    await connection.execute(
        text(
            "CREATE OR REPLACE FUNCTION convener_transaction_offset() RETURNS bigint LANGUAGE sql IMMUTABLE "
            f"AS 'SELECT {int(offset)}::bigint'"
        )
    )
    return offset


async def release_leases(connection: AsyncConnection, reason: str) -> int:
    """Return every leased task to the queue without burning an attempt; returns how many."""
    return int((await connection.execute(_RELEASE, {"detail": json.dumps({"reason": reason})})).scalar_one())


async def analyse(connection: AsyncConnection) -> None:
    """Tell the planner what there is now."""
    await connection.execute(text("ANALYZE"))


async def server_version(connection: AsyncConnection) -> str:
    """The version of the server, as it calls itself."""
    return str((await connection.execute(text("SHOW server_version"))).scalar_one())
