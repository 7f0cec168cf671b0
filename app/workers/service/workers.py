"""Life of workers: registration, heartbeats, the end in order, loss, and the sweep for silent ones."""

import asyncio
import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from typing import Any
from uuid import UUID

from sqlalchemy.exc import DBAPIError
from sqlalchemy.ext.asyncio import AsyncConnection

from app.admin.service import audit
from app.admin.service.access import UNKNOWN, create_worker_key
from app.admin.store import keys
from app.db import hot_path, notify, presence
from app.db.batching import Coalescer
from app.db.database import Database, is_locked, limit_lock_waits, now
from app.db.duties import Turn
from app.db.uuids import time_ordered_uuid
from app.kernel.errors import SUPERSEDED, Locked, Unauthenticated, WorkerGone
from app.kernel.events import TaskEvent, WorkerEvent
from app.kernel.ids import WorkerId
from app.kernel.presence import absence_reason
from app.kernel.states import LIVE_STATES, WorkerState
from app.kernel.text import plural
from app.llm.store import permits
from app.queue.broker.dispatch import WorkerPreferences
from app.queue.errors import WorkerNotFound, WorkerNotReady
from app.queue.rules.tasks import LeasePolicy
from app.queue.service.leases import UNLOCKED_PAUSES, give_back, judge_loss
from app.queue.store import attempts, events
from app.queue.store.attempts import Ending
from app.workers.errors import NameTaken, PoolFull
from app.workers.rules.workers import HealthPolicy, NameHolder, may_supersede, overdue, should_hold_back, well_until
from app.workers.service import membership
from app.workers.store import hosts, pool, repeats, roster, signs_of_life, workers
from app.workers.store.workers import Heartbeat, HeartbeatReply, Registration

# A worker that finds the pool full asks again after so long, and takes the place of one that has ended.
_FULL_RETRY_SECONDS = 10
# Of a pool that vanishes as a whole: in one turn, some 0.3 s, in which heartbeats and readers of events wait.
_LOST_AT_ONCE = 50


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkerIdentity:
    """Identity of a newly registered worker; `key` is its own credential."""

    worker_id: WorkerId
    name: str
    incarnation: int
    key: str


async def register(
    connection: AsyncConnection,
    registration: Registration,
    launched: UUID | None,
    policy: HealthPolicy = HealthPolicy(),  # noqa: B008 - it cannot be changed
    *,
    max_workers: int | None = None,
) -> WorkerIdentity:
    """Give a worker its identity; a re-used name starts a new incarnation, and the old one loses its lease.

    `launched` is the worker that a provisioner has started. Raises Unauthenticated when that is not awaited any more,
    NameTaken, and PoolFull where there are `max_workers` (None: any number) besides those that it supersedes.
    """
    superseded: Sequence[NameHolder] = ()
    registration = replace(registration, lost_after_seconds=policy.lost_after_seconds)
    if launched is not None:
        worker_id = launched
        identity = await workers.register_launched(connection, worker_id, registration)
        if identity is None:
            raise Unauthenticated(UNKNOWN)
        await pool.record_registration(connection, worker_id)
    else:
        worker_id = time_ordered_uuid()
        pool_name = membership.pool_of(registration)
        if max_workers is not None or pool_name is not None:
            # Before any worker is locked: whoever adds to the pool holds it first.
            await hosts.lock_pool(connection)
        if pool_name is not None:
            registration = await membership.admit(connection, registration, pool_name)
        superseded = await _take_name(connection, registration, policy)
        if max_workers is not None and await roster.count(connection) >= max_workers:
            raise PoolFull(
                f"the configuration allows {plural(max_workers, 'worker')} (worker_pool.max_workers), and so many are "
                "there: raise it (`convener config set worker_pool.max_workers=...`), or stop others first",
                retry_after_seconds=_FULL_RETRY_SECONDS,
            )
        identity = await workers.register(connection, worker_id, registration)
    name, incarnation = identity
    # A key of its own, so that no worker can report or lease for another.
    key = await create_worker_key(connection, worker_id, f"worker {name}/{incarnation}")
    if superseded:
        new_state = {"worker_id": str(worker_id), "incarnation": incarnation}
        old_state = [{"worker_id": str(former.id), "incarnation": former.incarnation} for former in superseded]
        by = registration.registered_by or "nobody"
        audit.record(connection, "worker.supersede", by=by, old_state=old_state, new_state=new_state, reason=name)
    return WorkerIdentity(worker_id=WorkerId(worker_id), name=name, incarnation=incarnation, key=key)


async def register_again(connection: AsyncConnection, request_id: UUID, key_id: str) -> WorkerIdentity | None:
    """The worker of a registration that is repeated, with a new key in place of the one that nobody has received.

    None where there is no such worker, or it has been heard of; a rival with the same request waits for this one.
    """
    row = await repeats.unheard_worker(connection, request_id, key_id)
    if row is None:
        return None
    worker_id, name, incarnation = row
    await keys.revoke_of_worker(connection, worker_id)
    key = await create_worker_key(connection, worker_id, f"worker {name}/{incarnation}")
    return WorkerIdentity(worker_id=WorkerId(worker_id), name=name, incarnation=incarnation, key=key)


async def _take_name(
    connection: AsyncConnection, registration: Registration, policy: HealthPolicy
) -> Sequence[NameHolder]:
    """Make room for a new incarnation, and return the former one. Raises NameTaken where the key may not do that."""
    holders = await workers.live_by_name(connection, [registration.name])
    for holder in holders:
        if not may_supersede(holder, registration.registered_by, policy):
            raise NameTaken(
                f"worker {holder.id} has this name, lives, and was registered with another key: choose another --name, "
                "or stop or evict that worker first"
            )
        await _supersede(connection, holder)
    return holders


async def supersede(connection: AsyncConnection, names: Sequence[str]) -> None:
    """Make room for new incarnations, which a provisioner is to start: live workers of these names are lost."""
    for former in await workers.live_by_name(connection, names):
        await _supersede(connection, former)


async def _supersede(connection: AsyncConnection, former: NameHolder) -> None:
    await lose(connection, former.id, WorkerState.LOST, f"{SUPERSEDED} by a new worker named {former.name}")
    await keys.revoke_of_worker(connection, former.id)
    detail = {"name": former.name, "incarnation": former.incarnation}
    await events.append_system(connection, WorkerEvent.SUPERSEDED, detail, former.id)


class Heartbeats:
    """Heartbeats of all workers, coalesced into one statement at a time."""

    def __init__(self, database: Database, policy: LeasePolicy, preferences: WorkerPreferences | None = None) -> None:
        self._database = database
        self.policy = policy
        self._preferences = preferences or WorkerPreferences()
        self._beats: Coalescer[Heartbeat, HeartbeatReply | None] = Coalescer(self._flush, lambda beat: beat.worker_id)

    async def report(self, beat: Heartbeat) -> HeartbeatReply:
        """Record a heartbeat and renew the lease it names. Raises WorkerGone, WorkerNotFound, Locked."""
        reply = await self._until_unlocked(beat)
        if reply.is_first_failure:
            async with self._database.transaction() as connection:
                detail = {"reason": reply.not_ready_reason}
                await events.append_system(connection, WorkerEvent.NOT_READY, detail, beat.worker_id)
        # From its next lease on the broker prefers tasks of the assigned type.
        self._preferences.record(beat.worker_id, reply.assignment.agent)
        return reply

    async def _until_unlocked(self, beat: Heartbeat) -> HeartbeatReply:
        """The answer to a heartbeat; as long as its worker or its task is locked, it is tried again.

        A task that stays locked is told of as it is, its lease not renewed.
        """
        for pause in (*UNLOCKED_PAUSES, None):
            reply = await self._beats(beat)
            if reply is not None and (beat.task_id is None or reply.lease_state is not None):
                return reply
            # Rare, so the reason is read only now, and not for every heartbeat of a batch.
            async with self._database.transaction() as connection:
                if reply is None:
                    await _require_live(connection, beat.worker_id)
                else:
                    lease = await _held_lease(connection, beat)
                    reply = replace(reply, **lease)
                    if not lease or pause is None:
                        return reply
            if pause is not None:
                await asyncio.sleep(pause)
        raise Locked

    @property
    def stalled_seconds(self) -> float:
        """For how long heartbeats arrive but none could be written."""
        return self._beats.stalled_seconds

    async def stop(self) -> None:
        """Write the heartbeats that have arrived."""
        await self._beats.close()

    async def _flush(self, beats: Sequence[Heartbeat]) -> list[HeartbeatReply | None]:
        replies = await hot_path.run(
            self._database, lambda c: workers.record_heartbeats(c, beats, self.policy.lease_seconds)
        )
        return [replies.get(beat.worker_id) for beat in beats]


async def _held_lease(connection: AsyncConnection, beat: Heartbeat) -> dict[str, Any]:
    """The fields of a reply for the lease that a heartbeat names; empty where the worker does not hold it."""
    task = await attempts.task_status(connection, beat.task_id) if beat.task_id else None
    if task is None or (task["token"], task["worker_id"]) != (beat.token, beat.worker_id) or task["place"] != "live":
        return {}
    return {"lease_state": task["state"], "lease_expires_at": task["lease_expires_at"]}


async def _require_live(connection: AsyncConnection, worker_id: UUID) -> None:
    row = await read(connection, worker_id)
    if row["state"] not in LIVE_STATES:
        raise WorkerGone.of(row["state"], row["ended_reason"])


async def read(connection: AsyncConnection, worker_id: UUID) -> dict[str, Any]:
    """A worker as stored. Raises WorkerNotFound."""
    row = await workers.read(connection, worker_id)
    if row is None:
        raise WorkerNotFound
    return row


async def read_serving(connection: AsyncConnection, worker_id: UUID) -> dict[str, Any]:
    """A worker as stored. Raises WorkerNotReady for one that is not ready, or is to leave, unless it holds a task."""
    worker = await read(connection, worker_id)
    is_serving = worker["state"] == WorkerState.READY and worker["directive"] is None
    if not is_serving and worker["task_id"] is None:
        raise WorkerNotReady(f"this worker is {worker['directive'] or worker['state']} and holds no task")
    return worker


async def say_goodbye(connection: AsyncConnection, worker_id: UUID, reason: str) -> bool:
    """End a worker in order; a task that it still holds goes back without burning an attempt.

    Safe to repeat; False when the worker had ended already.
    """
    worker = await workers.end(connection, worker_id, WorkerState.STOPPED, reason)
    attempt = await attempts.lock_of_worker(connection, worker_id)
    if attempt is not None:
        await give_back(connection, attempt, reason)
    await permits.end_lost(connection, worker_id)
    if worker is not None:
        await pool.conclude_replacement(connection, worker_id, reason)
        notify.note(connection, notify.FLEET)
    return worker is not None


async def lose(connection: AsyncConnection, worker_id: UUID, state: WorkerState, reason: str) -> bool:
    """End a worker that has vanished: its task goes back to the queue, and its slot needs a replacement.

    False when the worker had ended already, so that a death may be reported any number of times. Its permits are left
    to expire: until its process is seen to exit it may be calling a language model, which it can reach even where it
    does not reach us.
    """
    worker = await workers.end(connection, worker_id, state, reason)
    if worker is None:
        return False
    attempt = await attempts.lock_of_worker(connection, worker_id)
    if attempt is not None:
        # Rescues count apart from failures, since the task did nothing wrong.
        verdict = await judge_loss(connection, attempt, await now(connection), f"worker lost: {reason}")
        is_final = verdict.event is TaskEvent.FAILED
        code = "unacknowledged" if is_final and verdict.unacknowledged is not None else "worker_lost"
        error = json.dumps({"code": code, "message": verdict.reason if is_final else reason, "retryable": True})
        await attempts.end(connection, attempt, verdict, Ending(outcome="lost", error=error))
    if worker.slot is not None:
        await pool.conclude_replacement(connection, worker_id, reason)
        await pool.open_replacement(connection, worker_id, slot=worker.slot, name=worker.name, cause=reason)
    notify.note(connection, notify.FLEET)
    return True


async def record_exit(connection: AsyncConnection, worker_id: UUID, state: WorkerState, reason: str) -> bool:
    """End a worker whose process has exited without a goodbye; False when the worker had ended already.

    One with the directive to stop or restart was ended by us when its grace was over: that is no loss and no crash, and
    its task goes back without burning an attempt.
    """
    if await workers.is_stopping(connection, worker_id):
        return await say_goodbye(connection, worker_id, reason)
    is_new_loss = await lose(connection, worker_id, state, reason)
    # Also when it was lost for its silence before: only now is it certain that it calls no language model any more.
    await permits.end_lost(connection, worker_id)
    return is_new_loss


async def sweep(connection: AsyncConnection, policy: HealthPolicy, turn: Turn) -> dict[str, Any]:
    """Find workers that have been silent for too long, and end them unless the fault is likely our own."""
    moment = await now(connection)
    await signs_of_life.begin_anew(connection)
    live_workers = await workers.liveness(connection)
    late = [worker.worker_id for worker in live_workers if overdue(worker, policy, moment) is not None]
    held_seconds = turn.held_back_seconds
    absence = absence_reason(await presence.read(connection), policy.presence) if late else None
    if absence is not None or should_hold_back(
        len(late),
        len(live_workers),
        policy,
        seconds_since_last_sweep=turn.seconds_since_last,
        held_back_seconds=held_seconds,
    ):
        since = moment - timedelta(seconds=held_seconds or 0.0)
        return {
            "held_back": True,
            "held_back_since": since.isoformat(),
            "overdue": len(late),
            "live": len(live_workers),
            **({"reason": absence} if absence else {}),
        }
    lost_count = await _lose_overdue(connection, late, policy, moment) if late else 0
    closed = await pool.close_replacements_on_gone_hosts(connection)
    result: dict[str, Any] = {"lost": lost_count, **({"replacements closed": closed} if closed else {})}
    if not late:
        # One that comes from now on is told to be silent for no longer.
        soonest = moment + timedelta(seconds=min(policy.lost_after_seconds, policy.start_within_seconds))
        result["none_before"] = min([soonest, *(well_until(worker, policy) for worker in live_workers)]).isoformat()
    if len(late) > _LOST_AT_ONCE:
        result["behind"] = True
        if held_seconds is not None:
            # The others have been waited for as well: the next turn goes on with them.
            result |= {"held_back": True, "held_back_since": (moment - timedelta(seconds=held_seconds)).isoformat()}
    return result


async def _lose_overdue(
    connection: AsyncConnection, worker_ids: Sequence[UUID], policy: HealthPolicy, moment: datetime
) -> int:
    """End those of these workers, a batch of them, that are still overdue once they are locked; return their number."""
    # Heartbeats pass over the rows that are locked here, but not for long.
    await limit_lock_waits(connection)
    locked_workers = await workers.lock_liveness(connection, worker_ids, _LOST_AT_ONCE)
    verdicts = [(worker.worker_id, overdue(worker, policy, moment)) for worker in locked_workers]
    return sum(
        [await _lose_unless_locked(connection, worker_id, *verdict) for worker_id, verdict in verdicts if verdict]
    )


async def _lose_unless_locked(connection: AsyncConnection, worker_id: UUID, state: WorkerState, reason: str) -> bool:
    """As `lose`; False, having done nothing, where somebody has locked what it needs: another sweep comes soon."""
    try:
        async with connection.begin_nested():
            return await lose(connection, worker_id, state, reason)
    except DBAPIError as error:
        if not is_locked(error):
            raise
        return False
