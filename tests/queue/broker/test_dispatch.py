"""How many workers one claim serves."""

from datetime import UTC, datetime
from uuid import uuid4

import pytest

from app.kernel.ids import TaskId, WorkerId
from app.queue.broker.dispatch import Dispatcher, WorkerPreferences
from app.queue.broker.lane_view import LaneView
from app.queue.rules.fair_queueing import FairQueue
from app.queue.store.claims import ClaimOutcome, ClaimRequest, Lease
from app.queue.store.lanes import TagIssuer

_NOW = datetime(2026, 1, 1, tzinfo=UTC)


@pytest.fixture
def dispatcher() -> Dispatcher:
    return Dispatcher(LaneView(), FairQueue(), TagIssuer(), WorkerPreferences())


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
    requests = [ClaimRequest(WorkerId(uuid4()), uuid4(), None, acknowledge=True) for _ in sizes]
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
