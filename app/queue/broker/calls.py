"""Calls for tasks as they wait in the broker, and what is at hand for workers whose time is limited."""

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import NamedTuple, Protocol
from uuid import UUID

from app.db import hot_path
from app.db.asynchronous_commits import AsynchronousCommit
from app.db.database import Database
from app.kernel.agents import AgentType
from app.kernel.ids import TaskId, WorkerId
from app.kernel.lanes import Lane
from app.kernel.resources import Resources
from app.queue.rules.tasks import LeasePolicy
from app.queue.store import claims, ready_lanes
from app.queue.store.claims import ClaimOutcome, ClaimRequest, Lease


# A tuple, as one is made for each call of a worker.
class LeaseCall(NamedTuple):
    """The request of a worker for a task, which must end by `ends_at` where the worker does.

    One that `follows` a task comes right after the result of that one, the last that it leased, and cannot wait. A
    lease flushes the `result_commit`.
    """

    worker_id: WorkerId
    request_id: UUID
    agent_types: frozenset[AgentType]
    acknowledge: bool = False
    ends_at: datetime | None = None
    # What the worker offers; None: nothing that a task could ask for.
    offer: Resources | None = None
    follows: TaskId | None = None
    result_commit: AsynchronousCommit | None = None


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
    charge: float = 0.0
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


async def claim(
    connection: hot_path.HotConnection, batch: Sequence[Waiter], requests: Sequence[ClaimRequest], policy: LeasePolicy
) -> list[ClaimOutcome]:
    """Claim tasks for these waiters, and flush the results that some of them follow. Raises as `claims.claim` does."""
    commits = {waiter.call.result_commit for waiter in batch if waiter.call.result_commit is not None}
    if not all(commit.precedes(connection) for commit in commits):
        # The server may have crashed since, and lost these results: no lease is known to be over.
        commits, requests = set(), [request._replace(last_number=None) for request in requests]
    outcomes = await claims.claim(connection, requests, policy)
    # A claim that leases nothing writes no log, and so waits for none.
    if commits and any(outcome.lease for outcome in outcomes):
        for commit in commits:
            commit.is_flushed = True
    return outcomes


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
