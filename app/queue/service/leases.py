"""Operations of a worker on its lease: acknowledge, report progress, complete, fail and release."""

import asyncio
import json
import random
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from typing import TypeVar
from uuid import UUID

from sqlalchemy.ext.asyncio import AsyncConnection

from app.admin.service import config
from app.db import hot_path, notify
from app.db.batching import Coalescer
from app.db.database import Database, now
from app.kernel.errors import ConvenerError, Locked
from app.kernel.events import TaskEvent
from app.kernel.ids import TaskId, WorkerId
from app.kernel.states import TaskState
from app.queue.errors import LeaseEnded, LeaseExpired, LeaseNotFound, LeaseSuperseded, TaskCancelled
from app.queue.rules import tasks
from app.queue.rules.fair_queueing import FairQueue
from app.queue.rules.tasks import (
    LeasePolicy,
    ReleasePolicy,
    RetryPolicy,
    Verdict,
    after_failure,
    after_no_acknowledgement,
    after_release,
    after_rescue,
)
from app.queue.store import attempts, completions, parking
from app.queue.store.attempts import Attempt, Ending
from app.queue.store.completions import Completion, Renewal, ServiceTime

_RELEASES = ReleasePolicy()


T = TypeVar("T")
# Seconds between tries of what is locked, about 3 s together.
UNLOCKED_PAUSES = (0.01, 0.03, 0.1, 0.3, 0.6, 1.0, 1.0)


@dataclass(frozen=True, slots=True, kw_only=True)
class Fence:
    """Identity of a lease and of its caller; every change is a compare-and-set on all three fields."""

    task_id: TaskId
    token: int
    worker_id: WorkerId


@dataclass(frozen=True, slots=True, kw_only=True)
class Failure:
    """A failure as the worker reports it. `detail` and `usage` are JSON text."""

    code: str
    message: str
    retryable: bool
    detail: str | None = None
    usage: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class EndedLease:
    """State of a task after its lease was ended by a call, and when it may run again."""

    state: TaskState
    run_at: datetime | None = None


class LeaseService:
    """Completions and renewals, coalesced: those that arrive together share one statement and one commit."""

    def __init__(self, database: Database, policy: LeasePolicy, fairness: FairQueue) -> None:
        self._database = database
        self.policy = policy
        self._fairness = fairness
        # As many as an exchange brings.
        self._completions: Coalescer[Completion, ServiceTime | None] = Coalescer(
            self._complete, lambda c: c.task_id, limit=512, size=_result_size
        )
        # Apart, because to unblock dependents takes locks for which the others must not wait.
        self._last_tries: Coalescer[Completion, ServiceTime | None] = Coalescer(
            self._complete_and_unblock, lambda c: c.task_id, size=_result_size
        )
        self._renewals: Coalescer[Renewal, datetime | None] = Coalescer(
            self._renew, lambda r: r.task_id, size=lambda r: len(r.checkpoint or "")
        )

    async def stop(self) -> None:
        """Finish the calls that have arrived."""
        await self._completions.close()
        await self._last_tries.close()
        await self._renewals.close()

    async def complete(self, completion: Completion) -> None:
        """Accept a result once; a repetition with the same result is accepted too, anything else is refused.

        Raises LeaseExpired, LeaseSuperseded, LeaseEnded, TaskCancelled, LeaseNotFound, Locked.
        """
        # The common statement skips tasks that others wait for, as well as those that are refused.
        try:
            if await self._completions.enqueue_one(completion) is not None:
                return
        except Locked:
            pass
        fence = Fence(task_id=completion.task_id, token=completion.token, worker_id=completion.worker_id)

        async def is_repetition(connection: AsyncConnection) -> bool:
            task = await attempts.task_status(connection, fence.task_id)
            # Earlier versions kept a longer hash.
            hashed = (task and task["result_hash"]) or b""
            return bool(task and _matches_fence(task, fence) and hashed.startswith(completion.result_hash))

        await self._until_unlocked(fence, lambda: self._last_tries(completion), is_repetition)

    def begin_completions(self, calls: Sequence[Completion]) -> "list[asyncio.Future[ServiceTime | None]]":
        """Try once to accept results, many in one statement; those that end with None or Locked are for `complete`."""
        return self._completions.enqueue(calls)

    def begin_renewals(self, calls: Sequence[Renewal]) -> "list[asyncio.Future[datetime | None]]":
        """Try once to renew leases, many in one statement; those that end with None or Locked are for `renew`."""
        return self._renewals.enqueue(calls)

    async def renew(self, renewal: Renewal) -> datetime:
        """Acknowledge and renew a lease; return the new expiry. Raises as `complete` does."""
        fence = Fence(task_id=renewal.task_id, token=renewal.token, worker_id=renewal.worker_id)
        expires_at = await self._until_unlocked(fence, lambda: self._renewals(renewal))
        assert expires_at is not None
        return expires_at

    async def _until_unlocked(
        self,
        fence: Fence,
        attempt: Callable[[], Awaitable[T | None]],
        is_repetition: Callable[[AsyncConnection], Awaitable[bool]] | None = None,
    ) -> T | None:
        """Answer of an attempt, or None for a repetition; as long as the task is only locked, it is tried again.

        Raises the refusal where there is another reason.
        """
        for pause in (*UNLOCKED_PAUSES, None):
            try:
                answer = await attempt()
            except Locked as locked:
                # Not the task itself, but one that waits for it.
                error: ConvenerError = locked
            else:
                if answer is not None:
                    return answer
                async with self._database.transaction() as connection:
                    error = await refusal(connection, fence)
                    # After it: the same call may be accepted for another connection between these two looks.
                    if is_repetition is not None and await is_repetition(connection):
                        return None
            if pause is None or not isinstance(error, Locked):
                raise error
            await asyncio.sleep(pause)
        raise AssertionError("unreachable")

    async def _complete(self, calls: Sequence[Completion]) -> list[ServiceTime | None]:
        services = await hot_path.run(self._database, lambda c: completions.complete(c, calls))
        return self._noted(services, calls)

    async def _complete_and_unblock(self, calls: Sequence[Completion]) -> list[ServiceTime | None]:
        services, lane_tags = await hot_path.run(self._database, lambda c: completions.complete_and_unblock(c, calls))
        self._database.announcer.announce({notify.work(lane): tag for lane, tag in lane_tags.items()})
        return self._noted(services, calls)

    def _noted(self, services: Mapping[UUID, ServiceTime], calls: Sequence[Completion]) -> list[ServiceTime | None]:
        """The service times in the order of the calls, which the shares of agent types go by from now on."""
        if services:
            self._database.announcer.announce([notify.EVENTS])
        for service in services.values():
            # Measured costs make shares of time, not of tasks, out of the weights.
            self._fairness.observe(service.agent_type, service.seconds)
        return [services.get(call.task_id) for call in calls]

    async def _renew(self, renewals: Sequence[Renewal]) -> list[datetime | None]:
        expiries = await hot_path.run(self._database, lambda c: completions.renew(c, renewals, self.policy))
        return [expiries.get(renewal.task_id) for renewal in renewals]


def _result_size(completion: Completion) -> int:
    return len(completion.result)


async def fail(connection: AsyncConnection, fence: Fence, failure: Failure) -> EndedLease:
    """End an attempt as failed: the task is retried later or given up. Safe to repeat."""
    attempt = await attempts.lock(connection, fence.task_id, fence.token, fence.worker_id)
    if attempt is None:
        return await _repeated_result(connection, fence, "failed")
    verdict = judge_failure(attempt, await now(connection), retryable=failure.retryable)
    ending = Ending(
        outcome="failed", error=_error_text(failure), usage=failure.usage, is_fault=tasks.is_agent_fault(failure.code)
    )
    await attempts.end(connection, attempt, verdict, ending)
    state = TaskState.FAILED if verdict.event is TaskEvent.FAILED else TaskState.PENDING
    return EndedLease(state=state, run_at=verdict.run_at)


async def release(
    connection: AsyncConnection,
    fence: Fence,
    reason: str,
    delay_seconds: float = 0.0,
    *,
    waits_for_model: str | None = None,
    expires_at: datetime | None = None,
) -> EndedLease:
    """Give a task back, to be leased again after the delay, or as soon as the model that it waits for answers.

    It costs no attempt. Safe to repeat. With `expires_at` a lease that was renewed since is left alone. Raises
    LeaseSuperseded.
    """
    attempt = await attempts.lock(connection, fence.task_id, fence.token, fence.worker_id)
    if attempt is None:
        return await _repeated_result(connection, fence, "released")
    if expires_at is not None and attempt.lease_expires_at != expires_at:
        raise LeaseSuperseded("this lease was renewed since: its worker has heard of it", reason="superseded")
    run_at = await give_back(connection, attempt, reason, delay_seconds)
    if waits_for_model is not None and run_at is not None:
        await parking.park(connection, attempt.id, attempt.token, waits_for_model)
    return EndedLease(state=TaskState.PENDING, run_at=run_at)


async def give_back(
    connection: AsyncConnection, attempt: Attempt, reason: str, delay_seconds: float = 0.0
) -> datetime | None:
    """End an attempt so that its task waits again with unchanged counts; return when it may run."""
    counts = {"failures": attempt.failures, "rescues": attempt.rescues, "returns": attempt.returns}
    moment = await now(connection)
    verdict = after_release(_RELEASES, **counts, delay_seconds=delay_seconds, now=moment, reason=reason)
    await attempts.end(connection, attempt, verdict, Ending(outcome="released"))
    return verdict.run_at


def retry_policy(attempt: Attempt) -> RetryPolicy:
    """The retry policy with which the task was submitted."""
    return RetryPolicy(max_attempts=attempt.max_attempts, delays_seconds=attempt.retry_delays)


def judge_failure(attempt: Attempt, moment: datetime, *, retryable: bool) -> Verdict:
    """Decide on an attempt that failed, by the retry policy of its task."""
    counts = {"failures": attempt.failures, "rescues": attempt.rescues}
    draw = random.random()  # noqa: S311 - jitter, not a secret
    return after_failure(retry_policy(attempt), **counts, retryable=retryable, now=moment, draw=draw)


async def judge_loss(connection: AsyncConnection, attempt: Attempt, moment: datetime, reason: str) -> Verdict:
    """Decide on an attempt whose worker or lease is gone: one that was never acknowledged has not begun."""
    max_rescues = (await config.document(connection)).queue.max_rescues
    policy, counts = (
        replace(retry_policy(attempt), max_rescues=max_rescues),
        {"failures": attempt.failures, "rescues": attempt.rescues},
    )
    if attempt.state is TaskState.ASSIGNED:
        unacknowledged = attempt.unacknowledged
        return after_no_acknowledgement(policy, **counts, unacknowledged=unacknowledged, now=moment, reason=reason)
    return after_rescue(policy, **counts, reason=reason)


async def refusal(connection: AsyncConnection, fence: Fence) -> ConvenerError:
    """The error for a call whose fence does not match. Another worker's lease looks like none, to reveal nothing."""
    task = await attempts.task_status(connection, fence.task_id)
    if task is None:
        return LeaseNotFound()
    past_outcome = await attempts.past_outcome(connection, fence.task_id, fence.token, fence.worker_id)
    # It is over; how it ended is all that its worker needs to know.
    if not _matches_fence(task, fence):
        return _past_refusal(past_outcome, is_followed=task["token"] > fence.token)
    if task["place"] == "live":
        # The fence holds: the statement has skipped the task because somebody has locked it.
        return Locked() if task["is_leased"] else LeaseExpired(reason="expired")
    if task["state"] == TaskState.CANCELLED:
        return TaskCancelled(reason="cancelled")
    return LeaseEnded(f"this lease has ended already: the task is {task['state']}", reason="ended")


def _past_refusal(outcome: str | None, *, is_followed: bool) -> ConvenerError:
    if outcome is None:
        return LeaseNotFound()
    if outcome in ("expired", "lost"):
        return LeaseExpired(reason="expired")
    if is_followed:
        return LeaseSuperseded(f"this lease has ended already: it was {outcome}", reason="superseded")
    return LeaseEnded(f"this lease has ended already: it was {outcome}", reason="ended")


def _matches_fence(task: dict[str, object], fence: Fence) -> bool:
    return task["token"] == fence.token and task["worker_id"] == fence.worker_id


async def _repeated_result(connection: AsyncConnection, fence: Fence, outcome: str) -> EndedLease:
    """The answer to a repeated call whose effect is recorded as `outcome`. Raises the refusal when it is not."""
    if await attempts.past_outcome(connection, fence.task_id, fence.token, fence.worker_id) != outcome:
        raise await refusal(connection, fence)
    task = await attempts.task_status(connection, fence.task_id)
    if task is None:
        raise LeaseNotFound
    # Another worker may run the task by now, but the effect of this call was one of these two states.
    is_given_up = task["state"] == TaskState.FAILED and _matches_fence(task, fence)
    return EndedLease(state=TaskState.FAILED if is_given_up else TaskState.PENDING, run_at=task["run_at"])


def _error_text(failure: Failure) -> str:
    error = {"code": failure.code, "message": failure.message, "retryable": failure.retryable}
    return json.dumps(error | ({"detail": json.loads(failure.detail)} if failure.detail else {}))
