"""Budgets for calls of language models: reserved with the permit, settled with the real cost."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from datetime import datetime
from enum import StrEnum
from typing import NamedTuple

from app.llm.rules.models import ModelLimits


class BudgetScope(StrEnum):
    """Things that have budgets: goals of their own, agent types and API keys those that operators set."""

    GOAL = "goal"
    AGENT = "agent"
    KEY = "key"


class BudgetPeriod(StrEnum):
    """Time for which a budget is meant; at its end, by UTC, the budget is whole again. Total: for ever."""

    TOTAL = "total"
    HOUR = "hour"
    DAY = "day"
    WEEK = "week"
    MONTH = "month"


class BudgetOwner(NamedTuple):
    """A goal, an agent type or an API key, by name."""

    scope: BudgetScope
    name: str

    @property
    def waits_for(self) -> str:
        """The name under which tasks wait for this budget."""
        return f"{AWAITED_BUDGET}{self.scope}:{self.name}"

    @property
    def title(self) -> str:
        """The owner in words."""
        return _OWNERS[self.scope].format(name=self.name)

    @classmethod
    def awaited(cls, name: str) -> "BudgetOwner | None":
        """The owner of the budget for which tasks wait under this name; None where it is no budget's."""
        scope, _, owner = name.removeprefix(AWAITED_BUDGET).partition(":")
        is_budget = name.startswith(AWAITED_BUDGET) and scope in set(BudgetScope)
        return cls(BudgetScope(scope), owner) if is_budget else None


AWAITED_BUDGET = "budget:"
# A share of a budget at which an event and an alert tell of it.
LOW_BUDGET_SHARE = 0.8
# While calls cost more than their estimates, so many may be under way for each that has ended.
_CONCURRENT_SHARE = 0.5
# A call reserves no more than so many times the mean: else one call, or one false report, that is far above all others
# would make a budget serial. In simulation (`tests/llm/rules/test_spending.py`) no budget is overrun by more for it.
_MOST_MEANS = 4
# More than a call reads and writes together: few models have a context of two million. No estimate reserves more, and
# no report charges more, so that nobody can use up a budget of many by one number.
MAX_CALL_TOKENS = 2_097_152
# US dollars for a million tokens, as the dearest model has listed them; where a model has no price, none is above it.
_MAX_TOKEN_PRICE = 600.0
_OWNERS = {
    BudgetScope.GOAL: "the research goal",
    BudgetScope.AGENT: "the agent type {name}",
    BudgetScope.KEY: "the key {name}",
}
_MAX_PARK_SECONDS, _KEY_PARK_SECONDS = 3600.0, 60.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Amount:
    """US dollars and tokens."""

    usd: float = 0.0
    tokens: int = 0

    def __add__(self, other: "Amount") -> "Amount":
        return Amount(usd=self.usd + other.usd, tokens=self.tokens + other.tokens)

    def at_least(self, other: "Amount") -> "Amount":
        """The larger of both, each for itself."""
        return Amount(usd=max(self.usd, other.usd), tokens=max(self.tokens, other.tokens))

    def at_most(self, other: "Amount") -> "Amount":
        """The smaller of both, each for itself."""
        return Amount(usd=min(self.usd, other.usd), tokens=min(self.tokens, other.tokens))

    def times(self, factor: int) -> "Amount":
        """The amount so many times."""
        return Amount(usd=self.usd * factor, tokens=self.tokens * factor)


NOTHING = Amount()


@dataclass(frozen=True, slots=True, kw_only=True)
class Budget:
    """Limits (None: none), the cost of ended calls, and the amount that calls under way reserve.

    `dearest` is the most that one of the calls has cost, and `mean` what they have cost on average (None: unknown);
    `calls` are those under way, `ended_calls` those that have cost something; at `ends_at` the period is over.
    """

    usd: float | None = None
    tokens: int | None = None
    spent: Amount = NOTHING
    reserved: Amount = NOTHING
    dearest: Amount = NOTHING
    mean: Amount | None = None
    calls: int = 0
    ended_calls: int = 0
    ends_at: datetime | None = None

    @property
    def is_used_up(self) -> bool:
        """Whether nothing is left, whatever is under way."""
        return (self.usd is not None and self.spent.usd >= self.usd) or (
            self.tokens is not None and self.spent.tokens >= self.tokens
        )

    def with_call(self, amount: Amount) -> "Budget":
        """The budget with one more call under way."""
        return replace(self, reserved=self.reserved + amount, calls=self.calls + 1)


def estimated_amount(limits: ModelLimits, tokens: int) -> Amount:
    """The most that a call of so many tokens can cost by the prices of the model."""
    price, tokens = max(limits.input_price or 0.0, limits.output_price or 0.0), min(tokens, MAX_CALL_TOKENS)
    return Amount(usd=tokens * price / 1e6, tokens=tokens)


def max_call_usd(limits: ModelLimits) -> float:
    """The most that any call of the model can cost, in US dollars."""
    prices = limits.input_price, limits.output_price
    price = max(_MAX_TOKEN_PRICE if price is None else price for price in prices)
    return MAX_CALL_TOKENS * price / 1e6


def reservation(budget: Budget, estimate: Amount) -> Amount:
    """The amount to reserve for a call: its estimate, but no less than the dearest usual call has cost."""
    dearest = budget.dearest
    return estimate.at_least(dearest if budget.mean is None else dearest.at_most(budget.mean.times(_MOST_MEANS)))


def has_room(budget: Budget, estimate: Amount) -> bool:
    """Whether one more call fits. While nothing is left but for a part of one, that one may be made alone.

    So is the first call of all, which shows what calls cost. While that is more than the estimate, half as many are
    under way as have ended: so the dearest are likely to be among those that ended, however far off the estimates are.
    """
    if not budget.calls:
        return not budget.is_used_up
    amount, is_first = reservation(budget, estimate), budget.dearest == NOTHING
    is_tried = budget.calls < _CONCURRENT_SHARE * budget.ended_calls
    return all(
        limit is None
        or (spent < limit and spent + reserved + more <= limit and not is_first and (is_tried or own >= more))
        for limit, spent, reserved, more, own in (
            (budget.usd, budget.spent.usd, budget.reserved.usd, amount.usd, estimate.usd),
            (budget.tokens, budget.spent.tokens, budget.reserved.tokens, amount.tokens, estimate.tokens),
        )
    )


def budget_reason(owner: BudgetOwner, budget: Budget) -> str:
    """The reason of a refusal for a budget: whose it is, and when it ends."""
    # The id of a goal is that of its task, which the caller knows; its stored form is not for people.
    whose = owner.title
    if not budget.is_used_up:
        return f"calls under way may use up what is left of the budget of {whose}"
    until = "" if budget.ends_at is None else f" until {budget.ends_at:%Y-%m-%d %H:%M} UTC"
    return f"the budget of {whose} is used up{until}"


def budget_park_seconds(owner: BudgetOwner, budget: Budget, now: datetime) -> float:
    """Seconds for which a task may be set aside for a budget that is used up; it is woken once there is room."""
    # A worker of another key may have the task soon.
    longest = _KEY_PARK_SECONDS if owner.scope is BudgetScope.KEY else _MAX_PARK_SECONDS
    seconds = longest if budget.ends_at is None else (budget.ends_at - now).total_seconds()
    return max(1.0, min(seconds, longest))


class BudgetLedger:
    """Budgets of several owners, counted down during a decision; whoever has none is not limited."""

    def __init__(self, budgets: Mapping[BudgetOwner, Budget]) -> None:
        self._budgets = dict(budgets)

    def full_budget(self, owners: Iterable[BudgetOwner], estimate: Amount) -> tuple[BudgetOwner, Budget] | None:
        """The first of these owners whose budget has no room for one more call, with that budget."""
        return next(((owner, budget) for owner, budget in self._of(owners) if not has_room(budget, estimate)), None)

    def reservation(self, owners: Iterable[BudgetOwner], estimate: Amount) -> Amount:
        """The amount to reserve for a call in the budgets of all these owners."""
        amount = estimate
        for _, budget in self._of(owners):
            amount = reservation(budget, amount)
        return amount

    def take(self, owners: Iterable[BudgetOwner], amount: Amount) -> None:
        """Count one more call under way."""
        for owner, budget in self._of(owners):
            self._budgets[owner] = budget.with_call(amount)

    def _of(self, owners: Iterable[BudgetOwner]) -> list[tuple[BudgetOwner, Budget]]:
        return [(owner, self._budgets[owner]) for owner in owners if owner in self._budgets]
