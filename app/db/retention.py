"""Daily partitions of the tables that only grow: created ahead, and dropped whole when their time is over."""

import re
from datetime import UTC, date, datetime, time, timedelta
from itertools import dropwhile
from typing import Protocol

from sqlalchemy import TextClause, text
from sqlalchemy.exc import DBAPIError
from sqlalchemy.ext.asyncio import AsyncConnection

from app.db import folds
from app.db.database import is_locked, limit_lock_waits

PARTITIONED = ("task_history", "events")
# The mark of the last event that was dropped, in `folds`.
DROPPED = "events dropped"
# The column by which a table is partitioned, and an index in about the same order.
_MOMENT = {"task_history": "finished_at", "events": "at"}
_ORDER = {"task_history": "seq", "events": "transaction, seq"}
_NAME = re.compile(r"^(task_history|events)_(default|\d{8})$")

# To attach a partition PostgreSQL looks through all rows of the default one, and whoever writes there waits meanwhile:
# a second for a million, which are there when nobody has made partitions for long. A small one is looked through in
# less than the half second after which a statement of the hot path gives up, the wait for the lock included.
_LONGEST_CREATION_MS = 400
_SMALL_BYTES = 64 << 20
# That of tomorrow is worth a longer wait, once a day: without it the default partition would grow for ever.
_LONGEST_NEEDED_CREATION_MS = 10_000
_LARGEST_BYTES = 2 << 30
_CANCELED = "57014"

# Rows deleted in some 20 ms: no transaction that readers of events, or writers of these rows, would have to wait for.
BATCH = 2000


def is_partition(table: str) -> bool:
    """Whether a table is one of the daily partitions or a default one."""
    return _NAME.match(table) is not None


async def create_ahead(connection: AsyncConnection, days: int = 3) -> list[str]:
    """Create the partitions of today and the next `days`; return the names of the new ones."""
    new_names = []
    for table in PARTITIONED:
        for day in await missing_days(connection, table, days):
            for statement in _creation(table, day):
                await connection.execute(text(statement))
            new_names.append(_name(table, day))
    return new_names


async def missing_days(connection: AsyncConnection, table: str, days: int = 3) -> list[date]:
    """Return today and the next `days` as far as they need a partition; no more than one where each costs a lot."""
    names, today = await _partitions(connection, table), await _today(connection)
    days = days if await _default_bytes(connection, table) <= _SMALL_BYTES else min(days, 1)
    coming_days = [today + timedelta(days=step) for step in range(days + 1)]
    # The default partition takes the rows of a day without one, so a stalled duty loses nothing. Once it has some, it
    # keeps that day: to attach another partition PostgreSQL would have to scan them under a lock.
    return [
        day
        for day in coming_days
        if _name(table, day) not in names and not await _default_has_rows(connection, table, day)
    ]


async def old_partitions(connection: AsyncConnection, table: str, keep_days: int) -> list[str]:
    """Return the names of the partitions whose whole day is more than `keep_days` ago, the oldest first.

    Those of events only up to the first that the sums have still to count, as after weeks without loops.
    """
    oldest = _name(table, await _today(connection) - timedelta(days=keep_days))
    names = await _partitions(connection, table)
    old_names = sorted(name for name in names if not name.endswith("default") and name < oldest)
    if table != "events":
        return old_names
    counted_names = []
    for name in old_names:
        unfolded = text(f"SELECT EXISTS (SELECT FROM {name} WHERE transaction >= {folds.FIRST_UNFOLDED})")
        if (await connection.execute(unfolded)).scalar_one():
            break
        counted_names.append(name)
    return counted_names


async def create(connection: AsyncConnection, table: str, day: date) -> bool:
    """Create the partition of a day; return False, having done nothing, where that would take too long.

    So it does where the table is in use, or where the default partition, which takes the day until then, is large.
    """
    size = await _default_bytes(connection, table)
    if size > _LARGEST_BYTES:
        return False
    longest = _LONGEST_CREATION_MS if size <= _SMALL_BYTES else _LONGEST_NEEDED_CREATION_MS
    return await _execute_unless_busy(connection, f"SET LOCAL statement_timeout = {longest}", *_creation(table, day))


async def too_large(connection: AsyncConnection) -> dict[str, int]:
    """Table -> bytes of its default partition, of those beside which no partition is made any more."""
    sizes = {table: await _default_bytes(connection, table) for table in PARTITIONED}
    return {table: size for table, size in sizes.items() if size > _LARGEST_BYTES}


async def create_beside_default(
    connection: AsyncConnection, table: str, *, days: int, seconds: float
) -> list[str] | None:
    """Create the partitions of the next `days`; their names, or None where the table is in use, or it took too long.

    Writers and readers wait for as long as PostgreSQL looks through the default partition, once for all of them.
    """
    names, today = await _partitions(connection, table), await _today(connection)
    coming_days = (today + timedelta(days=step) for step in range(1, days + 1))
    missing = list(dropwhile(lambda day: _name(table, day) in names, coming_days))
    new_days = []
    for day in missing:
        if _name(table, day) in names or await _default_has_rows(connection, table, day):
            break
        new_days.append(day)
    if not new_days:
        return []
    start, end = f"{new_days[0]} 00:00+00", f"{new_days[-1] + timedelta(days=1)} 00:00+00"
    moment = _MOMENT[table]
    # By a constraint that excludes them PostgreSQL knows that none of their rows is there. All within a transaction:
    # left behind, it would refuse rows.
    is_done = await _execute_unless_busy(
        connection,
        f"LOCK TABLE ONLY {table} IN ACCESS EXCLUSIVE MODE",
        f"SET LOCAL statement_timeout = {round(seconds * 1000)}",
        # A vacuum ends for whoever waits for it for a second; others come to the default one through its table alone.
        "SET LOCAL lock_timeout = 0",
        f"ALTER TABLE {table}_default ADD CONSTRAINT coming_days CHECK ({moment} < '{start}' OR {moment} >= '{end}')",
        *(statement for day in new_days for statement in _creation(table, day)),
        f"ALTER TABLE {table}_default DROP CONSTRAINT coming_days",
    )
    return [_name(table, day) for day in new_days] if is_done else None


async def drop(connection: AsyncConnection, name: str) -> bool:
    """Drop a partition; return False, having done nothing, where it or its table is in use for too long."""
    mark = [_mark_dropped(name)] if name.startswith("events_") else []
    return await _execute_unless_busy(connection, *mark, f"DROP TABLE {name}")


def _mark_dropped(source: str) -> str:
    """Return the statement that notes the last of the events that are about to go, for readers with older cursors."""
    return f"""
INSERT INTO folds AS mark (name, transaction, seq)
SELECT '{DROPPED}', transaction, seq + size - 1 FROM {source} ORDER BY transaction DESC, seq DESC LIMIT 1
ON CONFLICT (name) DO UPDATE SET transaction = excluded.transaction, seq = excluded.seq
WHERE (excluded.transaction, excluded.seq) > (mark.transaction, mark.seq)"""


async def prune_default(connection: AsyncConnection, table: str, keep_days: int, limit: int = BATCH) -> int:
    """Delete rows of the default partition whose day is more than `keep_days` ago; return the number deleted.

    It looks at the first rows only, which are the oldest but for a few: no index leads to the others. Events that the
    sums have still to count stay.
    """
    counted = f"AND transaction < {folds.FIRST_UNFOLDED}" if table == "events" else ""
    deletion_of_old = f"""
        DELETE FROM {table}_default WHERE ctid = ANY (ARRAY(
            SELECT ctid FROM (SELECT ctid, * FROM {table}_default ORDER BY {_ORDER[table]} LIMIT :limit) oldest
            WHERE {_MOMENT[table]} < (date_trunc('day', now() AT TIME ZONE 'UTC') - make_interval(days => :days))
                AT TIME ZONE 'UTC' {counted}
        ))
        RETURNING *
    """
    marked = f", marked AS ({_mark_dropped('gone')})" if table == "events" else ""
    statement = text(f"WITH gone AS ({deletion_of_old}){marked} SELECT count(*) FROM gone")
    return int((await connection.execute(statement, {"days": keep_days, "limit": limit})).scalar_one())


async def _execute_unless_busy(connection: AsyncConnection, *statements: str) -> bool:
    """Change a partitioned table, unless its lock takes longer than 200 ms, or a statement its own limit.

    Both limits hold until the commit.
    """
    # A reader of one partition keeps us from the lock of the whole table, and while we wait in line for that lock, all
    # writers of the table wait behind us.
    await limit_lock_waits(connection)
    try:
        async with connection.begin_nested():
            for statement in statements:
                await connection.execute(text(statement))
    except DBAPIError as error:
        if not is_locked(error) and getattr(error.orig, "sqlstate", None) != _CANCELED:
            raise
        return False
    return True


async def _today(connection: AsyncConnection) -> date:
    day: date = (await connection.execute(text("SELECT (now() AT TIME ZONE 'UTC')::date"))).scalar_one()
    return day


async def _default_bytes(connection: AsyncConnection, table: str) -> int:
    size = text(f"SELECT pg_relation_size('{table}_default')")
    return int((await connection.execute(size)).scalar_one())


async def _partitions(connection: AsyncConnection, table: str) -> set[str]:
    rows = await connection.execute(
        text(
            "SELECT c.relname FROM pg_inherits i JOIN pg_class c ON c.oid = i.inhrelid "
            "WHERE i.inhparent = CAST(:t AS regclass)"
        ),
        {"t": table},
    )
    return set(rows.scalars())


async def _default_has_rows(connection: AsyncConnection, table: str, day: date) -> bool:
    moment = _MOMENT[table]
    query = f"SELECT EXISTS (SELECT FROM {table}_default WHERE {moment} >= :day AND {moment} < :next)"
    # A bare date would begin at the midnight of this machine.
    start = datetime.combine(day, time(), UTC)
    result = await connection.execute(text(query), {"day": start, "next": start + timedelta(days=1)})
    return bool(result.scalar_one())


def _name(table: str, day: date) -> str:
    return f"{table}_{day:%Y%m%d}"


def _creation(table: str, day: date) -> list[str]:
    name, start, end = _name(table, day), f"{day} 00:00+00", f"{day + timedelta(days=1)} 00:00+00"
    partition = f"{name} PARTITION OF {table} FOR VALUES FROM ('{start}') TO ('{end}')"
    return [f"CREATE TABLE IF NOT EXISTS {partition}", _few_statistics(name)]


def _few_statistics(table: str) -> str:
    # Under load they are made every few seconds, so they come from 3,000 rows, and not from 30,000: the largest target
    # decides for all columns. Nobody asks for an element of an array, and to count all of them takes PostgreSQL a
    # second of each ANALYZE of a day of events. A new partition takes nothing of this from its table.
    return f"""
DO $do$ DECLARE statement text; BEGIN
    FOR statement IN
        SELECT 'ALTER TABLE {table} ' || string_agg(
            format('ALTER COLUMN %I SET STATISTICS %s', attname, CASE typcategory WHEN 'A' THEN 0 ELSE 10 END), ', ')
        FROM pg_attribute JOIN pg_type ON pg_type.oid = atttypid WHERE attrelid = '{table}'::regclass AND attnum > 0
        UNION ALL
        SELECT format('ALTER INDEX %s ALTER COLUMN %s SET STATISTICS 10', indexrelid::regclass, attnum)
        FROM pg_index JOIN pg_attribute ON attrelid = indexrelid
        WHERE indrelid = '{table}'::regclass AND indkey[attnum - 1] = 0
    LOOP EXECUTE statement; END LOOP;
END $do$"""


def deletion(table: str, condition: str, order: str) -> TextClause:
    """Return a statement that deletes at most `:limit` rows of a table for which the condition holds, in this order.

    It skips rows that others have locked, so it waits for nobody. Repeated until it deletes fewer than `:limit`, it has
    deleted all others.
    """
    # By ctid, because DELETE has no LIMIT; an array, because the planner may run a subquery with IN more than once.
    return text(f"""
DELETE FROM {table} WHERE ctid = ANY (ARRAY(
    SELECT ctid FROM {table} WHERE {condition} ORDER BY {order} LIMIT :limit FOR UPDATE SKIP LOCKED
))
""")


class Pruning(Protocol):
    """Deletes rows older than `days`, at most `limit`; returns the number deleted."""

    async def __call__(self, connection: AsyncConnection, days: int, limit: int = BATCH) -> int: ...


def pruning(table: str, moment: str, order: str | None = None, *, condition: str = "true") -> Pruning:
    """Return the function that prunes a table by the age of this column, in this order; by default the oldest first.

    Rows for which the condition does not hold stay.
    """
    statement = deletion(table, f"{moment} < now() - make_interval(days => :days) AND {condition}", order or moment)

    async def prune(connection: AsyncConnection, days: int, limit: int = BATCH) -> int:
        return (await connection.execute(statement, {"days": days, "limit": limit})).rowcount

    return prune
