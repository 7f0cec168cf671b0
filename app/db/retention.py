"""Daily partitions of the tables that only grow: made ahead, dropped whole when their time is over."""

import re
from datetime import UTC, date, datetime, time, timedelta

from sqlalchemy import TextClause, text
from sqlalchemy.exc import DBAPIError
from sqlalchemy.ext.asyncio import AsyncConnection

PARTITIONED = ("task_history", "events")
# When a row came about, and an index whose order is about the same.
_MOMENT = {"task_history": "finished_at", "events": "at"}
_ORDER = {"task_history": "seq", "events": "transaction, seq"}
_IMPATIENTLY = text("SET LOCAL lock_timeout = '200ms'")
_LOCK_NOT_AVAILABLE = "55P03"
_NAME = re.compile(r"^(task_history|events)_(default|\d{8})$")


# Deleted in some 20 ms: no transaction that readers of events, or writers of these rows, would have to wait for.
BATCH = 2000


def is_partition(table: str) -> bool:
    """Whether a table is one of the daily partitions or a default one."""
    return _NAME.match(table) is not None


async def create_ahead(connection: AsyncConnection, days: int = 3) -> list[str]:
    """Make today's partitions and those of the next `days`; returns the names of the new ones."""
    made = []
    for table in PARTITIONED:
        for day in await missing(connection, table, days):
            await connection.execute(text(_create(table, _name(table, day), day)))
            made.append(_name(table, day))
    return made


async def missing(connection: AsyncConnection, table: str, days: int = 3) -> list[date]:
    """Those of today and the next `days` that have no partition yet.

    The default partition catches what nobody prepared for, so a stalled duty loses nothing. A day that has
    rows there already is left to it: attaching would have to scan them under a lock.
    """
    present, today = await _present(connection, table), await _today(connection)
    ahead = [today + timedelta(days=step) for step in range(days + 1)]
    return [
        day for day in ahead if _name(table, day) not in present and not await _default_holds(connection, table, day)
    ]


async def older(connection: AsyncConnection, table: str, keep_days: int) -> list[str]:
    """The partitions whose whole day is more than `keep_days` ago."""
    oldest = _name(table, await _today(connection) - timedelta(days=keep_days))
    return sorted(n for n in await _present(connection, table) if not n.endswith("default") and n < oldest)


async def make(connection: AsyncConnection, table: str, day: date) -> bool:
    """Make the partition of a day; False where somebody uses the table for longer than we may wait."""
    return await _in_passing(connection, _create(table, _name(table, day), day))


async def drop(connection: AsyncConnection, name: str) -> bool:
    """Drop a partition; False where somebody uses it, or its table, for longer than we may wait."""
    return await _in_passing(connection, f"DROP TABLE IF EXISTS {name}")


async def prune_default(connection: AsyncConnection, table: str, keep_days: int, bite: int = BATCH) -> int:
    """Delete what no partition was prepared for, once its day is more than `keep_days` ago; returns how many rows.

    Looks at the first rows only, which are the oldest but for a few: no index leads to the others.
    """
    statement = text(f"""
        DELETE FROM {table}_default WHERE ctid = ANY (ARRAY(
            SELECT ctid FROM (
                SELECT ctid, {_MOMENT[table]} AS moment FROM {table}_default ORDER BY {_ORDER[table]} LIMIT :bite
            ) oldest
            WHERE moment < (date_trunc('day', now() AT TIME ZONE 'UTC') - make_interval(days => :days))
                AT TIME ZONE 'UTC'
        ))
    """)
    return (await connection.execute(statement, {"days": keep_days, "bite": bite})).rowcount


async def _in_passing(connection: AsyncConnection, statement: str) -> bool:
    """Change a partitioned table unless that means to wait: whoever comes after us for the table waits as well.

    A reader of one partition keeps us from the lock that we need of the whole table, and as soon as we stand in line
    for it nobody can write. The limit holds for the rest of the transaction.
    """
    await connection.execute(_IMPATIENTLY)
    try:
        async with connection.begin_nested():
            await connection.execute(text(statement))
    except DBAPIError as error:
        if getattr(error.orig, "sqlstate", None) != _LOCK_NOT_AVAILABLE:
            raise
        return False
    return True


async def _today(connection: AsyncConnection) -> date:
    day: date = (await connection.execute(text("SELECT (now() AT TIME ZONE 'UTC')::date"))).scalar_one()
    return day


async def _present(connection: AsyncConnection, table: str) -> set[str]:
    rows = await connection.execute(
        text(
            "SELECT c.relname FROM pg_inherits i JOIN pg_class c ON c.oid = i.inhrelid "
            "WHERE i.inhparent = CAST(:t AS regclass)"
        ),
        {"t": table},
    )
    return set(rows.scalars())


async def _default_holds(connection: AsyncConnection, table: str, day: date) -> bool:
    moment = _MOMENT[table]
    query = f"SELECT EXISTS (SELECT FROM {table}_default WHERE {moment} >= :day AND {moment} < :next)"
    # A bare date would begin at the midnight of this machine.
    start = datetime.combine(day, time(), UTC)
    found = await connection.execute(text(query), {"day": start, "next": start + timedelta(days=1)})
    return bool(found.scalar_one())


def _name(table: str, day: date) -> str:
    return f"{table}_{day:%Y%m%d}"


def _create(table: str, name: str, day: date) -> str:
    start, end = f"{day} 00:00+00", f"{day + timedelta(days=1)} 00:00+00"
    return f"CREATE TABLE IF NOT EXISTS {name} PARTITION OF {table} FOR VALUES FROM ('{start}') TO ('{end}')"


def deletion(table: str, old: str, first: str) -> TextClause:
    """A statement that deletes at most `:bite` rows of a table for which `old` holds, in the order of `first`.

    What somebody else has locked is left for the next time, so this waits for nobody. Who deletes until a bite is not
    full has deleted everything else.
    """
    return text(f"""
DELETE FROM {table} WHERE ctid = ANY (ARRAY(
    SELECT ctid FROM {table} WHERE {old} ORDER BY {first} LIMIT :bite FOR UPDATE SKIP LOCKED
))
""")
