"""Preparing a restored database for work: exclusive use, transaction numbers that keep growing, and no old leases."""

import json
from dataclasses import dataclass

from sqlalchemy import text
from sqlalchemy.exc import DBAPIError
from sqlalchemy.ext.asyncio import AsyncConnection

from app.db.connections import TIMELINE
from app.db.database import is_unsupported, limit_lock_waits, now
from app.kernel.events import TaskEvent
from app.memory.rules.backups import next_offset
from app.queue.store import lanes

# All processes of the service name their sessions alike, and other programs may be connected without any harm.
_COUNT_SESSIONS = text("""
SELECT count(*) FROM pg_stat_activity
WHERE datname = current_database() AND pid <> pg_backend_pid() AND application_name = 'convener'
""")

# Relations of an extension are no sign of use.
_COUNT_RELATIONS = text("""
SELECT count(*) FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
WHERE n.nspname <> 'information_schema' AND n.nspname NOT LIKE 'pg\\_%' AND c.relkind IN ('r', 'p', 'v', 'm', 'S')
  AND NOT EXISTS (SELECT FROM pg_depend d WHERE d.objid = c.oid AND d.deptype = 'e')
""")

# Those that the server trusts anybody with who may make a schema in this database.
_EXTENSIONS = text("""
SELECT available.name FROM pg_available_extensions available
JOIN pg_available_extension_versions v ON v.name = available.name AND v.version = available.default_version
WHERE (v.trusted OR NOT v.superuser) AND has_database_privilege(current_database(), 'CREATE')
""")

_SEARCH_PATHS = text("""
SELECT format('SET LOCAL search_path = %I', schema), format('ALTER DATABASE %I SET search_path = %I', database, schema)
FROM (SELECT current_database() AS database, CAST(:schema AS text) AS schema) wanted
WHERE current_schema() IS DISTINCT FROM schema
""")

# Events about the system as a whole do not count: the loops of a new system write some, such as that it has no workers.
_IS_USED = text("""
SELECT EXISTS (SELECT FROM tasks) OR EXISTS (SELECT FROM task_history)
    OR EXISTS (SELECT FROM every_event WHERE task_id IS NOT NULL OR goal_id IS NOT NULL)
    OR EXISTS (SELECT FROM context_entries) OR EXISTS (SELECT FROM goals) OR EXISTS (SELECT FROM pauses)
    OR EXISTS (SELECT FROM weights)
""")

# Blocks every writer of tasks and entries, but no reader.
_LOCK_TABLES = text("LOCK TABLE tasks, context_entries IN SHARE ROW EXCLUSIVE MODE")

# Every column that stores a number which readers compare with those of later transactions.
_HIGHEST_TRANSACTION = text("""
SELECT greatest(convener_transaction_offset(),
                (SELECT max(transaction) FROM events), (SELECT max(transaction) FROM queue_changes),
                (SELECT max(transaction) FROM folds), (SELECT max(transaction) FROM judgements),
                (SELECT max(cursor_transaction) FROM checkpoints))
""")

# The comment of the function is the timeline on which its offset was chosen. Only its owner can choose another.
_NOTED_TIMELINE = text("""
SELECT obj_description(oid, 'pg_proc') FROM pg_proc
WHERE oid = to_regprocedure('convener_transaction_offset()') AND pg_has_role(proowner, 'USAGE')
""")
_PRESENT_TIMELINE = text(f"SELECT 'timeline ' || {TIMELINE}")

# All writers of such numbers, each of which has then committed or will take a number of afterwards. Without the
# partitions of events, where nobody writes but through the whole table: a vacuum of a large one takes minutes.
_LOCK_NUMBERED = text(
    "LOCK TABLE ONLY events, queue_changes, folds, judgements, checkpoints IN SHARE ROW EXCLUSIVE MODE"
)

# One statement, so that rows, attempts and events describe exactly the same leases. The token stays: the next lease
# takes one above the new offset, which fences off a worker of the old server that comes back.
_RELEASE_LEASES = text(f"""
WITH held AS MATERIALIZED (
    SELECT * FROM tasks WHERE worker_id IS NOT NULL
), freed AS (
    UPDATE tasks t SET state = 'pending', worker_id = NULL, leased_at = NULL, lease_expires_at = NULL,
        deadline_at = NULL, waiting_since = now(), tag = {lanes.TAG_ON_RETURN}
    FROM held WHERE held.id = t.id
), recorded AS (
    INSERT INTO task_attempts (task_id, attempt, token, worker_id, leased_at, outcome)
    SELECT id, failures + 1, token, worker_id, leased_at, 'released' FROM held
), events_written AS (
    INSERT INTO events (kind, task_id, agent_type, goal_id, worker_id, token, priority, detail)
    SELECT '{TaskEvent.RELEASED}', id, agent_type, goal_id, worker_id, token, priority, CAST(:detail AS jsonb)
    FROM held ORDER BY seq
)
SELECT count(*) FROM held
""")


# On a standby every transaction is read only.
_IS_LOG_WRITABLE = text("""
SELECT NOT CAST(current_setting('transaction_read_only') AS boolean) AND has_table_privilege('audit', 'INSERT')
""")


@dataclass(frozen=True, slots=True, kw_only=True)
class Timelines:
    """The timeline on which transactions were last numbered on, None where nobody has noted it, and the present one."""

    noted: str | None
    present: str


async def count_other_sessions(connection: AsyncConnection) -> int:
    """Number of other sessions of this service on the database; `connection` must be the only one of this process."""
    return int((await connection.execute(_COUNT_SESSIONS)).scalar_one())


async def is_empty(connection: AsyncConnection) -> bool:
    """Whether the database holds nothing at all, not even a schema."""
    return int((await connection.execute(_COUNT_RELATIONS)).scalar_one()) == 0


async def schemas(connection: AsyncConnection) -> list[str]:
    """Names of the schemas of the database."""
    return list((await connection.execute(text("SELECT nspname FROM pg_namespace"))).scalars())


async def extensions(connection: AsyncConnection) -> list[str]:
    """Names of the extensions that our role may make without being a superuser."""
    return list((await connection.execute(_EXTENSIONS)).scalars())


async def look_into_schema(connection: AsyncConnection, schema: str) -> None:
    """Let this transaction, and all later sessions, look for tables in this schema, unless they do so first anyway."""
    if statements := (await connection.execute(_SEARCH_PATHS, {"schema": schema})).one_or_none():
        for statement in statements:
            await connection.exec_driver_sql(statement)


async def is_unused(connection: AsyncConnection) -> bool:
    """Whether the tables hold no task, goal, pause, weights or entry, nor an event about any."""
    return not (await connection.execute(_IS_USED)).scalar_one()


async def lock_out_writers(connection: AsyncConnection) -> None:
    """Block other writers of tasks and entries until this transaction ends."""
    await connection.execute(_LOCK_TABLES)


async def lock_out_numbering(connection: AsyncConnection) -> None:
    """Block whoever stores numbers of transactions until this transaction ends, and none of them for long.

    Raises an error of a lock that cannot be had, which the end of the transaction makes Locked.
    """
    await limit_lock_waits(connection)
    await connection.execute(_LOCK_NUMBERED)


async def advance_transactions(connection: AsyncConnection, at_least: int = 0) -> int:
    """Make the number of every later transaction higher than all stored ones and `at_least`; return the new offset.

    A server counts transactions from its own beginning. The offset is added to its numbers wherever one is stored, so
    that the cursors of readers, which compare them, stay good.
    """
    highest = (await connection.execute(_HIGHEST_TRANSACTION)).scalar_one()
    offset = next_offset(max(int(highest), at_least), await now(connection))
    # A function instead of a row: immutable and inlined, it costs the many inserts that call it nothing.
    await connection.execute(
        text(
            "CREATE OR REPLACE FUNCTION convener_transaction_offset() RETURNS bigint LANGUAGE sql IMMUTABLE "
            f"AS 'SELECT {int(offset)}::bigint'"
        )
    )
    await note_timeline(connection)
    return offset


async def read_timelines(connection: AsyncConnection) -> Timelines | None:
    """Return the timelines; None where somebody else owns the schema, or the server does not tell of its own."""
    present = await _present_timeline(connection)
    row = (await connection.execute(_NOTED_TIMELINE)).one_or_none()
    return None if present is None or row is None else Timelines(noted=row[0], present=present)


async def note_timeline(connection: AsyncConnection) -> None:
    """Note the present timeline, where the server tells of it, as the one on which transactions are numbered."""
    present = await _present_timeline(connection)
    if present is not None:
        await connection.execute(text(f"COMMENT ON FUNCTION convener_transaction_offset() IS '{present}'"))


async def _present_timeline(connection: AsyncConnection) -> str | None:
    try:
        async with connection.begin_nested():
            return str((await connection.execute(_PRESENT_TIMELINE)).scalar_one())
    except DBAPIError as error:
        # Some servers of clouds have no log of their own.
        if not is_unsupported(error):
            raise
        return None


async def release_leases(connection: AsyncConnection, reason: str) -> int:
    """Return every leased task to its lane without burning an attempt; return the number of tasks."""
    return int((await connection.execute(_RELEASE_LEASES, {"detail": json.dumps({"reason": reason})})).scalar_one())


async def analyze(connection: AsyncConnection) -> None:
    """Refresh the statistics of the planner."""
    await connection.execute(text("ANALYZE"))


async def is_log_writable(connection: AsyncConnection) -> bool:
    """Whether the audit log can be written: not on a server that follows another, nor by a role that may only read."""
    return bool((await connection.execute(_IS_LOG_WRITABLE)).scalar_one())


async def server_version(connection: AsyncConnection) -> str:
    """The version of the server, as it reports it."""
    return str((await connection.execute(text("SHOW server_version"))).scalar_one())
