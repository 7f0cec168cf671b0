"""Permits are dealt out within all limits, fairly while they are scarce, and never kept for those who stay away."""

from dataclasses import replace
from datetime import timedelta
from itertools import product

import pytest
from hypothesis import given
from hypothesis import strategies as st

from app.kernel.agents import AgentType
from app.kernel.lanes import Priority
from app.llm.rules.circuit_breaker import Breaker
from app.llm.rules.concurrency import ConcurrencyState
from app.llm.rules.grant import PermitPlan
from app.llm.rules.models import ModelLimits
from app.llm.rules.permits import (
    Denial,
    Grant,
    PermitCounts,
    PermitRequest,
    Refused,
    Reservation,
)
from tests.support.permit_simulation import (
    POLICY,
    START,
    Caller,
    PermitSimulation,
    decide,
    model,
    permit_request,
    snapshot,
)

A, B = AgentType.GENERATION, AgentType.RANKING


def granted(plan: PermitPlan) -> list[PermitRequest]:
    return [answer.request for answer in plan.answers if isinstance(answer, Grant)]


def denied(plan: PermitPlan) -> list[Denial]:
    return [answer for answer in plan.answers if isinstance(answer, Denial)]


def reservation(request: PermitRequest, *, since: float = -10.0, due: float = 0.0) -> Reservation:
    moment = [START + timedelta(seconds=seconds) for seconds in (since, due, due + POLICY.lapse_seconds)]
    return Reservation(request=request, since=moment[0], due=moment[1], lapses=moment[2])


def test_as_many_as_the_model_and_all_models_together_may_have() -> None:
    requests = [permit_request(model="m") for _ in range(6)] + [permit_request(model="n") for _ in range(6)]
    plan = decide(snapshot(model(4), model(4, name="n"), total_limit=6, in_use={"m": 1}), *requests)
    assert [request.model for request in granted(plan)].count("m") <= 3
    assert len(granted(plan)) == 5
    assert {answer.reason for answer in denied(plan)} == {Refused.CONCURRENCY}


def test_a_configuration_that_shrank_gives_nobody_a_new_one() -> None:
    plan = decide(snapshot(model(20), total_limit=2, in_use={"m": 5}), permit_request())
    assert denied(plan)[0].reason is Refused.CONCURRENCY


def test_a_cooldown_and_an_open_breaker_hold_for_everybody() -> None:
    cooling = replace(model(), concurrency=ConcurrencyState(cooldown_until=START + timedelta(seconds=9)))
    (answer,) = denied(decide(snapshot(cooling), permit_request()))
    assert (answer.reason, answer.retry_after, answer.reservation(START, POLICY)) == (
        Refused.COOLDOWN,
        timedelta(seconds=9),
        None,
    )
    broken = replace(model(), breaker=Breaker(failures=3, open_until=START + timedelta(seconds=30)))
    (answer,) = denied(decide(snapshot(broken), permit_request()))
    assert (answer.reason, answer.retry_after) == (Refused.BREAKER_OPEN, timedelta(seconds=30))


def test_one_of_sixty_four_tries_a_broken_model() -> None:
    broken = replace(model(20), breaker=Breaker(failures=3, open_until=START))
    plan = decide(snapshot(broken), *[permit_request() for _ in range(64)])
    assert len(granted(plan)) == 1
    assert plan.answers[0] == Grant(request=granted(plan)[0], is_probe=True, limit=20, in_use=1)
    trying = replace(snapshot(broken, in_use={"m": 1}), permit_counts={"m": PermitCounts(permits=1, probes=1)})
    assert granted(decide(trying, permit_request())) == []


def test_rates_are_shared_out_in_turn_and_each_is_told_its_own_time() -> None:
    limited = model(50, limits=ModelLimits(requests_per_window=60, burst=2))
    plan = decide(snapshot(limited), *[permit_request() for _ in range(5)])
    assert len(granted(plan)) == 2
    assert [answer.retry_after.total_seconds() for answer in denied(plan)] == [1, 2, 3]
    assert {answer.reason for answer in denied(plan)} == {Refused.REQUESTS}


def test_who_has_no_place_comes_again_within_a_minute_as_the_rate_may_be_another_by_then() -> None:
    limited = model(limits=ModelLimits(requests_per_window=1, window_seconds=86_400, burst=1))
    plan = decide(snapshot(limited), *[permit_request(caller=f"k{n}") for n in range(3)])
    waits = [(denial.has_place, denial.retry_after.total_seconds()) for denial in denied(plan)]
    assert waits == [(False, 60.0), (False, 60.0)]


def test_a_throttled_model_does_not_block_another() -> None:
    limited = model(50, limits=ModelLimits(tokens_per_window=60, token_burst=1), name="slow")
    first, second = permit_request(model="slow", tokens=50), permit_request(model="slow", tokens=50)
    plan = decide(snapshot(limited, model()), first, second, permit_request())
    assert [request.model for request in granted(plan)] == ["slow", "m"]


def test_a_later_comer_does_not_overtake_one_who_is_about_to_come_back() -> None:
    current = replace(snapshot(model(1)), reservations=[reservation(permit_request(caller="earlier"), due=0.05)])
    assert granted(decide(current, permit_request(caller="later"))) == []
    assert len(granted(decide(current, current.reservations[0].request))) == 1


def test_no_permit_is_kept_for_one_who_is_not_due() -> None:
    current = replace(snapshot(model(1)), reservations=[reservation(permit_request(caller="earlier"), due=3)])
    assert len(granted(decide(current, permit_request(caller="later")))) == 1


def test_a_request_under_another_id_resumes_the_reservation_of_its_caller() -> None:
    place = reservation(permit_request(caller="earlier"), due=0)
    busy = replace(snapshot(model(1), in_use={"m": 1}), reservations=[place])
    plan = decide(busy, permit_request(caller="earlier"))
    assert plan.resumed_ids == [place.request.id]
    assert denied(plan)[0].since == place.since


def test_a_later_call_of_the_same_caller_takes_no_place_before_its_time_and_none_of_the_older_ones() -> None:
    first, second = (reservation(permit_request(caller="k"), since=since, due=0) for since in (-9, -8))
    early = reservation(permit_request(caller="k"), since=-7, due=0.1)
    current = replace(snapshot(model(1), in_use={"m": 1}), reservations=[first, second, early])
    assert decide(current, permit_request(caller="k")).resumed_ids == [second.request.id]
    assert decide(replace(current, reservations=[early]), permit_request(caller="k")).resumed_ids == []


def test_every_call_of_one_key_is_served() -> None:
    """A call that comes just when another one ends does not go before those of the same key that wait."""
    simulation = PermitSimulation(callers=[Caller(name=f"a{n}", key="k", agent=A) for n in range(20)], limit=4)
    simulation.run(60)
    assert len(simulation.served) == 20
    assert min(simulation.served.values()) >= 4
    assert simulation.busy_seconds > 0.85 * 4 * 60


def test_an_agent_type_behind_its_share_goes_first() -> None:
    requests = [permit_request(A, caller=f"a{n}") for n in range(8)] + [
        permit_request(B, caller=f"b{n}") for n in range(2)
    ]
    plan = decide(snapshot(model(4)), *requests)
    assert sorted(request.agent_type for request in granted(plan)) == [A, A, B, B]


def test_priority_goes_before_shares_and_grows_while_a_request_waits() -> None:
    low, high = replace(permit_request(B), priority=Priority.LOW), replace(permit_request(A), priority=Priority.HIGH)
    assert granted(decide(snapshot(model(1)), low, high)) == [high]
    current = replace(snapshot(model(1)), reservations=[reservation(low, since=-2 * POLICY.aging_seconds - 1)])
    assert granted(decide(current, low, high)) == [low]


@pytest.mark.parametrize(("calm", "limit"), [(4, 4), (20, 4), (4, 1)])
def test_shares_of_agent_types_hold_whoever_has_more_callers(calm: int, limit: int) -> None:
    crowd = [Caller(name=f"a{n}", agent=A) for n in range(20)]
    simulation = PermitSimulation(callers=[*crowd, *(Caller(name=f"b{n}", agent=B) for n in range(calm))], limit=limit)
    seconds = 240 / limit
    simulation.run(seconds)
    assert simulation.share(B) == pytest.approx(0.5, abs=0.05)
    assert simulation.busy_seconds > 0.85 * limit * seconds


def test_shares_follow_the_weights() -> None:
    callers = [Caller(name=f"{agent}{n}", agent=agent) for agent in (A, B) for n in range(12)]
    simulation = PermitSimulation(callers=callers, limit=4, weights={**dict.fromkeys(AgentType, 0.1), B: 0.3})
    simulation.run(60)
    assert simulation.share(B) == pytest.approx(0.75, abs=0.05)


def test_one_among_many_waits_about_a_call_and_not_a_queue() -> None:
    simulation = PermitSimulation(
        callers=[*(Caller(name=f"a{n}", agent=A) for n in range(30)), Caller(name="b", agent=B)], limit=4
    )
    simulation.run(50)
    assert simulation.longest_wait["b"] < 2.5


def test_new_names_for_every_try_change_nothing() -> None:
    callers = [Caller(name=f"{agent}{n}", agent=agent, uses_new_ids=True) for agent in (A, B) for n in range(10)]
    simulation = PermitSimulation(callers=callers, limit=4)
    simulation.run(50)
    assert simulation.share(B) == pytest.approx(0.5, abs=0.05)
    assert simulation.busy_seconds > 0.85 * 4 * 50


def test_low_priority_is_not_starved() -> None:
    urgent = [Caller(name=f"a{n}", agent=A, priority=Priority.CRITICAL) for n in range(8)]
    simulation = PermitSimulation(callers=[*urgent, Caller(name="b", agent=B, priority=Priority.LOW)], limit=4)
    simulation.run(200)
    assert simulation.served["b"] >= 2


def test_nobody_is_starved_where_answers_come_late() -> None:
    callers = [
        Caller(name=f"{priority}{n}", agent=agent, priority=priority, hold_seconds=2.0)
        for n, (agent, priority) in enumerate(5 * list(product((A, B), (Priority.HIGH, Priority.MEDIUM, Priority.LOW))))
    ]
    simulation = PermitSimulation(callers=callers, limit=2, late_seconds=4.0)
    simulation.run(300)
    assert min(simulation.served[caller.name] for caller in callers) >= 2
    assert simulation.busy_seconds > 0.75 * 2 * 300


def test_those_who_never_come_back_do_not_stop_the_others() -> None:
    gives_up = [Caller(name=f"a{n}", agent=A, gives_up=True) for n in range(30)]
    simulation = PermitSimulation(callers=[*gives_up, *(Caller(name=f"b{n}", agent=B) for n in range(8))], limit=4)
    simulation.run(50)
    assert simulation.busy_seconds > 0.75 * 4 * 50


_REQUESTS = st.lists(
    st.tuples(st.sampled_from(AgentType), st.sampled_from("mn"), st.sampled_from(Priority), st.integers(0, 5000)),
    min_size=1,
    max_size=25,
)
_LIMITS = st.builds(
    ModelLimits,
    requests_per_window=st.none() | st.integers(1, 100),
    tokens_per_window=st.none() | st.integers(1, 10_000),
    max_concurrency=st.none() | st.integers(1, 10),
)


@given(
    drawn=_REQUESTS,
    drawn_absent=_REQUESTS,
    late=st.floats(-1, 6),
    limits=_LIMITS,
    total_limit=st.integers(1, 20),
    in_use=st.dictionaries(st.sampled_from("mn"), st.integers(0, 12)),
    open_for=st.none() | st.floats(-5, 5),
)
def test_whatever_is_asked_no_limit_is_broken_and_everybody_is_answered(
    drawn: list[tuple[AgentType, str, Priority, int]],
    drawn_absent: list[tuple[AgentType, str, Priority, int]],
    late: float,
    limits: ModelLimits,
    total_limit: int,
    in_use: dict[str, int],
    open_for: float | None,
) -> None:
    requests, absent = (
        [replace(permit_request(a, model=m, tokens=t), priority=p) for a, m, p, t in rows]
        for rows in (drawn, drawn_absent)
    )
    breaker = Breaker(open_until=None if open_for is None else START + timedelta(seconds=open_for))
    models = [replace(model(6, name=name, limits=limits), breaker=breaker) for name in "mn"]
    current = replace(
        snapshot(*models, total_limit=total_limit, in_use=in_use),
        reservations=[reservation(request, due=late, since=-late) for request in absent],
    )
    plan = decide(current, *requests)
    assert [answer.request.id for answer in plan.answers] == [request.id for request in requests]
    grants = granted(plan)
    assert not grants or len(grants) <= total_limit - current.in_use
    for a_model in models:
        new = sum(request.model == a_model.name for request in grants)
        ceiling = min(6, total_limit, limits.max_concurrency or total_limit)
        assert not new or in_use.get(a_model.name, 0) + new <= ceiling
        if open_for is not None:
            assert new <= (timedelta(seconds=open_for) <= timedelta())
    assert all(answer.retry_after > timedelta() for answer in denied(plan))
    again = decide(replace(current, reservations=[]), *requests)
    # Of calls of unequal size the order decides how many fit into a window, and who waits has a part in the order.
    are_alike = limits.tokens_per_window is None or len({request.tokens for request in requests}) == 1
    if not absent or (late > 1 and are_alike):
        assert len(granted(again)) == len(grants), "reservations that are not due keep nothing back"
