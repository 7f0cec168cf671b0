"""Calls for tasks as they wait in the broker, and what is at hand for workers whose time is limited."""

import asyncio
import logging
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import NamedTuple, Protocol
from uuid import UUID

from app.db import hot_path
from app.db.database import Database
from app.kernel.agents import AgentType
from app.kernel.errors import DatabaseUnavailable, Locked
from app.kernel.ids import TaskId, WorkerId
from app.kernel.lanes import Lane
from app.kernel.resources import Resources
from app.queue.rules.fair_queueing import Charge, FairQueue
from app.queue.rules.tasks import LeasePolicy
from app.queue.store import claims, ready_lanes
from app.queue.store.claims import ClaimOutcome, ClaimRequest, Lease
from app.queue.store.completions import Completion

log = logging.getLogger(__name__)
# Seconds between tries to repeat a lease that is locked, as by another replica that repeats or releases it. All other
# workers wait for them.
_UNLOCKED_PAUSES = (0.01, 0.03)
# Longer results are accepted alone: so much takes the database as long as the tasks of 40 workers, a megabyte as long
# as those of 500.
_SMALL_CHARACTERS = 64 << 10


class PrecedingResult:
    """The result with which a worker asks for its next task; `is_accepted` once it is, and on the disk.

    A claim accepts it and leases the next task by one statement. Where it cannot, it leases none, and the result is
    left for those who find out why. Where `is_superseded`, a newer call of the worker asks for the task.
    """

    __slots__ = ("completion", "is_accepted", "is_superseded")

    def __init__(self, completion: Completion) -> None:
        self.completion = completion
        self.is_accepted = self.is_superseded = False

    def note_repetition(self, other: "PrecedingResult") -> None:
        """Note that another call has handed in the same result, and whether that was accepted."""
        if other.is_accepted and self._key == other._key:
            self.is_accepted = True

    @property
    def _key(self) -> tuple[TaskId, int, bytes]:
        return self.completion.task_id, self.completion.token, self.completion.result_hash

    @property
    def size(self) -> int:
        """Its length in characters."""
        return len(self.completion.result)

    @property
    def is_small(self) -> bool:
        """Whether a claim may accept it, for which all of its workers wait."""
        return self.size <= _SMALL_CHARACTERS


# A tuple, as one is made for each call of a worker.
class LeaseCall(NamedTuple):
    """The request of a worker for a task, which must end by `ends_at` where the worker does.

    One that `follows` a task comes right after the result of that one, the last that it leased, or with it, and then
    cannot wait.
    """

    worker_id: WorkerId
    request_id: UUID
    agent_types: frozenset[AgentType]
    acknowledge: bool = False
    ends_at: datetime | None = None
    # What the worker offers; None: nothing that a task could ask for.
    offer: Resources | None = None
    follows: TaskId | None = None
    result: PrecedingResult | None = None

    @property
    def completion(self) -> Completion | None:
        """The completion that the next claim has to accept; None too once an earlier one has that found no task."""
        return None if self.result is None or self.result.is_accepted else self.result.completion


class Answer(Protocol):
    """The place of an answer to a call, as a future is one."""

    def done(self) -> bool:
        """Whether there is an answer, or nobody wants one any more."""

    def cancelled(self) -> bool:
        """Whether nobody wants an answer any more."""

    def set_result(self, result: Lease | None, /) -> None:
        """Answer."""

    def set_exception(self, exception: Exception, /) -> None:
        """Answer with an error."""


@dataclass(slots=True, eq=False)
class Waiter:
    """A call that waits; `on_try` is called once it was tried to serve it."""

    call: LeaseCall
    answer: Answer
    may_wait: bool
    idle_since: float
    on_try: Callable[[], None] | None = None
    # Not part of any claim yet, so nobody knows whether there is work for it or how its worker stands.
    is_new: bool = True
    is_tried: bool = False
    in_flight: bool = False
    is_draining: bool = False
    lane: Lane | None = None
    charge: Charge | None = None
    # Lanes of which all tasks at hand take longer than its worker lives, and those with others since.
    unfit_lanes: frozenset[Lane] = frozenset()
    renewed_lanes: frozenset[Lane] = frozenset()

    def note_try(self) -> None:
        """Note that it was tried to serve the call."""
        if not self.is_tried:
            self.is_tried = True
            if self.on_try is not None:
                self.on_try()

    def try_renewed(self) -> bool:
        """Let it try again where others wait by now; whether there is such a lane."""
        again = self.unfit_lanes & self.renewed_lanes
        self.unfit_lanes, self.renewed_lanes = self.unfit_lanes - again, frozenset()
        return bool(again)


def reconsider(waiters: Iterable[Waiter], lanes: Collection[Lane] | None = None) -> None:
    """Let workers whose time is limited try again where nothing fitted before; in these lanes once it has tried all.

    By news of the most urgent lane alone, which may come all the time, it would never get to another.
    """
    for waiter in waiters:
        if lanes is None:
            waiter.unfit_lanes = frozenset()
        elif waiter.call.ends_at is not None:
            waiter.renewed_lanes = waiter.renewed_lanes.union(lanes)


async def repeated_lease(database: Database, call: LeaseCall, policy: LeasePolicy) -> Lease | None:
    """The lease of a repeated request, whose first answer was lost; None where it has ended. Raises Locked."""
    for pause in (*_UNLOCKED_PAUSES, None):
        try:
            return await hot_path.run(
                database, lambda c: claims.lease_of_request(c, call.worker_id, call.request_id, policy)
            )
        except Locked:
            if pause is None:
                raise
            await asyncio.sleep(pause)
    raise AssertionError("unreachable")


def refund_failed(batch: Sequence[Waiter], fairness: FairQueue, error: Exception) -> list[Waiter]:
    """Refund all calls of a claim that failed; return those with results, which are tried alone: one may be at fault.

    The other calls ask again then. None where the database is away: then the error is everybody's.
    """
    for waiter in batch:
        refund(waiter, fairness)
    handed_in = [waiter for waiter in batch if waiter.call.result is not None]
    if isinstance(error, DatabaseUnavailable) or not handed_in:
        return []
    log.warning("a claim with %d results failed (%s); trying each by itself", len(handed_in), error)
    return handed_in


def refund(waiter: Waiter, fairness: FairQueue) -> None:
    """Take back what a call was charged for that has got no task."""
    charge, waiter.charge = waiter.charge, None
    if charge is not None:
        fairness.refund(charge)


def accept_results(batch: Sequence[Waiter], outcomes: Sequence[ClaimOutcome], fairness: FairQueue) -> bool:
    """Note the results that a claim has accepted, and what their tasks took; whether there are any."""
    has_results = False
    for waiter, outcome in zip(batch, outcomes, strict=True):
        if (service := outcome.service) is not None and waiter.call.result is not None:
            waiter.call.result.is_accepted = has_results = True
            # Measured costs make shares of time, not of tasks, out of the weights.
            fairness.observe(service.agent_type, service.seconds)
    return has_results


async def pass_over(
    database: Database, batch: Sequence[Waiter], requests: Sequence[ClaimRequest], outcomes: Sequence[ClaimOutcome]
) -> Mapping[Lane, float]:
    """The lowest tags of lanes where a claim may have passed over tasks, as its workers' time is limited.

    Those that got nothing there go on with other lanes, until they are reconsidered.
    """
    floors = {request.lane: request.floor for request in requests if request.lane and request.ends_at is not None}
    if not floors:
        return {}
    lowest = await hot_path.run(database, lambda connection: ready_lanes.find(connection, floors))
    for waiter, outcome in zip(batch, outcomes, strict=True):
        if outcome.lease is None and waiter.lane in lowest:
            waiter.unfit_lanes |= {waiter.lane}
    return lowest
