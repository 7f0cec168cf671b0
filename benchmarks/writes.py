"""Bytes of write-ahead log that a task costs: to submit it, and to lease and complete it."""

from dataclasses import dataclass

import asyncpg

from benchmarks import cycles, submit
from benchmarks.backlog import Backlog
from benchmarks.cycles import Ledger
from benchmarks.testbed import Testbed, start_testbed
from benchmarks.workers import Worker, register_workers

# Workers of all measurements; goals of the one with more than one.
WORKERS, GOALS = 64, 100


@dataclass(frozen=True, slots=True, kw_only=True)
class LogBytes:
    """Bytes a task; all that the server wrote meanwhile is counted, with its pages that were written whole."""

    submit: float
    cycle: float
    # Of tasks that were there before a checkpoint, right after it: most of their pages are written whole then.
    old_cycle: float


async def measure(tasks: int, seconds: float, goals: int = 1) -> LogBytes:
    """Work off tasks that came after the last checkpoint, then others that came before it; `tasks` wait each time."""
    async with start_testbed() as testbed:
        workers = await register_workers(testbed, WORKERS)
        connection = await asyncpg.connect(testbed.database_url)
        try:
            await connection.execute("CHECKPOINT")
            start = await _position(connection)
            await submit.tasks_per_second(testbed, tasks, goals)
            submitted = await _position(connection) - start
            cycle = await _bytes_of_cycle(connection, testbed, workers, seconds)
            await Backlog(testbed=testbed, tasks=tasks).fill()
            old_cycle = await _bytes_of_cycle(connection, testbed, workers, seconds)
        finally:
            await connection.close()
    return LogBytes(submit=submitted / tasks, cycle=cycle, old_cycle=old_cycle)


async def _bytes_of_cycle(
    connection: "asyncpg.Connection[asyncpg.Record]", testbed: Testbed, workers: list[Worker], seconds: float
) -> float:
    ledger, start = Ledger(), await _position(connection)
    await cycles.measure(testbed, workers, seconds, ledger)
    return (await _position(connection) - start) / ledger.completed_count


async def _position(connection: "asyncpg.Connection[asyncpg.Record]") -> int:
    return int(await connection.fetchval("SELECT pg_current_wal_insert_lsn() - '0/0'"))
