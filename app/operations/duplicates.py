"""Noticing that the same work was submitted a moment ago, where the service is told to look."""

import hashlib
import json
from collections.abc import Iterable
from uuid import UUID

from sqlalchemy.ext.asyncio import AsyncConnection

from app.store import fingerprints
from app.store.tasks import NewTask


async def find(connection: AsyncConnection, new: Iterable[NewTask], window_seconds: float) -> dict[UUID, UUID]:
    """New task -> the task that is the same work, for those whose agent type and payload were submitted lately.

    A chosen id or an idempotency key says what the same task is better than its payload does.
    """
    digests = {task.id: _digest(task) for task in new if not task.id_is_chosen}
    if window_seconds <= 0 or not digests:
        return {}
    first: dict[bytes, UUID] = {}
    for task_id, digest in digests.items():
        first.setdefault(digest, task_id)
    known = await fingerprints.duplicates(connection, first, window_seconds)
    same = {task_id: known.get(digest, first[digest]) for task_id, digest in digests.items()}
    return {task_id: other for task_id, other in same.items() if other != task_id}


def _digest(task: NewTask) -> bytes:
    """Equal for equal work, whatever the order of the keys in the payload."""
    body = json.dumps([task.agent_type, json.loads(task.payload)], sort_keys=True)
    return hashlib.sha256(body.encode()).digest()
