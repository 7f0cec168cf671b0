"""Eviction: the end of a worker that is not trusted any more, whatever state it is in."""

from typing import Any
from uuid import UUID

from sqlalchemy.ext.asyncio import AsyncConnection

from app.admin.service import audit
from app.admin.service.access import WorkerEvictor
from app.admin.store import keys
from app.db.database import Database
from app.kernel.errors import EVICTED
from app.kernel.events import WorkerEvent
from app.kernel.states import WorkerState
from app.kernel.text import NO_REASON
from app.llm.store import permits
from app.queue.store import events
from app.workers.service import workers
from app.workers.store import workers as store

_BATCH = 50


async def evict(connection: AsyncConnection, worker_id: UUID, *, by: str, reason: str) -> dict[str, Any]:
    """End a worker: it is lost, its credential is revoked, its task goes back and its permits end; return it as stored.

    Safe to repeat. Raises WorkerNotFound.
    """
    former = await _locked(connection, worker_id)
    was_alive = await workers.lose(connection, worker_id, WorkerState.LOST, f"{EVICTED} {reason or NO_REASON}")
    # Also of one that has ended: it may be calling a language model still.
    await permits.end_lost(connection, worker_id)
    if await keys.revoke_of_worker(connection, worker_id) or was_alive:
        state = {"worker_id": str(worker_id), "name": former["name"], "incarnation": former["incarnation"]}
        await events.append_system(connection, WorkerEvent.EVICTED, {**state, "reason": reason}, worker_id)
        old_state = {**state, "state": former["state"]}
        audit.record(connection, "worker.evict", by=by, old_state=old_state, reason=reason)
    return await workers.read(connection, worker_id)


async def report_lost(connection: AsyncConnection, worker_id: UUID, *, by: str, reason: str) -> dict[str, Any]:
    """End a worker that somebody knows to be dead; return it as stored. Safe to repeat. Raises WorkerNotFound."""
    former = await _locked(connection, worker_id)
    if await workers.lose(connection, worker_id, WorkerState.LOST, f"reported dead: {reason or NO_REASON}"):
        await permits.end_lost(connection, worker_id)
        old_state = {"worker_id": str(worker_id), "name": former["name"], "state": former["state"]}
        audit.record(connection, "worker.lost", by=by, old_state=old_state, reason=reason)
    return await workers.read(connection, worker_id)


async def _locked(connection: AsyncConnection, worker_id: UUID) -> dict[str, Any]:
    # A live one locked before it is read, so that its entry tells the state that ends, and not one before.
    await store.is_stopping(connection, worker_id)
    return await workers.read(connection, worker_id)


class Evictor(WorkerEvictor):
    """Evicts workers by their own key, or the one that they registered with."""

    async def evict(self, connection: AsyncConnection, worker_id: UUID, *, by: str, reason: str) -> None:
        """Evict a worker, which revokes its key."""
        await evict(connection, worker_id, by=by, reason=reason)

    async def evict_registered_by(self, database: Database, key_id: str, by: str) -> int:
        """Evict all live workers that registered with this key; return their number."""
        count = 0
        # A transaction for some of them at a time, so that heartbeats of the others do not wait for all.
        while True:
            async with database.transaction() as connection:
                workers_of_key = await store.registered_by(connection, key_id, _BATCH)
                for worker_id in workers_of_key:
                    await evict(connection, worker_id, by=by, reason=f"the key {key_id} was revoked")
            count += len(workers_of_key)
            if len(workers_of_key) < _BATCH:
                return count
