"""Daily partitions of the tables that only grow: made ahead, dropped whole when their time is over."""

import re
from datetime import UTC, date, datetime, time, timedelta

from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncConnection

PARTITIONED = ("task_history", "events")
_NAME = re.compile(r"^(task_history|events)_(default|\d{8})$")


def is_partition(table: str) -> bool:
    """Whether a table is one of the daily partitions or a default one."""
    return _NAME.match(table) is not None


async def create_ahead(connection: AsyncConnection, days: int = 3) -> list[str]:
    """Make today's partitions and those of the next `days`; returns the names of the new ones.

    The default partition catches what nobody prepared for, so a stalled duty loses nothing. A day that has
    rows there already is left to it: attaching would have to scan them under a lock.
    """
    today: date = (await connection.execute(text("SELECT (now() AT TIME ZONE 'UTC')::date"))).scalar_one()
    made = []
    for table in PARTITIONED:
        present = await _present(connection, table)
        for day in (today + timedelta(days=ahead) for ahead in range(days + 1)):
            name = f"{table}_{day:%Y%m%d}"
            if name not in present and not await _default_holds(connection, table, day):
                await connection.execute(text(_create(table, name, day)))
                made.append(name)
    return made


async def drop_older(connection: AsyncConnection, table: str, keep_days: int) -> list[str]:
    """Drop the partitions whose whole day is more than `keep_days` ago; returns their names."""
    today: date = (await connection.execute(text("SELECT (now() AT TIME ZONE 'UTC')::date"))).scalar_one()
    oldest = f"{table}_{today - timedelta(days=keep_days):%Y%m%d}"
    names = sorted(n for n in await _present(connection, table) if not n.endswith("default") and n < oldest)
    for name in names:
        await connection.execute(text(f"DROP TABLE {name}"))
    return names


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
    moment = "finished_at" if table == "task_history" else "at"
    query = f"SELECT EXISTS (SELECT FROM {table}_default WHERE {moment} >= :day AND {moment} < :next)"
    # A bare date would begin at the midnight of this machine.
    start = datetime.combine(day, time(), UTC)
    found = await connection.execute(text(query), {"day": start, "next": start + timedelta(days=1)})
    return bool(found.scalar_one())


def _create(table: str, name: str, day: date) -> str:
    start, end = f"{day} 00:00+00", f"{day + timedelta(days=1)} 00:00+00"
    return f"CREATE TABLE {name} PARTITION OF {table} FOR VALUES FROM ('{start}') TO ('{end}')"
