"""Budgets of goals: calls reserve what they may cost, and at most one goes beyond what is left."""

from collections.abc import Callable, Mapping
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from random import Random

import pytest

from app.llm.rules.models import ModelLimits
from app.llm.rules.spending import (
    Amount,
    Budget,
    BudgetLedger,
    BudgetOwner,
    BudgetScope,
    budget_park_seconds,
    estimated_amount,
    has_room,
    max_call_usd,
    reservation,
)

# Tokens of a call, 100 on average.
_COSTS: Mapping[str, Callable[[Random], int]] = {
    "uniform": lambda rng: rng.randint(1, 199),
    "exponential": lambda rng: 1 + int(rng.expovariate(1 / 99)),
    "log-normal": lambda rng: 1 + int(60 * rng.lognormvariate(0, 1)),
}


def test_an_estimate_is_the_most_that_the_tokens_can_cost() -> None:
    limits = ModelLimits(input_price=2.0, output_price=8.0)
    assert estimated_amount(limits, 1_000_000) == Amount(usd=8.0, tokens=1_000_000)
    assert estimated_amount(ModelLimits(), 10) == Amount(tokens=10)


def test_as_many_calls_go_at_once_as_their_estimates_fit() -> None:
    estimate = Amount(usd=0.25, tokens=10)
    budget = Budget(usd=1.25, spent=Amount(usd=0.25), dearest=Amount(usd=0.25, tokens=10))
    for _ in range(4):
        assert has_room(budget, estimate)
        budget = budget.with_call(reservation(budget, estimate))
    assert not has_room(budget, estimate)


def test_what_is_left_for_a_part_of_a_call_is_for_one_call_alone() -> None:
    budget = Budget(usd=1.0, spent=Amount(usd=0.9))
    assert has_room(budget, Amount(usd=0.25))
    assert not has_room(budget.with_call(Amount(usd=0.25)), Amount(usd=0.25))
    assert not has_room(Budget(usd=1.0, spent=Amount(usd=1.0)), Amount())


def test_calls_that_cost_nothing_need_no_room() -> None:
    free = Budget(usd=1.0, dearest=Amount(tokens=100))
    for _ in range(64):
        assert has_room(free, Amount(tokens=100))
        free = free.with_call(Amount(tokens=100))


def test_the_first_call_goes_alone_and_the_next_count_as_the_dearest() -> None:
    budget = Budget(usd=1.0)
    assert has_room(budget, Amount())
    assert not has_room(budget.with_call(Amount()), Amount())
    assert not has_room(budget.with_call(Amount(usd=0.01)), Amount(usd=0.01)), "the estimate may be far off"
    known = Budget(usd=1.0, spent=Amount(usd=0.1), dearest=Amount(usd=0.1), ended_calls=1).with_call(Amount(usd=0.1))
    assert has_room(known, Amount(usd=0.1)), "an estimate that suffices for all calls so far"
    assert not has_room(known, Amount()), "one call says little where estimates are too low"
    assert has_room(replace(known, ended_calls=3), Amount())


def test_one_call_far_above_all_others_is_not_reserved_for_every_call_after_it() -> None:
    """Forty calls of 100 tokens and one of a million: 24,488 on average, of which four times as much is reserved."""
    mean, dearest = Amount(tokens=24_488), Amount(tokens=1_000_000)
    budget = Budget(tokens=10_000_000, spent=Amount(tokens=1_004_000), dearest=dearest, mean=mean, ended_calls=41)
    assert reservation(budget, Amount(tokens=100)) == Amount(tokens=97_952)
    assert reservation(budget, Amount(tokens=200_000)) == Amount(tokens=200_000)


def test_no_estimate_and_no_call_is_beyond_what_any_call_can_be() -> None:
    limits = ModelLimits(input_price=2.0, output_price=8.0)
    assert estimated_amount(limits, 100_000_000) == Amount(usd=16.777216, tokens=2_097_152)
    assert max_call_usd(limits) == 16.777216
    assert max_call_usd(ModelLimits(input_price=2.0)) == max_call_usd(ModelLimits()) == pytest.approx(1258.29, abs=0.01)


@pytest.mark.parametrize("share", [1.0, 0.01, 0.0])
def test_sixty_four_callers_overshoot_by_one_call_at_most(share: float) -> None:
    """Calls of one price, however much of it is estimated, in whatever order they end."""
    for seed in range(20):
        tokens, _ = _spend(Random(seed), lambda _: 100, 1050, Amount(tokens=int(share * 100)))
        assert tokens == 1100


@pytest.mark.parametrize("draw", _COSTS.values(), ids=_COSTS)
@pytest.mark.parametrize("limit", [1000, 10_000])
def test_nor_do_they_where_prices_vary_and_estimates_are_far_too_low(draw: Callable[[Random], int], limit: int) -> None:
    """Nobody can know the next price; so one in fifty may overshoot by more than a call, and none by two."""
    runs = [_spend(Random(seed), draw, limit, Amount(tokens=1)) for seed in range(100)]
    assert all(limit <= tokens < limit + 2 * largest for tokens, largest in runs)
    assert sum(tokens > limit + largest for tokens, largest in runs) <= 2


def _spend(rng: Random, draw: Callable[[Random], int], limit: int, estimate: Amount) -> tuple[int, int]:
    """The tokens that 64 callers use up of a budget, and those of the largest call."""
    under_way: list[Amount] = []
    spent = largest = ended_calls = 0
    while spent < limit or under_way:
        budget = Budget(
            tokens=limit,
            spent=Amount(tokens=spent),
            reserved=Amount(tokens=sum(amount.tokens for amount in under_way)),
            dearest=Amount(tokens=largest),
            mean=Amount(tokens=-(-spent // ended_calls)) if ended_calls else None,
            calls=len(under_way),
            ended_calls=ended_calls,
        )
        if len(under_way) < 64 and has_room(budget, estimate):
            under_way.append(reservation(budget, estimate))
        else:
            under_way.pop(rng.randrange(len(under_way)))
            tokens = draw(rng)
            spent, largest, ended_calls = spent + tokens, max(largest, tokens), ended_calls + 1
    return spent, largest


def test_a_task_waits_for_the_end_of_a_period_an_hour_at_most_and_for_a_key_a_minute() -> None:
    now = datetime(2026, 1, 1, tzinfo=UTC)
    agent, key = BudgetOwner(BudgetScope.AGENT, "ranking"), BudgetOwner(BudgetScope.KEY, "k")
    day, soon = (Budget(usd=1.0, ends_at=now + timedelta(seconds=seconds)) for seconds in (86_400, 20))
    assert [budget_park_seconds(agent, budget, now) for budget in (Budget(), day, soon)] == [3600, 3600, 20]
    assert [budget_park_seconds(key, budget, now) for budget in (Budget(), day, soon)] == [60, 60, 20]


def test_a_call_must_fit_every_budget_that_it_uses() -> None:
    agent, key = BudgetOwner(BudgetScope.AGENT, "ranking"), BudgetOwner(BudgetScope.KEY, "k")
    estimate, dearest = Amount(tokens=10), Amount(tokens=30)
    ledger = BudgetLedger(
        {agent: Budget(tokens=100, dearest=dearest, ended_calls=9), key: Budget(tokens=70, dearest=estimate)}
    )
    assert ledger.reservation((agent, key), estimate) == dearest, "as much as the dearest of all"
    for _ in range(2):
        assert ledger.full_budget((agent, key), estimate) is None
        ledger.take((agent, key), dearest)
    assert ledger.full_budget((agent,), estimate) is None
    ledger.take((key,), estimate)
    full = ledger.full_budget((agent, key), estimate)
    assert full is not None
    assert full[0] == key
