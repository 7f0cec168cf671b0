"""How many workers one claim serves, and what is remembered of the leases that it gave."""

from uuid import uuid4

import pytest

from app.db.database import Database
from app.kernel.ids import TaskId, WorkerId
from app.queue.broker.dispatch import Dispatcher, WorkerPreferences
from app.queue.broker.lane_view import LaneView
from app.queue.rules.fair_queueing import FairQueue
from app.queue.store import lease_ledger
from app.queue.store.claims import ClaimOutcome, ClaimRequest, Lease
from app.queue.store.lease_ledger import GivenLeases

_NOW = 1_767_225_600.0


@pytest.fixture
def dispatcher() -> Dispatcher:
    return Dispatcher(LaneView(), FairQueue(), WorkerPreferences(), Database("postgresql://127.0.0.1:1/nothing"))


def _claimed(dispatcher: Dispatcher, *sizes: int, checkpoint: int = 0) -> None:
    """Record a claim of tasks whose payloads have these sizes."""
    leases = [
        Lease(
            task_id=TaskId(uuid4()),
            token=1,
            attempt=1,
            agent_type="ranking",
            goal_id=None,
            priority=2,
            payload="x" * size,
            labels="{}",
            created_at=_NOW,
            timeout_seconds=60.0,
            waiting_since=_NOW,
            leased_at=_NOW,
            expires_at=_NOW,
            deadline_at=_NOW,
            checkpoint="x" * checkpoint or None,
            trace_context=None,
            resources=None,
            tag=1.0,
        )
        for size in sizes
    ]
    requests = [ClaimRequest(worker, uuid4(), None, acknowledge=True) for worker in _workers(len(sizes))]
    outcomes = [ClaimOutcome("ready", None, False, False, None, lease) for lease in leases]
    dispatcher.record_claims(requests, outcomes)


def test_a_claim_is_for_many_workers_once_tasks_have_been_seen_to_be_small(dispatcher: Dispatcher) -> None:
    assert dispatcher.workers_of_claim == 128
    _claimed(dispatcher, 10, 16 << 10)
    assert dispatcher.workers_of_claim == 512


def test_a_claim_is_for_fewer_workers_while_tasks_are_large(dispatcher: Dispatcher) -> None:
    _claimed(dispatcher, 10)
    _claimed(dispatcher, 10, 20 << 10, 10)
    assert dispatcher.workers_of_claim == 128
    _claimed(dispatcher, 10)
    _claimed(dispatcher, 10, checkpoint=17 << 10)
    assert dispatcher.workers_of_claim == 128


def test_a_claim_that_found_nothing_says_nothing_of_sizes(dispatcher: Dispatcher) -> None:
    _claimed(dispatcher, 10)
    _claimed(dispatcher)
    assert dispatcher.workers_of_claim == 512


def test_the_number_of_a_lease_is_told_once_and_only_for_its_own_task() -> None:
    given_leases, (worker, other), (task, later) = GivenLeases(), _workers(2), [TaskId(uuid4()) for _ in range(2)]
    given_leases.note(worker, task, 7)
    given_leases.note(other, task, 1)
    assert (given_leases.take(worker, task), given_leases.take(worker, task)) == (7, None)
    given_leases.note(worker, later, 8)
    assert (given_leases.take(worker, task), given_leases.take(worker, later)) == (None, None)
    assert given_leases.take(other, task) == 1


def test_of_many_workers_the_oldest_leases_are_forgotten(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lease_ledger, "_MAX_WORKERS", 3)
    given_leases, workers, task = GivenLeases(), _workers(4), TaskId(uuid4())
    for worker in workers:
        given_leases.note(worker, task, 1)
    assert [given_leases.take(worker, task) for worker in workers] == [None, 1, 1, 1]


def _workers(count: int) -> list[WorkerId]:
    return [WorkerId(uuid4()) for _ in range(count)]
