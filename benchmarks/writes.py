"""Bytes of write-ahead log that a task costs: to submit it, and to lease and complete it."""

from dataclasses import dataclass

import asyncpg

from benchmarks import cycles, submit
from benchmarks.cycles import Ledger
from benchmarks.testbed import Testbed
from benchmarks.workers import Worker


@dataclass(frozen=True, slots=True, kw_only=True)
class LogBytes:
    """Bytes a task; all that the server wrote meanwhile is counted, with its pages that were written whole."""

    submit: float
    cycle: float


async def measure(testbed: Testbed, workers: list[Worker], seconds: float, ledger: Ledger) -> LogBytes:
    """Submit as many tasks as are worked off then, so that most pages were new after the last checkpoint."""
    connection = await asyncpg.connect(testbed.database_url)
    try:
        await connection.execute("CHECKPOINT")
        start = await _position(connection)
        count = 20_000
        await submit.tasks_per_second(testbed, count)
        submitted, before = await _position(connection), ledger.completed_count
        await cycles.measure(testbed, workers, seconds, ledger)
        end = await _position(connection)
    finally:
        await connection.close()
    return LogBytes(submit=(submitted - start) / count, cycle=(end - submitted) / (ledger.completed_count - before))


async def _position(connection: "asyncpg.Connection[asyncpg.Record]") -> int:
    return int(await connection.fetchval("SELECT pg_current_wal_insert_lsn() - '0/0'"))
