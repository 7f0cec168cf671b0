"""Hard limits of a research goal: iterations, time, compute and money. They hold whatever the quality does."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

# At these shares of a limit somebody should hear of it.
NOTICES = (0.95, 0.9, 0.8)
# The mean of iterations that grow slowly is behind them; with this weight of the last it is by less than two.
_LEAST_WEIGHT = 0.4
_EPSILON = 1e-9
# Tasks that take no time at all are no measure of anything.
_SHORTEST = 1e-6


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """Iterations; seconds since the goal was created; seconds on workers; money. None: no such limit."""

    max_iterations: int
    time_seconds: float | None = None
    compute_seconds: float | None = None
    money: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Compute:
    """What the tasks of a goal have cost on workers, in seconds: attempts that ended, and those that run now.

    `prior_seconds` is what an attempt is taken to last before any has ended; 0 where nobody knows.
    """

    spent_seconds: float = 0.0
    attempts: int = 0
    running: int = 0
    running_seconds: float = 0.0
    prior_seconds: float = 0.0

    @property
    def mean_seconds(self) -> float:
        """Of an attempt that ended; 0 where none has."""
        return self.spent_seconds / self.attempts if self.attempts else 0.0

    @property
    def expected_seconds(self) -> float:
        """Of one more attempt: the mean; before there is one the prior, or what those that run have taken so far."""
        if self.attempts:
            return self.mean_seconds
        return max(self.prior_seconds, self.running_seconds / self.running if self.running else 0.0)

    @property
    def used_seconds(self) -> float:
        """What workers have really worked until now."""
        return self.spent_seconds + self.running_seconds

    @property
    def committed_seconds(self) -> float:
        """What is spent, and what runs, each attempt as long as expected or as it has taken so far in all."""
        return self.spent_seconds + max(self.running * self.expected_seconds, self.running_seconds)


@dataclass(frozen=True, slots=True, kw_only=True)
class Usage:
    """How much of its limits a goal has used."""

    iterations: int = 0
    elapsed_seconds: float = 0.0
    compute: Compute = Compute()
    money: float = 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Pace:
    """What the next iteration is expected to take, by those before it; None where nothing is known."""

    seconds: float | None = None
    compute_seconds: float | None = None
    money: float | None = None


def expected(values: Sequence[float]) -> float | None:
    """The decayed mean of what iterations took, oldest first; None when there was none."""
    mean: float | None = None
    for count, value in enumerate(values, 1):
        weight = max(_LEAST_WEIGHT, 1 / count)
        mean = value if mean is None else mean + weight * (value - mean)
    return mean


def exhausted(limits: Limits, usage: Usage) -> str | None:
    """The limit that is used up, in words; None while there is something left of each."""
    return next((f"{use.words} is used up" for use in uses(limits, usage) if use.share >= 1 - _EPSILON), None)


def overrun(limits: Limits, usage: Usage, pace: Pace) -> str | None:
    """Why there must be no further iteration: a limit is used up, or one more iteration would go beyond it."""
    spent = exhausted(limits, usage)
    if spent is not None:
        return spent
    for use in uses(limits, usage, pace):
        if use.next is not None and use.used + use.next > use.limit * (1 + _EPSILON):
            return f"one more iteration would overrun {use.words}: it takes about {_amount(use.next, use.unit)}"
    return None


def room(limits: Limits, compute: Compute) -> int | None:
    """How many more attempts of the length expected the compute budget has room for; None where there is no bound.

    Less than 1 means: lease no more. Before anything has run it is 1 at least: only an attempt tells for sure.
    """
    if limits.compute_seconds is None:
        return None
    left = limits.compute_seconds - compute.committed_seconds
    if left <= 0:
        return 0
    if compute.expected_seconds <= _SHORTEST:
        return None
    has_run = compute.attempts or compute.running
    return max(0 if has_run else 1, int(left / compute.expected_seconds + _EPSILON))


def notices(limits: Limits, usage: Usage) -> list[str]:
    """What is nearly used up: of each limit the highest of 80, 90 and 95 % that is reached."""
    found = []
    for use in uses(limits, usage):
        reached = next((level for level in NOTICES if use.share >= level - _EPSILON), None)
        if reached is not None:
            found.append(f"at least {100 * reached:.0f} % are used: {use.words}")
    return found


@dataclass(frozen=True, slots=True, kw_only=True)
class Use:
    """How much of one limit is used, and how much the next iteration is expected to add."""

    name: str
    used: float
    limit: float
    unit: str = ""
    next: float | None = None

    @property
    def share(self) -> float:
        """1 when it is used up; a limit of 0 always is."""
        return self.used / self.limit if self.limit > 0 else 1.0

    @property
    def words(self) -> str:
        """With the numbers."""
        limit, used = _amount(self.limit, self.unit), _amount(self.used, self.unit)
        name = f"of {self.name}" if self.unit else self.name.removesuffix("s" if self.limit == 1 else "")
        return f"the limit of {limit} {name} ({used} so far)"


def uses(limits: Limits, usage: Usage, pace: Pace | None = None) -> Iterator[Use]:
    """Every limit that there is; compute counts as committed."""
    pace = pace or Pace()
    yield Use(name="iterations", used=usage.iterations, limit=limits.max_iterations)
    if limits.time_seconds is not None:
        yield Use(name="time", used=usage.elapsed_seconds, limit=limits.time_seconds, unit="s", next=pace.seconds)
    if limits.compute_seconds is not None:
        used = usage.compute.committed_seconds
        yield Use(name="compute", used=used, limit=limits.compute_seconds, unit="s", next=pace.compute_seconds)
    if limits.money is not None:
        yield Use(name="money", used=usage.money, limit=limits.money, next=pace.money)


def _amount(value: float, unit: str) -> str:
    number = f"{value:,.0f}" if value == int(value) else f"{value:,.4g}"
    return f"{number} {unit}".strip()
