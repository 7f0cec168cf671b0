"""Latency of a decision on the pool with many workers and a long queue."""

import time
from collections import defaultdict
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from typing import Any

import asyncpg

from app import garbage_collection
from app.db.database import Database
from app.kernel.modes import Mode
from app.scaling.service import tick
from benchmarks import deep_queue
from benchmarks.figures import Figure
from benchmarks.percentiles import percentile
from benchmarks.progress import say
from benchmarks.testbed import start_testbed

_WARM_UP = 20
_WHOLE = "whole tick"
_PARTS = {"read": "observe", "decide": "decide", "write": "record_and_apply"}

# Nine of ten workers hold a task, as in a pool that is worked hard; all have sent a heartbeat just now.
_WORKERS = """
INSERT INTO workers (id, name, incarnation, state, provisioner, slot, host, pid, capabilities, labels, version,
                     memory_gb, cpu_cores, cpu_percent, memory_mb, started_at, registered_at, first_beat_at,
                     last_seen_at)
SELECT gen_random_uuid(), 'bench-' || n, 1, 'ready', 'local', n, 'bench', n,
       ARRAY['evolution', 'generation', 'meta_review', 'proximity', 'ranking', 'reflection'], '{}', '0',
       4, 2, 85, 100, now(), now(), now(), now()
FROM generate_series(1, $1::int) AS n
"""
_HOST = """
INSERT INTO hosts (provisioner, host, size, usual_size, memory_gb, memory_used_gb, cpu_cores, cpu_share, seen_at)
VALUES ('local', 'bench', $1, $1, 4000, 10, 500, 0.85, now())
"""
_HELD = """
workers w LEFT JOIN LATERAL (
    SELECT n, task_id FROM leases l WHERE l.worker_id = w.id ORDER BY l.n DESC LIMIT 1
) last ON true LEFT JOIN tasks t ON t.id = last.task_id
"""
# The changes of five seconds: heartbeats of all, some tasks end, their workers lease others, some tasks come.
_LEASE = f"""
WITH free AS (
    SELECT w.id, row_number() OVER (ORDER BY w.slot) AS n, 1 + coalesce(last.n, 0) AS lease
    FROM {_HELD} WHERE t.id IS NULL ORDER BY w.slot LIMIT $1
), taken AS (
    SELECT t.id, row_number() OVER () AS n FROM (
        SELECT id FROM tasks WHERE state = 'pending' AND blockers = 0 AND run_at IS NULL AND agent_type = 'generation'
        ORDER BY priority, tag, seq LIMIT $1
    ) t
), given AS (
    INSERT INTO leases (worker_id, n, task_id, token, request_id)
    SELECT free.id, free.lease, taken.id, 1, gen_random_uuid() FROM free JOIN taken USING (n)
    RETURNING worker_id, task_id
)
UPDATE tasks t SET state = 'executing', token = 1, worker_id = given.worker_id, leased_at = now(),
    lease_expires_at = now() + interval '1 h', deadline_at = now() + interval '1 h'
FROM given WHERE t.id = given.task_id
"""
_END = f"""
DELETE FROM tasks WHERE id = ANY (ARRAY(SELECT t.id FROM {_HELD} WHERE t.id IS NOT NULL ORDER BY random() LIMIT $1))
"""
_BEATS = "UPDATE workers SET last_seen_at = now(), cpu_percent = 80 + random() * 10"
_TIME = """
UPDATE scaling_state SET decided_at = decided_at - interval '5 s', content = content || jsonb_build_object(
    'moved_at', to_jsonb(CAST(content ->> 'moved_at' AS timestamptz) - interval '5 s'))
"""


async def measure(*, workers: int, pending: int, ticks: int) -> list[Figure]:
    """Figures of so many decisions of the real operation; between two of them all that happens in 5 s happens."""
    # As the loops do in a process of their own.
    garbage_collection.settle()
    async with start_testbed() as testbed:
        say(f"filling {pending:,} tasks")
        await deep_queue.fill(testbed, pending)
        database, side_connection = Database(testbed.database_url), await asyncpg.connect(testbed.database_url)
        try:
            await _populate(side_connection, workers)
            async with _timed_steps() as times:
                say(f"{ticks:,} decisions")
                for number in range(_WARM_UP + ticks):
                    if number == _WARM_UP:
                        times.clear()
                    await _churn(side_connection, workers)
                    await _decide(database, times)
        finally:
            await side_connection.close()
            await database.close()
    return [figure for name, seconds in times.items() for figure in _figures(name, seconds)]


async def _populate(side_connection: "asyncpg.Connection[asyncpg.Record]", workers: int) -> None:
    # In real use these changes are spread over seconds; here they must not keep the disk from the decision.
    await side_connection.execute("SET synchronous_commit = off")
    await side_connection.execute(_WORKERS, workers)
    await side_connection.execute(_HOST, workers)
    await side_connection.execute(_LEASE, workers * 9 // 10)
    await side_connection.execute("VACUUM ANALYZE")


async def _churn(side_connection: "asyncpg.Connection[asyncpg.Record]", workers: int) -> None:
    """Make the changes of five seconds with tasks of about 50 s."""
    async with side_connection.transaction():
        await side_connection.execute(_END, workers // 10)
        lease_status = await side_connection.execute(_LEASE, workers // 10)
        assert lease_status == f"UPDATE {workers // 10}", f"{lease_status}: all that end are to be followed by others"
        await side_connection.execute(_BEATS)
        await side_connection.execute("UPDATE hosts SET seen_at = now()")
        await side_connection.execute(_TIME)


async def _decide(database: Database, times: Mapping[str, list[float]]) -> None:
    start_time, cpu = time.perf_counter(), time.process_time()
    async with database.transaction() as connection:
        result = await tick.tick(connection, database, Mode.PRODUCTION)
    times[_WHOLE].append(time.perf_counter() - start_time)
    times["CPU of this process"].append(time.process_time() - cpu)
    assert result, "no decision was due"


@asynccontextmanager
async def _timed_steps() -> AsyncIterator[dict[str, list[float]]]:
    """Record how long each step of a tick takes, while this is open."""
    times: dict[str, list[float]] = defaultdict(list)
    original = {name: getattr(tick, name) for name in _PARTS.values()}
    for part, name in _PARTS.items():
        setattr(tick, name, _with_timer(original[name], times, part))
    try:
        yield times
    finally:
        for name, step in original.items():
            setattr(tick, name, step)


def _with_timer(
    step: Callable[..., Awaitable[Any]], times: Mapping[str, list[float]], part: str
) -> Callable[..., Awaitable[Any]]:
    async def measured_step(*arguments: Any) -> Any:
        start_time = time.perf_counter()
        try:
            return await step(*arguments)
        finally:
            times[part].append(time.perf_counter() - start_time)

    return measured_step


def _figures(name: str, seconds: Sequence[float]) -> list[Figure]:
    """Of the whole tick with its commit, of a part of it, or processor time of this process."""
    p50, p99, worst = (percentile(seconds, share) * 1000 for share in (0.5, 0.99, 1.0))
    target = 50.0 if name == _WHOLE else None
    return [
        Figure(name=f"{name}, p50", value=p50, unit="ms"),
        Figure(name=f"{name}, p99", value=p99, unit="ms", target=target, more_is_better=False),
        Figure(name=f"{name}, worst", value=worst, unit="ms"),
    ]
