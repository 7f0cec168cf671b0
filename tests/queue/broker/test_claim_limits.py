"""Two groups of workers take turns at the database."""

from uuid import uuid4

import pytest

from app.kernel.ids import TaskId, WorkerId
from app.queue.broker.calls import LeaseCall, PrecedingResult, Waiter
from app.queue.broker.claim_limits import ClaimLimit, ClaimLimits
from app.queue.store.completions import Completion


def _waiter(characters: int | None = None) -> Waiter:
    worker_id, result = WorkerId(uuid4()), None
    if characters is not None:
        result = PrecedingResult(Completion(TaskId(uuid4()), 1, worker_id, "x" * characters, b"", None))
    call = LeaseCall(worker_id, uuid4(), frozenset(), result=result)
    return Waiter(call=call, answer=None, may_wait=False, idle_since=0.0)  # type: ignore[arg-type]


def _serve(limit: ClaimLimit, waiting: int) -> int:
    """The workers that a claim serves of so many that wait."""
    for number in range(1, waiting + 1):
        if limit.is_reached_by(_waiter()):
            return number
    return waiting


@pytest.mark.parametrize(("workers", "group"), [(128, 64), (129, 65), (1000, 500), (64, 32)])
def test_a_large_and_a_small_group_become_two_halves(workers: int, group: int) -> None:
    limits, away, sizes = ClaimLimits(), 0, []
    for _ in range(8):
        waiting = workers - away
        away = _serve(limits.next_claim(waiting, 512), waiting)
        sizes.append(away)
    assert all(abs(size - group) <= 1 for size in sizes[2:]), sizes


def test_few_workers_are_served_at_once() -> None:
    assert _serve(ClaimLimits().next_claim(32, 512), 32) == 32


def test_there_are_never_more_than_a_claim_may_have() -> None:
    assert _serve(ClaimLimits().next_claim(5000, 512), 5000) == 512
    assert _serve(ClaimLimits().next_claim(5000, 128), 5000) == 128


def test_the_result_that_fills_a_statement_is_its_last() -> None:
    limit = ClaimLimits().next_claim(100, 512)
    assert [limit.is_reached_by(_waiter(400_000)) for _ in range(3)] == [False, False, True]
