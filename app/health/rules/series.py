"""Metrics that workers and agents push: what is taken, and how samples become one point a minute.

A series is a name with its labels. Their number is bounded, because whoever labels by something that never comes twice
would otherwise fill every database and every screen.
"""

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum

from app.kernel.agents import AgentType


class MetricKind(StrEnum):
    """A gauge is a value of the moment; a counter's sample is how much has come since the sample before."""

    GAUGE = "gauge"
    COUNTER = "counter"


@dataclass(frozen=True, slots=True, kw_only=True, order=True)
class Series:
    """A name with its labels; an empty label is none."""

    name: str
    agent: str = ""
    worker: str = ""
    goal: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class PushedSample:
    """A sample as it came; without a time it is of the moment at which it arrives."""

    series: Series
    kind: MetricKind
    value: float
    at: datetime | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Point:
    """The samples of a series within the minute that begins at `minute`."""

    series: Series
    minute: datetime
    samples: int
    total: float
    low: float
    high: float
    last: float
    last_at: datetime


@dataclass(frozen=True, slots=True, kw_only=True)
class CurrentValue:
    """What was pushed lately under a name, by agent type: the mean of gauges, or what came a second."""

    name: str
    kind: MetricKind
    agent: AgentType | None
    value: float


@dataclass(frozen=True, slots=True, kw_only=True)
class SeriesPolicy:
    """Bounds; seconds and days. A thousand workers may push two series each for a week: 20 million small rows."""

    most_series: int = 2000
    most_names: int = 100
    # Clocks of hosts in one network agree far better; a sender that was cut off for an hour may catch up.
    ahead_seconds: float = 60.0
    behind_seconds: float = 3600.0
    keep_days: int = 7
    # For so long a batch is recognised when it comes again.
    remember_batches_days: int = 1


def refusals(
    samples: Sequence[PushedSample], kinds: Mapping[str, MetricKind], now: datetime, policy: SeriesPolicy
) -> list[tuple[str, str]]:
    """What is wrong with which value of which sample; `kinds` are those of the names that are known."""
    found: dict[str, MetricKind] = dict(kinds)
    wrong = []
    for place, pushed in enumerate(samples):
        kind = found.setdefault(pushed.series.name, pushed.kind)
        if kind is not pushed.kind:
            wrong.append((f"samples.{place}.kind", f"{pushed.series.name} is a {kind}"))
        if pushed.kind is MetricKind.COUNTER and pushed.value < 0:
            wrong.append((f"samples.{place}.value", "a counter only grows; send what has come since the last sample"))
        if (skew := _skew(pushed.at, now, policy)) is not None:
            wrong.append((f"samples.{place}.at", skew))
    return wrong


def _skew(at: datetime | None, now: datetime, policy: SeriesPolicy) -> str | None:
    seconds = (at - now).total_seconds() if at is not None else 0.0
    if seconds > policy.ahead_seconds:
        return f"it is {seconds:,.0f} s in the future, and {policy.ahead_seconds:g} are allowed; is the clock right?"
    if -seconds > policy.behind_seconds:
        return f"it is {-seconds:,.0f} s ago, and {policy.behind_seconds:g} are allowed"
    return None


def overflow(new: Iterable[Series], known_series: int, known_names: Iterable[str], policy: SeriesPolicy) -> str | None:
    """Why no more series may come, or None while they may."""
    coming = set(new)
    names = set(known_names) | {series.name for series in coming}
    if len(names) > policy.most_names:
        return f"there are {policy.most_names:,} names of metrics already; tell things apart by labels instead"
    if known_series + len(coming) > policy.most_series:
        return (
            f"there are {known_series:,} series already, {len(coming):,} would come and {policy.most_series:,} may be; "
            "do not label by what never comes twice. A series is forgotten a week after its last sample"
        )
    return None


def fold_samples(samples: Iterable[PushedSample], now: datetime) -> list[Point]:
    """One point for each series and minute, in the order in which they are to be written."""
    gathered: dict[tuple[Series, datetime], list[tuple[datetime, float]]] = defaultdict(list)
    for pushed in samples:
        at = pushed.at or now
        gathered[pushed.series, at.replace(second=0, microsecond=0)].append((at, pushed.value))
    return [_point(*key, values) for key, values in sorted(gathered.items())]


def _point(series: Series, minute: datetime, values: Sequence[tuple[datetime, float]]) -> Point:
    numbers = [value for _, value in values]
    # Of two of the same time the one that came later.
    last_at, last = sorted(values, key=lambda pair: pair[0])[-1]
    return Point(
        series=series,
        minute=minute,
        samples=len(numbers),
        total=sum(numbers),
        low=min(numbers),
        high=max(numbers),
        last=last,
        last_at=last_at,
    )
