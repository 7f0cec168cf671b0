"""Output of attempts in the database: kept once, within bounds, and pruned."""

from uuid import UUID

import pytest

from app.db.database import Database
from app.queue.rules.logs import HEAD_BYTES, SEGMENT_BYTES, TAIL_BYTES, Position, Stream
from app.queue.service import leases as service
from app.queue.service.leases import LeaseService
from app.queue.store import logs
from tests.support.factories import completion, fence, holding, leased
from tests.support.sql import execute, fetch, value


async def _add(database: Database, task_id: UUID, start: int, text: str, stream: Stream = Stream.STDOUT) -> None:
    async with database.transaction() as connection:
        await logs.add(connection, task_id, 1, 1, stream, start, text)


async def _text(database: Database, task_id: UUID) -> str:
    async with database.transaction() as connection:
        return "".join(segment.text for segment in await logs.read(connection, task_id, Position(), limit=1000))


async def test_small_pieces_are_put_together_and_repetitions_ignored(database: Database) -> None:
    _, lease = await holding(database)
    start = 0
    for n in range(3000):
        line = f"line {n} é\n"
        await _add(database, lease.task_id, start, line)
        start += len(line.encode())
        if n % 1000 == 500:
            await _add(database, lease.task_id, start - len(line.encode()), line)
            await _add(database, lease.task_id, 0, "x" * 100)
    assert await _text(database, lease.task_id) == "".join(f"line {n} é\n" for n in range(3000))
    assert await value(database, "SELECT count(*) FROM task_logs") <= start / SEGMENT_BYTES * 1.1 + 1
    assert await value(database, "SELECT bool_and(ending - start = octet_length(text)) FROM task_logs")


async def test_head_and_tail_are_kept_whatever_is_sent(database: Database) -> None:
    _, lease = await holding(database)
    for stream in Stream:
        for n in range(40):
            # With gaps, as a worker leaves out what nobody will keep.
            await _add(database, lease.task_id, n * 100_000, f"{n:05d}" * 12_000, stream)
    row = (await fetch(database, "SELECT sum(ending - start) AS bytes, max(ending) AS ending FROM task_logs"))[0]
    assert row["bytes"] <= 2 * (HEAD_BYTES + TAIL_BYTES + 2 * 60_000)
    texts = await fetch(database, "SELECT text FROM task_logs WHERE stream = 'stdout' ORDER BY start")
    assert texts[0]["text"].startswith("00000")
    assert texts[-1]["text"].endswith("00039")


@pytest.mark.parametrize("end", ["running", "completed", "failed", "released"])
async def test_the_attempt_of_a_lease_is_told_also_when_it_is_over(
    database: Database, desk: LeaseService, end: str
) -> None:
    worker, lease = await holding(database)
    if end == "completed":
        await desk.complete(completion(worker, lease))
    async with database.transaction() as connection:
        if end == "failed":
            failure = service.Failure(code="c", message="m", retryable=False)
            await service.fail(connection, fence(worker, lease), failure)
        if end == "released":
            await service.release(connection, fence(worker, lease), "not now")
    if end == "released":
        await leased(database, worker)
    async with database.transaction() as connection:
        assert await logs.attempt_of(connection, lease.task_id, lease.token, worker) == 1
        assert await logs.attempt_of(connection, lease.task_id, lease.token + 7, worker) is None
        assert await logs.attempt_of(connection, lease.task_id, lease.token, lease.task_id) is None


async def test_old_output_is_pruned(database: Database) -> None:
    _, lease = await holding(database)
    await _add(database, lease.task_id, 0, "old")
    await execute(database, "UPDATE task_logs SET at = now() - interval '31 days'")
    await _add(database, lease.task_id, 0, "new", Stream.STDERR)
    async with database.transaction() as connection:
        assert await logs.prune(connection, days=30) == 1
    assert await _text(database, lease.task_id) == "new"
