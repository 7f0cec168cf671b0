"""What happens to workers: register, report, drain, stop, and being found lost."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import Any
from uuid import UUID

from sqlalchemy.ext.asyncio import AsyncConnection

from app.admin.service.access import create_key
from app.db import hot_path, notify
from app.db.batching import Coalescer
from app.db.database import Database, now
from app.db.duties import Turn
from app.db.uuids import time_ordered_uuid
from app.kernel.access import Role
from app.kernel.ids import WorkerId
from app.kernel.states import WorkerState
from app.llm.store import permits
from app.queue.broker.dispatch import WorkerPreferences
from app.queue.errors import WorkerGone, WorkerNotFound
from app.queue.rules.tasks import LeasePolicy, after_rescue
from app.queue.service.leases import give_back, retry_policy
from app.queue.store import attempts
from app.queue.store.attempts import Ending
from app.workers.rules.workers import HealthPolicy, hold_back, overdue
from app.workers.store import pool, workers
from app.workers.store.workers import Heartbeat, HeartbeatReply, Registration


@dataclass(frozen=True, slots=True, kw_only=True)
class Registered:
    """A worker's new identity; `key` is its own credential."""

    worker_id: WorkerId
    name: str
    incarnation: int
    key: str


async def register(connection: AsyncConnection, said: Registration, launch_token: UUID | None) -> Registered:
    """Give a worker its identity. A re-used name starts a new incarnation and takes the old one's lease away.

    `launch_token` is the id under which a provisioner requested the worker. Raises WorkerGone when that is over.
    """
    if launch_token is not None:
        worker_id = launch_token
        identity = await workers.register_launched(connection, worker_id, said)
        if identity is None:
            raise WorkerGone("the worker that was requested under this launch token is over", reason="superseded")
        await pool.registered(connection, worker_id)
    else:
        worker_id = time_ordered_uuid()
        await supersede(connection, said.name)
        identity = await workers.register(connection, worker_id, said)
    name, incarnation = identity
    _, key = await create_key(connection, Role.WORKER, f"worker {name}/{incarnation}", worker_id)
    return Registered(worker_id=WorkerId(worker_id), name=name, incarnation=incarnation, key=key)


async def supersede(connection: AsyncConnection, name: str) -> None:
    """Make room for a new incarnation: whoever bears the name now is over."""
    for former in await workers.live_by_name(connection, name):
        await lose(connection, former, WorkerState.LOST, f"superseded by a new worker named {name}")


class Heartbeats:
    """Heartbeats of all workers, coalesced into one statement at a time."""

    def __init__(self, database: Database, policy: LeasePolicy, preferences: WorkerPreferences | None = None) -> None:
        self._database = database
        self._policy = policy
        self._preferences = preferences or WorkerPreferences()
        self._beats: Coalescer[Heartbeat, HeartbeatReply | None] = Coalescer(self._flush, lambda beat: beat.worker_id)

    async def report(self, beat: Heartbeat) -> HeartbeatReply:
        """Record a heartbeat and renew the lease it names. Raises WorkerGone, WorkerNotFound."""
        pulse = await self._beats(beat)
        if pulse is None:
            async with self._database.transaction() as connection:
                await self._raise_gone(connection, beat.worker_id)
        assert pulse is not None
        self._preferences.record(beat.worker_id, pulse.assignment.agent)
        return pulse

    async def stop(self) -> None:
        """Finish what has arrived."""
        await self._beats.close()

    async def _flush(self, beats: Sequence[Heartbeat]) -> list[HeartbeatReply | None]:
        seen = await hot_path.run(self._database, lambda c: workers.beat(c, beats, self._policy.lease_seconds))
        return [seen.get(beat.worker_id) for beat in beats]

    @staticmethod
    async def _raise_gone(connection: AsyncConnection, worker_id: WorkerId) -> None:
        row = await workers.read(connection, worker_id)
        if row is None:
            raise WorkerNotFound
        reason = "superseded" if "superseded" in (row["ended_reason"] or "") else row["state"]
        raise WorkerGone(f"this worker is {row['state']}: {row['ended_reason']}", reason=reason)


async def read(connection: AsyncConnection, worker_id: UUID) -> dict[str, Any]:
    """Everything about a worker. Raises WorkerNotFound."""
    row = await workers.read(connection, worker_id)
    if row is None:
        raise WorkerNotFound
    return row


async def say_goodbye(connection: AsyncConnection, worker_id: UUID, reason: str) -> bool:
    """A worker stops in order; what it still holds goes back without burning an attempt.

    Safe to repeat; false when the worker was over already.
    """
    ended = await workers.end(connection, worker_id, WorkerState.STOPPED, reason)
    attempt = await attempts.lock_of_worker(connection, worker_id)
    if attempt is not None:
        await give_back(connection, attempt, reason)
    await permits.end_lost(connection, worker_id)
    if ended is not None:
        notify.note(connection, notify.FLEET)
    return ended is not None


async def lose(connection: AsyncConnection, worker_id: UUID, state: WorkerState, reason: str) -> bool:
    """A worker is gone without a word: its task goes back to the queue, its slot wants a replacement.

    As long as nobody has seen its process exit it may still be calling a language model, whom it reaches where it does
    not reach us: its permits are left to their time. False when the worker was over already, so that any number of
    witnesses may report the same death.
    """
    ended = await workers.end(connection, worker_id, state, reason)
    if ended is None:
        return False
    attempt = await attempts.lock_of_worker(connection, worker_id)
    if attempt is not None:
        verdict = after_rescue(
            retry_policy(attempt), failures=attempt.failures, rescues=attempt.rescues, reason=f"worker lost: {reason}"
        )
        error = json.dumps({"code": "worker_lost", "message": reason, "retryable": True})
        await attempts.end(connection, attempt, verdict, Ending(outcome="lost", error=error))
    if ended.slot is not None:
        await pool.open_replacement(connection, worker_id, slot=ended.slot, name=ended.name, cause=reason)
    notify.note(connection, notify.FLEET)
    return True


async def see_exit(connection: AsyncConnection, worker_id: UUID, state: WorkerState, reason: str) -> bool:
    """The process of a worker has ended without a goodbye; false when the worker was over already.

    One that was told to stop or restart was ended by us when its grace was over: that is no loss and no crash, and its
    task goes back unharmed.
    """
    if await workers.is_stopping(connection, worker_id):
        return await say_goodbye(connection, worker_id, reason)
    lost = await lose(connection, worker_id, state, reason)
    # Also of one that was silent and given up before: only now is it certain that it calls nobody any more.
    await permits.end_lost(connection, worker_id)
    return lost


async def sweep(connection: AsyncConnection, policy: HealthPolicy, turn: Turn) -> dict[str, Any]:
    """Find workers that have been silent for too long."""
    moment = await now(connection)
    seen = await workers.sightings(connection)
    late = [(sighting, verdict) for sighting in seen if (verdict := overdue(sighting, policy, moment)) is not None]
    held = turn.held_back_seconds
    if hold_back(
        len(late), len(seen), policy, seconds_since_last_sweep=turn.seconds_since_last, held_back_seconds=held
    ):
        since = moment - timedelta(seconds=held or 0.0)
        return {"held_back": True, "held_back_since": since.isoformat(), "overdue": len(late), "live": len(seen)}
    for sighting, (state, reason) in late:
        await lose(connection, sighting.worker_id, state, reason)
    return {"lost": len(late)}
