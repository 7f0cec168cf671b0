"""No worker has every permit: a share while others wait, a number otherwise, and one is left for somebody else."""

from collections import Counter
from dataclasses import replace
from datetime import timedelta
from uuid import UUID

import pytest
from hypothesis import given
from hypothesis import strategies as st

from app.llm.rules.callers import CallerState
from app.llm.rules.circuit_breaker import Breaker
from app.llm.rules.grant import PermitPlan
from app.llm.rules.models import ModelLimits
from app.llm.rules.permits import (
    Denial,
    Grant,
    PermitCounts,
    PermitRequest,
    PermitSnapshot,
    Refused,
    Reservation,
)
from tests.support.permit_simulation import POLICY, START, decide, model, permit_request, snapshot


def of_worker(number: int) -> PermitRequest:
    return replace(permit_request(caller=f"k{number}"), worker_id=UUID(int=number))


def holding(limit: int, *held: int, total_limit: int = 100) -> PermitSnapshot:
    """A model of this limit, of which worker 1 holds so many, worker 2 so many, and so on."""
    counts = {(str(UUID(int=number)), "m"): count for number, count in enumerate(held, 1)}
    return replace(snapshot(model(limit), total_limit=total_limit, in_use={"m": sum(held)}), held=counts)


def granted(plan: PermitPlan) -> Counter[int]:
    return Counter(a.request.worker_id.int for a in plan.answers if isinstance(a, Grant) and a.request.worker_id)


def reasons(plan: PermitPlan) -> set[Refused]:
    return {answer.reason for answer in plan.answers if isinstance(answer, Denial)}


@pytest.mark.parametrize(("limit", "most"), [(1, 1), (2, 1), (4, 3), (8, 7), (20, 8), (60, 8)])
def test_alone_a_worker_gets_a_number_and_leaves_one(limit: int, most: int) -> None:
    plan = decide(holding(limit), *[of_worker(1) for _ in range(70)])
    assert granted(plan) == {1: most}
    assert reasons(plan) <= {Refused.SHARE, Refused.CONCURRENCY}


def test_while_others_ask_each_gets_its_share_and_what_is_left_goes_to_whoever_wants_it() -> None:
    crowd = [of_worker(1) for _ in range(20)] + [of_worker(2) for _ in range(20)]
    assert granted(decide(holding(8), *crowd)) == {1: 4, 2: 4}
    assert granted(decide(holding(12), *[of_worker(1)] * 0, *crowd[:20], of_worker(2))) == {1: 8, 2: 1}


def test_two_calls_at_once_are_granted_however_many_wait() -> None:
    crowd = [of_worker(number) for number in range(1, 40) for _ in range(3)]
    assert set(granted(decide(holding(20), *crowd)).values()) <= {1, 2}


def test_who_holds_more_than_its_share_waits_for_those_who_come_back() -> None:
    waiting = of_worker(2)
    place = Reservation(request=waiting, since=START, due=START, lapses=START + timedelta(seconds=2))
    current = replace(holding(6, 5), reservations=[place])
    assert granted(decide(current, of_worker(1))) == {}
    assert granted(decide(current, waiting)) == {2: 1}


def test_a_worker_queues_up_for_no_more_than_it_may_have() -> None:
    plan = decide(holding(4, 0, 4), *[of_worker(1) for _ in range(50)])
    places = [
        answer.reservation(START, POLICY)
        for answer in plan.answers
        if isinstance(answer, Denial) and answer.reservation(START, POLICY)
    ]
    assert len(places) == POLICY.max_per_worker


@pytest.mark.parametrize(("latency", "seconds"), [(2.0, 0.125), (16.0, 1.0)])
def test_who_holds_its_share_waits_for_one_of_its_own(latency: float, seconds: float) -> None:
    """Half the mean time until one of eight ends: by the limit of all it would ask in vain many times."""
    current = replace(snapshot(model(64, latency=latency), in_use={"m": 8}), held={(str(UUID(int=1)), "m"): 8})
    (answer,) = decide(current, of_worker(1)).answers
    assert isinstance(answer, Denial)
    assert answer.reason is Refused.SHARE
    assert answer.retry_after == timedelta(seconds=seconds)


def test_who_queues_up_for_its_share_of_a_rate_waits_for_the_rate() -> None:
    limited = model(64, limits=ModelLimits(requests_per_window=60, burst=1))
    plan = decide(replace(snapshot(limited), held={}), *[of_worker(1) for _ in range(12)])
    waits = [(a.reason, a.retry_after.total_seconds()) for a in plan.answers if isinstance(a, Denial)]
    assert waits == [(Refused.REQUESTS, float(n)) for n in range(1, 8)] + [(Refused.SHARE, 8.0)] * 4


def test_the_share_is_one_of_all_models_together() -> None:
    current = replace(snapshot(model(100), model(100, name="n"), in_use={"n": 8}), held={(str(UUID(int=1)), "n"): 8})
    assert granted(decide(current, of_worker(1), of_worker(2))) == {2: 1}


def test_keys_of_people_have_no_share_but_leave_one_to_others() -> None:
    """Others are served while many callers of one key ask again and again, and queue in their order all the while."""
    crowd = [permit_request(caller="k") for _ in range(30)]
    plan = decide(snapshot(model(20)), *crowd)
    assert sum(isinstance(answer, Grant) for answer in plan.answers) == 20, "alone it has all"
    assert reasons(plan) == {Refused.CONCURRENCY}
    full = replace(
        snapshot(model(20), in_use={"m": 19}),
        held={("k", "m"): 19},
        reservations=[
            Reservation(request=request, since=START, due=START, lapses=START + timedelta(seconds=2))
            for request in crowd[19:]
        ],
    )
    for other in (of_worker(1), permit_request(caller="other")):
        assert [a.request.id for a in decide(full, other, *crowd).answers if isinstance(a, Grant)] == [other.id]


def test_a_key_leaves_one_of_all_models_together_and_alone_gets_the_only_one() -> None:
    current = replace(snapshot(model(100), total_limit=8, in_use={"n": 4}), held={("k", "n"): 4})
    plan = decide(current, *[permit_request(caller="k") for _ in range(9)], of_worker(1))
    assert sum(isinstance(answer, Grant) for answer in plan.answers) == 4
    assert granted(plan) == {1: 1}
    assert isinstance(decide(snapshot(model(1)), permit_request()).answers[0], Grant)


def test_what_one_caller_has_reported_holds_for_it_alone() -> None:
    name, later = str(UUID(int=1)), START + timedelta(seconds=9)
    for state, reason in (
        (CallerState(reported_at=START, cooldown_until=later), Refused.COOLDOWN),
        (CallerState(reported_at=START, open_until=later), Refused.BREAKER_OPEN),
    ):
        current = snapshot(replace(model(20), callers={name: state}))
        plan = decide(current, of_worker(1), of_worker(2))
        assert (granted(plan), reasons(plan)) == ({2: 1}, {reason})
    limited = replace(model(20), callers={name: CallerState(reported_at=START, limit=2.5)})
    assert granted(decide(snapshot(limited), *[of_worker(1) for _ in range(9)], of_worker(2))) == {1: 2, 2: 1}
    trying = replace(model(20), callers={name: CallerState(reported_at=START, open_until=START)})
    assert granted(decide(snapshot(trying), of_worker(1), of_worker(1), of_worker(2))) == {1: 1, 2: 1}


def test_who_keeps_a_probe_keeps_nobody_from_the_next() -> None:
    broken = replace(model(20), breaker=Breaker(failures=3, open_until=START))
    # The statement that counts leaves out probes that take too long.
    current = replace(
        snapshot(broken, in_use={"m": 1}),
        permit_counts={"m": PermitCounts(permits=1, probes=0)},
        held={(str(UUID(int=1)), "m"): 1},
    )
    assert granted(decide(current, of_worker(1), of_worker(2))) == {2: 1}


@given(
    limit=st.integers(1, 30),
    total_limit=st.integers(1, 30),
    held=st.lists(st.integers(0, 6), min_size=1, max_size=6),
    asking=st.lists(st.integers(1, 6), min_size=1, max_size=40),
)
def test_whatever_is_asked_a_permit_is_left_for_another_worker_and_none_idles(
    limit: int, total_limit: int, held: list[int], asking: list[int]
) -> None:
    current = holding(limit, *held, total_limit=total_limit)
    requests = [of_worker(number) for number in asking]
    plan = decide(current, *requests)
    grants, before = granted(plan), Counter(dict(enumerate(held, 1)))
    most = min(POLICY.max_per_worker, max(1, min(limit, total_limit) - 1))
    for number, count in grants.items():
        assert before[number] + count <= most
    free = min(limit, total_limit) - sum(held) - sum(grants.values())
    refused = {a.request.worker_id.int for a in plan.answers if isinstance(a, Denial) and a.request.worker_id}
    if free > 0:
        assert all(before[number] + grants[number] >= most for number in refused), "what nobody else wants is granted"
