"""Transactions that write events and stay open: readers of events, results and counts wait for them."""

from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncConnection

from app.db import folds
from app.kernel.sessions import AWAITS_STANDBY
from app.queue.rules.status import OpenWriter

# Far longer than any transaction of ours takes, and short enough to be told of within 10 s.
_LONG_SECONDS = 3.0
_TABLES = ("events", "queue_changes", "judgements")

# A prepared transaction has no process; its lock on its own number leads to its name. The age of a transaction of
# another role is hidden from roles without pg_read_all_stats; there the age of the oldest event that waits behind the
# horizon stands in for it.
_LONG = text(f"""
WITH writer AS MATERIALIZED (
    SELECT DISTINCT pid, virtualtransaction FROM pg_locks
    WHERE granted AND locktype = 'relation' AND mode = 'RowExclusiveLock'
      AND database = (SELECT oid FROM pg_database WHERE datname = current_database())
      AND relation = ANY (CAST(CAST(:tables AS text[]) AS regclass[])) AND pid IS DISTINCT FROM pg_backend_pid()
), waiting AS MATERIALIZED (
    SELECT at FROM events WHERE (transaction, seq) > (:transaction, :seq) ORDER BY transaction, seq LIMIT 1
), named AS (
    SELECT writer.pid, prepared.gid, current_database() AS database, a.application_name AS application,
           {AWAITS_STANDBY} AS awaits_standby,
           extract(epoch FROM clock_timestamp() - coalesce(a.xact_start, prepared.prepared))::float8 AS seconds
    FROM writer LEFT JOIN pg_stat_activity a ON a.pid = writer.pid
    LEFT JOIN LATERAL (
        SELECT known.gid, known.prepared FROM pg_locks own
        JOIN pg_prepared_xacts known ON known.transaction = own.transactionid
        WHERE own.pid IS NULL AND own.virtualtransaction = writer.virtualtransaction
    ) prepared ON writer.pid IS NULL
)
SELECT pid, gid, database, application, awaits_standby,
       coalesce(seconds, extract(epoch FROM clock_timestamp() - waiting.at)::float8) AS seconds
FROM named LEFT JOIN waiting ON true
WHERE coalesce(seconds, extract(epoch FROM clock_timestamp() - waiting.at)) >= :long
ORDER BY seconds DESC
""")


async def read(connection: AsyncConnection) -> list[OpenWriter]:
    """Return the transactions that have kept readers waiting for more than a few seconds, the oldest first."""
    horizon = await folds.horizon(connection, *_TABLES)
    if not horizon.is_held:
        return []
    values = {"transaction": horizon.transaction, "seq": horizon.seq, "tables": list(_TABLES), "long": _LONG_SECONDS}
    return [OpenWriter(**row) for row in (await connection.execute(_LONG, values)).mappings()]
