"""Budgets of research goals for calls of language models: reserved with the permit, settled with the real cost."""

from dataclasses import dataclass, replace

from app.llm.rules.models import ModelLimits


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


NOTHING = Amount()


@dataclass(frozen=True, slots=True, kw_only=True)
class GoalBudget:
    """The limits of a goal (None: none), the cost of its ended calls, and the amount that calls under way reserve.

    `dearest` is the most that one of its calls has cost; `calls` are those under way.
    """

    usd: float | None = None
    tokens: int | None = None
    spent: Amount = NOTHING
    reserved: Amount = NOTHING
    dearest: Amount = NOTHING
    calls: int = 0

    def with_call(self, amount: Amount) -> "GoalBudget":
        """The budget with one more call under way."""
        return replace(self, reserved=self.reserved + amount, calls=self.calls + 1)


def estimated_amount(limits: ModelLimits, tokens: int) -> Amount:
    """The most that a call of so many tokens can cost by the prices of the model."""
    price = max(limits.input_price or 0.0, limits.output_price or 0.0)
    return Amount(usd=tokens * price / 1e6, tokens=tokens)


def reservation(budget: GoalBudget, estimate: Amount) -> Amount:
    """The amount to reserve for a call: its estimate, but no less than the dearest call of the goal has cost."""
    return estimate.at_least(budget.dearest)


def has_room(budget: GoalBudget, estimate: Amount) -> bool:
    """Whether one more call fits. While nothing is left but for a part of one, that one may be made alone.

    So is the first call of all, which shows what calls of the goal really cost: so at most one goes beyond the budget,
    however far off the estimates are.
    """
    amount, is_first = reservation(budget, estimate), budget.dearest == NOTHING
    return all(
        limit is None or (spent < limit and (not budget.calls or (not is_first and spent + reserved + more <= limit)))
        for limit, spent, reserved, more in (
            (budget.usd, budget.spent.usd, budget.reserved.usd, amount.usd),
            (budget.tokens, budget.spent.tokens, budget.reserved.tokens, amount.tokens),
        )
    )
