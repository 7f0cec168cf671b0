"""Hard limits of a research goal: iterations, time, compute, money and tokens. They hold whatever the quality does."""

from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass

# Shares of a limit at which a notice is due, highest first.
NOTICE_SHARES = (0.95, 0.9, 0.8)
# Names of the limits that calls of language models use up.
SPENDING = frozenset({"money", "tokens"})
# A plain mean lags behind iterations that grow; with at least this weight of the last it lags by less than two of them.
_MIN_WEIGHT = 0.4
_EPSILON = 1e-9


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """Iterations; seconds since the goal was created; seconds on workers; money; tokens. None: no such limit."""

    max_iterations: int
    time_seconds: float | None = None
    compute_seconds: float | None = None
    money: float | None = None
    tokens: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Compute:
    """Seconds that the tasks of a goal have cost on workers: attempts that ended, and attempts that run now.

    `prior_seconds` is the expected length of an attempt before any has ended; 0 where there is no estimate.
    """

    spent_seconds: float = 0.0
    attempts: int = 0
    running: int = 0
    running_seconds: float = 0.0
    prior_seconds: float = 0.0

    @property
    def mean_seconds(self) -> float:
        """Mean length of an attempt that ended; 0 where none has."""
        return self.spent_seconds / self.attempts if self.attempts else 0.0

    @property
    def expected_seconds(self) -> float:
        """Expected length of one more attempt: the mean, else the prior, but no less than running attempts took."""
        if self.attempts:
            return self.mean_seconds
        return max(self.prior_seconds, self.running_seconds / self.running if self.running else 0.0)

    @property
    def committed_seconds(self) -> float:
        """Spent seconds plus running attempts, taken to be as long as expected, or as they have been if longer."""
        return self.spent_seconds + max(self.running * self.expected_seconds, self.running_seconds)


@dataclass(frozen=True, slots=True, kw_only=True)
class Usage:
    """Iterations, seconds, compute, money and tokens that a goal has used."""

    iterations: int = 0
    elapsed_seconds: float = 0.0
    compute: Compute = Compute()
    money: float = 0.0
    tokens: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Forecast:
    """Expected cost of the next iteration, estimated from those before it; None where there is no estimate."""

    seconds: float | None = None
    compute_seconds: float | None = None
    money: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class LimitUse:
    """Amount of one limit that is used, and the amount that the next iteration is expected to add."""

    name: str
    amount: float
    limit: float
    unit: str = ""
    next_amount: float | None = None

    @property
    def share(self) -> float:
        """Used share of the limit, 1 when it is used up; a limit of next to nothing always is."""
        return self.amount / self.limit if self.limit > _EPSILON else 1.0

    @property
    def description(self) -> str:
        """The limit and the amount used, in words."""
        limit, amount = _format_amount(self.limit, self.unit), _format_amount(self.amount, self.unit)
        name = f"of {self.name}" if self.unit else self.name.removesuffix("s" if self.limit == 1 else "")
        return f"the limit of {limit} {name} ({amount} so far)"


def decayed_mean(values: Sequence[float]) -> float | None:
    """Exponentially weighted mean of values, oldest first; a plain mean of the first few; None when there are none."""
    mean: float | None = None
    for count, value in enumerate(values, 1):
        weight = max(_MIN_WEIGHT, 1 / count)
        mean = value if mean is None else mean + weight * (value - mean)
    return mean


def limit_uses(limits: Limits, usage: Usage, forecast: Forecast | None = None) -> Iterator[LimitUse]:
    """Yield the use of every limit that is set; compute counts as committed."""
    forecast = forecast or Forecast()
    yield LimitUse(name="iterations", amount=usage.iterations, limit=limits.max_iterations)
    if limits.time_seconds is not None:
        seconds, limit = usage.elapsed_seconds, limits.time_seconds
        yield LimitUse(name="time", amount=seconds, limit=limit, unit="s", next_amount=forecast.seconds)
    if limits.compute_seconds is not None:
        seconds, limit = usage.compute.committed_seconds, limits.compute_seconds
        yield LimitUse(name="compute", amount=seconds, limit=limit, unit="s", next_amount=forecast.compute_seconds)
    if limits.money is not None:
        yield LimitUse(name="money", amount=usage.money, limit=limits.money, next_amount=forecast.money)
    if limits.tokens is not None:
        yield LimitUse(name="tokens", amount=usage.tokens, limit=limits.tokens)


def exhausted_limit(limits: Limits, usage: Usage) -> str | None:
    """The first limit that is used up, in words; None while something is left of each."""
    return next(
        (f"{use.description} is used up" for use in limit_uses(limits, usage) if use.share >= 1 - _EPSILON), None
    )


def overrun_reason(limits: Limits, usage: Usage, forecast: Forecast) -> str | None:
    """Reason against a further iteration: a limit is used up, or one more would exceed it; None when there is none."""
    reason = exhausted_limit(limits, usage)
    if reason is not None:
        return reason
    for use in limit_uses(limits, usage, forecast):
        if use.next_amount is not None and use.amount + use.next_amount > use.limit * (1 + _EPSILON):
            amount = _format_amount(use.next_amount, use.unit)
            return f"one more iteration would overrun {use.description}: it takes about {amount}"
    return None


def notices(limits: Limits, usage: Usage, names: Collection[str] | None = None) -> list[str]:
    """A sentence for each limit that is nearly used up, with the highest of 80, 90 and 95 % that it has reached.

    Only of the limits of these names if any are given.
    """
    sentences = []
    for use in limit_uses(limits, usage):
        if names is not None and use.name not in names:
            continue
        level = next((level for level in NOTICE_SHARES if use.share >= level - _EPSILON), None)
        if level is not None:
            sentences.append(f"at least {100 * level:.0f} % are used: {use.description}")
    return sentences


def _format_amount(value: float, unit: str) -> str:
    number = f"{value:,.0f}" if value == int(value) else f"{value:,.4g}"
    return f"{number} {unit}".strip()
