"""Checkpoints of the system: taken when due or on request, verified, and restored into an empty database."""

import asyncio
import hashlib
import json
import threading
import time
import zlib
from collections.abc import Awaitable, Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

from sqlalchemy.ext.asyncio import AsyncConnection

from app.admin.service import audit
from app.admin.store import config
from app.agents.store import performance, weights
from app.db import duties, schema
from app.db.database import Database, disable_time_limits, now
from app.goals.rules.goals import GoalAction
from app.goals.service import budget_enforcement, iterations
from app.goals.store import iterations as iteration_store
from app.kernel.errors import Refused
from app.memory.errors import CheckpointBusy, CheckpointNotFound
from app.memory.rules.backups import without_lease
from app.memory.rules.checkpoints import FORMAT, Activity, CheckpointPolicy, due_reason, unreachable_tasks
from app.memory.rules.restored_values import find_odd_values
from app.memory.service.examination import examine_content, examine_elsewhere
from app.memory.store import backups, restores
from app.memory.store import checkpoints as store
from app.memory.store.checkpoints import Checkpoint, NewCheckpoint, Snapshot
from app.memory.store.packed_lines import LEVEL
from app.queue.rules.tasks import LEASED
from app.queue.store import events

_DUTY_NAME = "checkpoint"
_PIECE_BYTES = 256 << 10
_RETRY_SECONDS = 2
# One at a time: each takes a processor.
_turn = threading.Semaphore(1)
_EMPTY_HINT = "give it a database that is empty, or that has just been migrated"


@dataclass(frozen=True, slots=True, kw_only=True)
class Findings:
    """Result of verifying a checkpoint: a sentence for each violation."""

    checkpoint: Checkpoint
    violations: list[str]


@dataclass(frozen=True, slots=True, kw_only=True)
class RestoredCheckpoint:
    """Numbers of the rows that a restore has inserted; `released` of the tasks were leased in the checkpoint."""

    taken_at: str
    tasks: int
    released: int
    dependencies: int
    context: int
    is_cut: bool


async def take_when_due(database: Database, policy: CheckpointPolicy, history_days: int) -> Checkpoint | None:
    """Take a regular checkpoint when one is due, and delete old ones; None when none is due.

    One replica at a time claims the duty's turn, and commits that before the work: the work takes seconds, and while a
    transaction that has written anything is open, nobody can read the events that follow it. A crash in between loses
    one checkpoint; the next is due after the usual pause.
    """
    async with database.transaction() as connection:
        await duties.ensure(connection, _DUTY_NAME)
        turn = await duties.claim(connection, _DUTY_NAME, policy.min_pause_seconds)
        if turn is None:
            return None
        reason = due_reason(await _activity(connection, policy), policy)
        if reason is None:
            return None
        await duties.record(connection, _DUTY_NAME, {"reason": reason}, held_back=False)
    begun_at = time.monotonic()
    checkpoint = await take(database, reason, policy=policy)
    took = round(time.monotonic() - begun_at, 1)
    async with database.transaction() as connection:
        await duties.conclude(connection, turn, {"reason": reason, "seconds": took}, counts=True)
        await store.prune(connection, keep=policy.keep, days=history_days)
    return checkpoint


async def _activity(connection: AsyncConnection, policy: CheckpointPolicy) -> Activity | None:
    activity = await store.read_activity(connection, policy.every_changes)
    if activity is None:
        return None
    turns = await duties.last_turns(connection, [_DUTY_NAME, budget_enforcement.FOLD_DUTY])
    own, fold = (turns[duty].result if duty in turns else {} for duty in (_DUTY_NAME, budget_enforcement.FOLD_DUTY))
    return replace(activity, last_took=own.get("seconds", 0.0), is_behind=fold.get("behind", False))


async def take(
    database: Database,
    reason: str,
    *,
    taken_by: str | None = None,
    policy: CheckpointPolicy = CheckpointPolicy(),  # noqa: B008 - frozen
) -> Checkpoint:
    """Take a checkpoint now; a repeated call takes another one, which does no harm. Raises CheckpointBusy."""
    if not _turn.acquire(blocking=False):
        raise CheckpointBusy(retry_after_seconds=_RETRY_SECONDS)
    try:
        return await _take(database, reason, taken_by, policy)
    finally:
        _turn.release()


async def _take(database: Database, reason: str, taken_by: str | None, policy: CheckpointPolicy) -> Checkpoint:
    # One read-only transaction with one snapshot, so that tasks, edges and counts agree; and another one to store it,
    # because none should stay open during the packing. The cursor comes first, so the rows hold all up to it.
    async with database.transaction() as connection:
        cursor = await events.latest(connection)
    async with database.transaction() as connection:
        snapshot = await store.read_snapshot(connection, cursor, policy)
        queue = await store.count_queue(connection)
    new = await asyncio.to_thread(_pack, snapshot, queue, reason, taken_by, policy)
    async with database.transaction() as connection:
        checkpoint = await store.insert(connection, new)
        if taken_by is not None:
            taken = {"id": checkpoint.id, "sha256": checkpoint.sha256.hex()}
            audit.record(connection, "checkpoint.take", by=taken_by, new_state=taken, reason=reason)
        return checkpoint


async def read(database: Database, checkpoint_id: int) -> Checkpoint:
    """Read a checkpoint without its content. Raises CheckpointNotFound."""
    async with database.transaction() as connection:
        checkpoint = await store.read(connection, checkpoint_id)
    if checkpoint is None:
        raise CheckpointNotFound
    return checkpoint


async def read_pieces(database: Database, checkpoint_id: int) -> Iterator[bytes]:
    """Read the content of a checkpoint, as pieces of JSON. Raises CheckpointNotFound."""
    return _unpack(await _read_packed(database, checkpoint_id))


async def verify(database: Database, checkpoint_id: int) -> Findings:
    """Recompute the checksum and check every invariant of the content. Raises CheckpointNotFound, VerificationBusy."""
    checkpoint = await read(database, checkpoint_id)
    violations = await examine_elsewhere(await _read_packed(database, checkpoint_id), checkpoint.sha256)
    return Findings(checkpoint=checkpoint, violations=violations)


async def restore(database: Database, content: bytes, sha256: bytes, by: str) -> RestoredCheckpoint:
    """Insert the content of a checkpoint into an empty database, migrating it first where it has no schema.

    Raises Refused for a damaged checkpoint, and for a database in use. This process must have no other connection to
    the database.
    """
    violations = examine_content(content, sha256)
    if violations:
        raise Refused("the checkpoint is damaged: " + "; ".join(violations[:3]))
    document = json.loads(content)
    await _check_empty(database)
    # Outside of the transaction that follows: a migration commits by itself, and an empty schema does no harm.
    await schema.migrate(database.engine)
    async with database.transaction() as connection:
        await disable_time_limits(connection)
        # Locked first, and looked at then: otherwise a service could start to work between the look and the lock.
        await backups.lock_out_writers(connection)
        if not await backups.is_unused(connection):
            raise Refused("the database is not empty", _EMPTY_HINT)
        # Before any row, so that also the events of the restore itself follow all that was ever read.
        await backups.advance_transactions(connection, at_least=int(document["event_cursor"].partition("-")[0]))
        restored = await _insert_content(connection, document)
        source = {"taken_at": restored.taken_at, "sha256": sha256.hex(), "tasks": restored.tasks}
        audit.record(connection, "checkpoint.restore", by=by, new_state=source)
        return restored


async def _check_empty(database: Database) -> None:
    async with database.transaction() as connection:
        if await backups.is_empty(connection):
            return
        sessions = await backups.count_other_sessions(connection)
        if sessions:
            raise Refused(
                f"the service is at work on this database: {sessions} connections", "stop the API and the loops"
            )
    revision = await schema.revision(database.engine)
    if revision != schema.head():
        holds = f"a schema at revision {revision}" if revision else "tables that are not ours"
        raise Refused(f"the database is not empty: it has {holds}", _EMPTY_HINT)


async def _insert_content(connection: AsyncConnection, document: Mapping[str, Any]) -> RestoredCheckpoint:
    # Checkpoints of earlier versions have fewer parts.
    parts = {part: document.get(part, []) for part in restores.TABLES}
    for part, table in restores.TABLES.items():
        columns = restores.unknown_columns(table, parts[part])
        if columns:
            raise Refused(f"it was taken by another version, whose {table.name} have {', '.join(sorted(columns))}")
        if (odd := next(find_odd_values(part, parts[part], restores.column_types(table)), None)) is not None:
            raise Refused(f"the checkpoint is damaged: {odd}")
    moment = (await now(connection)).isoformat()
    # A service that has begun here has written its first version, and the last one is in force.
    last = await config.last(connection)
    for row in parts["config_versions"]:
        row["version"] = max(row["version"], last.version + 1 if last else 0)
    # No worker of this database holds a lease, whatever the checkpoint says.
    parts["tasks"] = [without_lease(task, moment) for task in document["tasks"]]
    if parts["llm_models"]:
        await restores.forget_models(connection)
    for part, table in restores.TABLES.items():
        if parts[part]:
            await restores.insert_rows(connection, table, parts[part])
    released_ids = [task["id"] for task in document["tasks"] if task["state"] in LEASED]
    await restores.finish_restore(connection, released_ids, f"restored from the checkpoint of {document['taken_at']}")
    numbers = sorted((row["goal_id"], row["number"]) for row in parts["goal_iterations"])
    await _check_readable(connection, dict(numbers))
    return RestoredCheckpoint(
        taken_at=document["taken_at"],
        tasks=len(document["tasks"]),
        released=len(released_ids),
        dependencies=len(document["dependencies"]),
        context=len(document["context"]),
        is_cut=document["is_cut"],
    )


async def _read_packed(database: Database, checkpoint_id: int) -> bytes:
    async with database.transaction() as connection:
        packed_content = await store.read_content(connection, checkpoint_id)
    if packed_content is None:
        raise CheckpointNotFound
    return packed_content


async def _check_readable(connection: AsyncConnection, last_numbers: Mapping[str, int]) -> None:
    """Raise Refused unless a service can read what it works by: the database takes any JSON for a document.

    `last_numbers` are those of the last iteration of each goal.
    """
    readers: Mapping[str, Callable[[AsyncConnection], Awaitable[object]]] = {
        "configuration": config.last,
        "weights": weights.last,
        "results of agents": performance.read_results,
        "iterations of goals": partial(_replay_iterations, last_numbers=last_numbers),
    }
    for name, reader in readers.items():
        try:
            await reader(connection)
        except (LookupError, TypeError, AttributeError, ValueError, ArithmeticError) as error:
            raise Refused(f"the checkpoint is damaged: its {name} cannot be read ({error!r:.200})") from None


async def _replay_iterations(connection: AsyncConnection, last_numbers: Mapping[str, int]) -> None:
    for goal_id, number in last_numbers.items():
        # Their goal may be beyond what a cut checkpoint holds.
        history = await iteration_store.read_up_to(connection, goal_id, number)
        iterations.replay(goal_id, history)
        for iteration in history:
            GoalAction(json.loads(iteration.decision)["decision"])


def _unpack(packed_content: bytes) -> Iterator[bytes]:
    unpacker = zlib.decompressobj()
    for start in range(0, len(packed_content), _PIECE_BYTES):
        packed_piece = packed_content[start : start + _PIECE_BYTES]
        while packed_piece:
            yield unpacker.decompress(packed_piece, _PIECE_BYTES)
            packed_piece = unpacker.unconsumed_tail
    yield unpacker.flush()


def _pack(
    snapshot: Snapshot,
    queue: list[dict[str, Any]],
    reason: str,
    taken_by: str | None,
    policy: CheckpointPolicy,
) -> NewCheckpoint:
    # Where a cut leaves a task out, those that wait for it would stay blocked for ever after a restore.
    unreachable = unreachable_tasks(set(snapshot.task_ids), snapshot.edges) if snapshot.is_cut else set()
    edges = [edge for edge in snapshot.edges if edge[0] not in unreachable]
    counts = {
        "tasks": len(snapshot.tasks) - len(unreachable),
        "leased": snapshot.leased_count,
        "dependencies": len(edges),
        "context": len(snapshot.parts["context"]),
    }
    head = {
        "format": FORMAT,
        "taken_at": snapshot.taken_at.isoformat(),
        "revision": snapshot.revision,
        "event_cursor": str(snapshot.cursor),
        "is_cut": snapshot.is_cut,
        "limits": {"tasks": policy.max_tasks, "context": policy.max_entries, "bytes": policy.max_bytes},
        "counts": counts,
        "queue": queue,
    }
    lists: dict[str, Iterable[str]] = {
        **snapshot.parts,
        "dependencies": (json.dumps({"task_id": task, "depends_on": dependency}) for task, dependency in edges),
        "tasks": (
            line for task, line in zip(snapshot.task_ids, snapshot.tasks, strict=True) if task not in unreachable
        ),
    }
    size, digest, compressor, packed = 0, hashlib.sha256(), zlib.compressobj(LEVEL), bytearray()
    for text in _json_document(head, lists):
        piece = text.encode()
        size += len(piece)
        digest.update(piece)
        packed += compressor.compress(piece)
    packed += compressor.flush()
    return NewCheckpoint(
        taken_at=snapshot.taken_at,
        reason=reason,
        taken_by=taken_by,
        revision=snapshot.revision,
        cursor=snapshot.cursor,
        counts=counts,
        is_cut=snapshot.is_cut,
        size_bytes=size,
        sha256=digest.digest(),
        content=bytes(packed),
    )


def _json_document(head: Mapping[str, Any], lists: Mapping[str, Iterable[str]]) -> Iterator[str]:
    """A JSON object of plain values, and of lists whose items are JSON text as the database wrote it, in pieces."""
    # Put together as text: to parse and write 20,000 rows anew would take seconds, and could change their numbers. And
    # never as a whole: the memory of tens of megabytes, several times over, would not come back to the system.
    yield "{" + ",\n".join(f"{json.dumps(name)}:{json.dumps(value)}" for name, value in head.items())
    for name, items in lists.items():
        yield f",\n{json.dumps(name)}:["
        for number, item in enumerate(items):
            yield f",\n{item}" if number else item
        yield "]"
    yield "}\n"
