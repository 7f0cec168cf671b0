"""Checkpoints of the system: taken when they are due or asked for, and checked."""

import asyncio
import hashlib
import json
import zlib
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from app.domain.checkpoints import FORMAT, CheckpointPolicy, due, hopeless, violations
from app.domain.errors import CheckpointNotFound
from app.store import checkpoints as store
from app.store import duties
from app.store.checkpoints import Checkpoint, NewCheckpoint, Snapshot
from app.store.database import Database

_DUTY = "checkpoint"
# Most of the effect for little of the time: tasks resemble each other.
_LEVEL = 1


@dataclass(frozen=True, slots=True, kw_only=True)
class Findings:
    """What an examination of a checkpoint has found."""

    checkpoint: Checkpoint
    violations: list[str]


async def take_when_due(database: Database, policy: CheckpointPolicy, history_days: int) -> Checkpoint | None:
    """Take a regular checkpoint, and let old ones go. One replica at a time; the turn is claimed before the work.

    The work is outside of that transaction: it takes seconds, and as long as a transaction that has written anything
    is open, nobody can read the events that follow.
    """
    async with database.transaction() as connection:
        await duties.ensure(connection, _DUTY)
        turn = await duties.claim(connection, _DUTY, policy.apart_seconds)
        since = await store.since_last(connection, policy.every_changes) if turn else None
        reason = due(since, policy) if turn else None
        if reason is None:
            return None
        await duties.done(connection, _DUTY, {"reason": reason}, held_back=False)
    taken = await take(database, reason, policy=policy)
    async with database.transaction() as connection:
        await store.prune(connection, keep=policy.keep, days=history_days)
    return taken


async def take(
    database: Database,
    reason: str,
    *,
    taken_by: str | None = None,
    policy: CheckpointPolicy = CheckpointPolicy(),  # noqa: B008 - frozen
) -> Checkpoint:
    """Take a checkpoint now. Taking two is as good as taking one."""
    async with database.transaction() as connection:
        snapshot = await store.snapshot(connection, policy)
        queue = await store.queue(connection)
    new = await asyncio.to_thread(_pack, snapshot, queue, reason, taken_by)
    async with database.transaction() as connection:
        return await store.insert(connection, new)


async def read(database: Database, checkpoint_id: int) -> Checkpoint:
    """What is known of a checkpoint. Raises CheckpointNotFound."""
    async with database.transaction() as connection:
        found = await store.read(connection, checkpoint_id)
    if found is None:
        raise CheckpointNotFound
    return found


async def content(database: Database, checkpoint_id: int) -> bytes:
    """The content, as JSON. Raises CheckpointNotFound."""
    async with database.transaction() as connection:
        packed = await store.content(connection, checkpoint_id)
    if packed is None:
        raise CheckpointNotFound
    return await asyncio.to_thread(zlib.decompress, packed)


async def verify(database: Database, checkpoint_id: int) -> Findings:
    """Recompute the checksum and check every invariant of the content. Raises CheckpointNotFound."""
    known = await read(database, checkpoint_id)
    try:
        text = await content(database, checkpoint_id)
    except zlib.error as error:
        return Findings(checkpoint=known, violations=[f"the content cannot be unpacked: {error}"])
    found = await asyncio.to_thread(examine, text, known.sha256)
    return Findings(checkpoint=known, violations=found)


def examine(text: bytes, sha256: bytes) -> list[str]:
    """What is wrong with the content of a checkpoint, given the checksum that it had when it was taken."""
    if hashlib.sha256(text).digest() != sha256:
        return ["the content is not what was taken: its SHA-256 differs"]
    try:
        document = json.loads(text)
    except ValueError as error:
        return [f"the content is no JSON: {error}"]
    return violations(document) if isinstance(document, dict) else ["the content is no JSON object"]


def _pack(snapshot: Snapshot, queue: list[dict[str, Any]], reason: str, taken_by: str | None) -> NewCheckpoint:
    lost = hopeless(snapshot.tasks.keys(), snapshot.edges) if snapshot.is_cut else set()
    tasks = [line for task, line in snapshot.tasks.items() if task not in lost]
    edges = [
        json.dumps({"task_id": task, "depends_on": awaited}) for task, awaited in snapshot.edges if task not in lost
    ]
    counts = {"tasks": len(tasks), "leased": snapshot.leased, "dependencies": len(edges)}
    counts["context"] = len(snapshot.parts["context"])
    head = {
        "format": FORMAT,
        "taken_at": snapshot.taken_at.isoformat(),
        "revision": snapshot.revision,
        "event_cursor": str(snapshot.cursor),
        "is_cut": snapshot.is_cut,
        "counts": counts,
        "queue": queue,
    }
    text = _document(head, {**snapshot.parts, "dependencies": edges, "tasks": tasks})
    return NewCheckpoint(
        taken_at=snapshot.taken_at,
        reason=reason,
        taken_by=taken_by,
        revision=snapshot.revision,
        cursor=snapshot.cursor,
        counts=json.dumps(counts),
        is_cut=snapshot.is_cut,
        size_bytes=len(text),
        sha256=hashlib.sha256(text).digest(),
        content=zlib.compress(text, _LEVEL),
    )


def _document(head: dict[str, Any], lists: dict[str, list[str]]) -> bytes:
    """A JSON object of plain values and of lists whose items are JSON text already."""
    fields = [f"{json.dumps(name)}:{json.dumps(value)}" for name, value in head.items()]
    fields += [f"{json.dumps(name)}:{_listed(items)}" for name, items in lists.items()]
    return ("{" + ",\n".join(fields) + "}\n").encode()


def _listed(items: Iterable[str]) -> str:
    return "[" + ",\n".join(items) + "]"
