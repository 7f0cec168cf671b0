"""Output of attempts, in segments of each stream of each lease."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any
from uuid import UUID

from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncConnection

from app.db import pages
from app.db.namespaces import WITHIN
from app.db.retention import pruning
from app.kernel.states import TaskState
from app.queue.rules.logs import HEAD_BYTES, SEGMENT_BYTES, TAIL_BYTES, Position, Stream


@dataclass(frozen=True, slots=True, kw_only=True)
class Segment:
    """Text of a stream from the byte `start` to the byte `ending`."""

    token: int
    attempt: int
    stream: Stream
    start: int
    ending: int
    text: str
    at: datetime


# Also of a lease that is over, whose last output may come late. Nobody waits for the disk: what a crash takes is only
# output. COALESCE looks at the next table only where the one before has nothing.
_ATTEMPT = text("""
SELECT coalesce(
    (SELECT failures + 1 FROM tasks WHERE id = :id AND token = :token AND worker_id = :worker_id),
    (SELECT attempt FROM task_attempts WHERE task_id = :id AND token = :token AND worker_id = :worker_id LIMIT 1),
    (SELECT failures + 1 FROM task_history WHERE id = :id AND token = :token AND worker_id = :worker_id LIMIT 1)
), set_config('synchronous_commit', 'off', true)
""")

_OF_STREAM = "task_id = :id AND token = :token AND stream = :stream"

# Only what follows the last segment, so that a repetition changes nothing and nobody stores more than the bounds.
_ADD = text(f"""
WITH last AS MATERIALIZED (
    SELECT start, ending FROM task_logs WHERE {_OF_STREAM} ORDER BY start DESC LIMIT 1 FOR UPDATE
), appended AS (
    UPDATE task_logs l SET text = l.text || CAST(:text AS text), ending = :ending, at = clock_timestamp() FROM last
    WHERE l.task_id = :id AND l.token = :token AND l.stream = :stream AND l.start = last.start
      AND last.ending = :start AND :ending - last.start <= {SEGMENT_BYTES}
    RETURNING l.start
), trimmed AS (
    DELETE FROM task_logs WHERE {_OF_STREAM} AND start >= {HEAD_BYTES} AND ending <= :ending - {TAIL_BYTES}
)
INSERT INTO task_logs (task_id, token, attempt, stream, start, ending, text, at)
SELECT CAST(:id AS uuid), CAST(:token AS bigint), CAST(:attempt AS int), CAST(:stream AS text),
       CAST(:start AS bigint), CAST(:ending AS bigint), CAST(:text AS text), clock_timestamp()
WHERE NOT EXISTS (SELECT FROM appended) AND :start >= coalesce((SELECT ending FROM last), 0)
ON CONFLICT DO NOTHING
""")

_READ = """
SELECT l.token, l.attempt, l.stream, l.start, l.ending, l.text, l.at
FROM task_logs l
LEFT JOIN unnest(CAST(:tokens AS bigint[]), CAST(:stdout AS bigint[]), CAST(:stderr AS bigint[]))
    AS had (token, stdout, stderr) ON had.token = l.token
WHERE l.task_id = :id AND l.token > :floor
  AND l.ending > coalesce(CASE l.stream WHEN 'stdout' THEN had.stdout ELSE had.stderr END, 0)
  AND (CAST(:attempt AS int) IS NULL OR l.attempt = :attempt) AND (CAST(:only AS text) IS NULL OR l.stream = :only)
ORDER BY l.token, l.at, l.stream, l.start
"""

_STATE = text(f"""
SELECT state FROM tasks WHERE id = :id AND {WITHIN}
UNION ALL SELECT state FROM task_history WHERE id = :id AND {WITHIN}
""")


async def attempt_of(connection: AsyncConnection, task_id: UUID, token: int, worker_id: UUID) -> int | None:
    """Number of the attempt that this worker makes, or has made, under this token; None when it has none."""
    row = (await connection.execute(_ATTEMPT, {"id": task_id, "token": token, "worker_id": worker_id})).one()
    attempt: int | None = row[0]
    return attempt


async def add(
    connection: AsyncConnection, task_id: UUID, token: int, attempt: int, stream: Stream, start: int, piece: str
) -> None:
    """Keep a piece that begins at this byte of its stream, and drop what lies between its head and its tail."""
    ending = start + len(piece.encode())
    values = {"id": task_id, "token": token, "attempt": attempt, "stream": stream.value}
    await connection.execute(_ADD, {**values, "start": start, "ending": ending, "text": piece})


async def read(
    connection: AsyncConnection,
    task_id: UUID,
    after: Position,
    *,
    attempt: int | None = None,
    stream: Stream | None = None,
    limit: int,
) -> Sequence[Segment]:
    """Segments with something behind the position, by lease and time, as far as a page holds them."""
    tokens, stdout, stderr = (
        (list(column) for column in zip(*after.leases, strict=True)) if after.leases else ([], [], [])
    )
    position = {"floor": after.floor, "tokens": tokens, "stdout": stdout, "stderr": stderr}
    values = {"id": task_id, **position, "attempt": attempt, "only": stream and stream.value}
    page = await pages.read(connection, _READ, values, limit, _segment)
    return page.items


def _segment(row: dict[str, Any]) -> Segment:
    return Segment(**{**row, "stream": Stream(row["stream"])})


async def task_state(connection: AsyncConnection, task_id: UUID, namespace: str | None) -> TaskState | None:
    """State of a task, of this namespace if one is given; None when there is none."""
    state = (await connection.execute(_STATE, {"id": task_id, "namespace": namespace})).scalar()
    return None if state is None else TaskState(state)


prune = pruning("task_logs", "at")
