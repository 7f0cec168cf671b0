"""What a worker does with its lease: acknowledge, report progress, complete, fail or release it."""

import json
import random
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta

from sqlalchemy.ext.asyncio import AsyncConnection

from app.db import hot_path, notify
from app.db.batching import Coalescer
from app.db.database import Database, now
from app.kernel.errors import ConvenerError
from app.kernel.ids import TaskId, WorkerId
from app.kernel.states import TaskState
from app.queue.errors import LeaseExpired, LeaseNotFound, LeaseSuperseded, TaskCancelled
from app.queue.rules import tasks
from app.queue.rules.events import TaskEvent
from app.queue.rules.fair_queueing import FairQueue
from app.queue.rules.tasks import LeasePolicy, RetryPolicy, Verdict, after_failure
from app.queue.store import attempts, completions
from app.queue.store.attempts import Attempt, Ending
from app.queue.store.completions import Completion, Renewal, Service


@dataclass(frozen=True, slots=True, kw_only=True)
class Fence:
    """Which lease a call is about and who calls; every change is a compare-and-set on all three."""

    task_id: TaskId
    token: int
    worker_id: WorkerId


@dataclass(frozen=True, slots=True, kw_only=True)
class Failure:
    """Why an attempt failed, in the words of the worker. `detail` and `usage` are JSON text."""

    code: str
    message: str
    retryable: bool
    detail: str | None = None
    usage: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Standing:
    """Where the task is after the call."""

    state: TaskState
    run_at: datetime | None = None


class LeaseService:
    """Completions and signs of life, coalesced; failures and releases, one transaction each."""

    def __init__(self, database: Database, policy: LeasePolicy, fairness: FairQueue) -> None:
        self._database = database
        self._policy = policy
        self._fairness = fairness
        self._completions: Coalescer[Completion, Service | None] = Coalescer(self._complete, lambda c: c.task_id)
        self._signs: Coalescer[Renewal, datetime | None] = Coalescer(self._sign, lambda s: s.task_id)

    async def stop(self) -> None:
        """Finish what has arrived."""
        await self._completions.close()
        await self._signs.close()

    async def complete(self, completion: Completion) -> None:
        """Accept a result, once: the same call again is accepted again, anything else is refused.

        Raises LeaseExpired, LeaseSuperseded, TaskCancelled, LeaseNotFound.
        """
        service = await self._completions(completion)
        if service is not None:
            self._fairness.observe(service.agent_type, service.seconds)
            return
        fence = Fence(task_id=completion.task_id, token=completion.token, worker_id=completion.worker_id)
        async with self._database.transaction() as connection:
            await refuse(connection, fence, unless_completed_with=completion.result_hash)

    async def sign(self, sign: Renewal) -> datetime:
        """Acknowledge and renew; returns the new expiry. Raises as `complete` does."""
        expires_at = await self._signs(sign)
        if expires_at is not None:
            return expires_at
        fence = Fence(task_id=sign.task_id, token=sign.token, worker_id=sign.worker_id)
        async with self._database.transaction() as connection:
            raise await refusal(connection, fence)

    async def _complete(self, calls: Sequence[Completion]) -> list[Service | None]:
        accepted = await hot_path.run(self._database, lambda c: completions.complete(c, calls))
        rest = [call for call in calls if call.task_id not in accepted]
        if rest:
            late, freed = await hot_path.run(self._database, lambda c: completions.complete_and_unblock(c, rest))
            accepted |= late
            self._database.announcer.announce({notify.work(lane): tag for lane, tag in freed.items()})
        if accepted:
            self._database.announcer.announce([notify.EVENTS])
        return [accepted.get(call.task_id) for call in calls]

    async def _sign(self, signs: Sequence[Renewal]) -> list[datetime | None]:
        renewed = await hot_path.run(self._database, lambda c: completions.sign(c, signs, self._policy))
        return [renewed.get(sign.task_id) for sign in signs]


async def fail(connection: AsyncConnection, fence: Fence, failure: Failure) -> Standing:
    """End an attempt as failed: the task is tried again later, or given up. Safe to repeat."""
    attempt = await attempts.held(connection, fence.task_id, fence.token, fence.worker_id)
    if attempt is None:
        return await _repeated(connection, fence, "failed")
    verdict = after_failure(
        retry_policy(attempt),
        failures=attempt.failures,
        rescues=attempt.rescues,
        retryable=failure.retryable,
        now=await now(connection),
        draw=random.random(),  # noqa: S311 - jitter, not a secret
    )
    ending = Ending(
        outcome="failed", error=_json(failure), usage=failure.usage, is_fault=tasks.is_agent_fault(failure.code)
    )
    await attempts.end(connection, attempt, verdict, ending)
    state = TaskState.FAILED if verdict.event is TaskEvent.FAILED else TaskState.PENDING
    return Standing(state=state, run_at=verdict.run_at)


async def release(connection: AsyncConnection, fence: Fence, reason: str, delay_seconds: float = 0.0) -> Standing:
    """Give a task back unharmed, to be leased again after the delay: no attempt is burnt. Safe to repeat."""
    attempt = await attempts.held(connection, fence.task_id, fence.token, fence.worker_id)
    if attempt is None:
        return await _repeated(connection, fence, "released")
    run_at = await now(connection) + timedelta(seconds=delay_seconds) if delay_seconds else None
    await give_back(connection, attempt, reason, run_at)
    return Standing(state=TaskState.PENDING, run_at=run_at)


async def give_back(connection: AsyncConnection, attempt: Attempt, reason: str, run_at: datetime | None = None) -> None:
    """Return a task to the queue as if it had not been leased."""
    verdict = Verdict(
        event=TaskEvent.RELEASED, failures=attempt.failures, rescues=attempt.rescues, run_at=run_at, reason=reason
    )
    await attempts.end(connection, attempt, verdict, Ending(outcome="released"))


def retry_policy(attempt: Attempt) -> RetryPolicy:
    """The policy that the task was submitted with."""
    return RetryPolicy(max_attempts=attempt.max_attempts, delays_seconds=attempt.retry_delays)


async def refuse(connection: AsyncConnection, fence: Fence, *, unless_completed_with: bytes) -> None:
    """Raise the reason why the fence stays shut, unless this very result was accepted before."""
    place = await attempts.trace(connection, fence.task_id)
    if place and _is_ours(place, fence) and place["result_hash"] == unless_completed_with:
        return
    raise await refusal(connection, fence)


async def refusal(connection: AsyncConnection, fence: Fence) -> ConvenerError:
    """Why a call on this lease is refused. Somebody else's lease looks like none at all."""
    place = await attempts.trace(connection, fence.task_id)
    if place is None:
        return LeaseNotFound()
    past = await attempts.past_outcome(connection, fence.task_id, fence.token, fence.worker_id)
    if not _is_ours(place, fence):
        return _past_refusal(past)
    if place["place"] == "live":
        return LeaseExpired(reason="expired")
    if place["state"] == TaskState.CANCELLED:
        return TaskCancelled(reason="cancelled")
    return LeaseSuperseded(f"this lease has ended already: the task is {place['state']}", reason="superseded")


def _past_refusal(past: str | None) -> ConvenerError:
    if past is None:
        return LeaseNotFound()
    if past in ("expired", "lost"):
        return LeaseExpired(reason="expired")
    return LeaseSuperseded(f"this lease has ended already: it was {past}", reason="superseded")


def _is_ours(place: dict[str, object], fence: Fence) -> bool:
    return place["token"] == fence.token and place["worker_id"] == fence.worker_id


async def _repeated(connection: AsyncConnection, fence: Fence, outcome: str) -> Standing:
    """The answer to a call that had its effect before; raises the refusal where it had not."""
    if await attempts.past_outcome(connection, fence.task_id, fence.token, fence.worker_id) != outcome:
        raise await refusal(connection, fence)
    place = await attempts.trace(connection, fence.task_id)
    if place is None:
        raise LeaseNotFound
    # Whoever has the task by now, this call's own effect was one of these two.
    given_up = place["state"] == TaskState.FAILED and _is_ours(place, fence)
    return Standing(state=TaskState.FAILED if given_up else TaskState.PENDING, run_at=place["run_at"])


def _json(failure: Failure) -> str:
    known = {"code": failure.code, "message": failure.message, "retryable": failure.retryable}
    return json.dumps(known | ({"detail": json.loads(failure.detail)} if failure.detail else {}))
