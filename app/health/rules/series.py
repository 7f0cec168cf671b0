"""Rules of pushed metrics: which samples are accepted, and how they become one point a minute.

A series is a name with its labels. Their number is bounded, because a label that never takes the same value twice
would otherwise fill every database and every screen.
"""

from collections import defaultdict
from collections.abc import Collection, Iterable, Mapping, Sequence
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
    """A name with its labels; an empty one is absent."""

    name: str
    agent: str = ""
    worker: str = ""
    goal: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class PushedSample:
    """A sample as it was sent; without a time it belongs to the moment of its arrival."""

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
    """Recent value of a name and agent type: the mean of gauges, or the rate of counters per second."""

    name: str
    kind: MetricKind
    agent: AgentType | None
    value: float


@dataclass(frozen=True, slots=True, kw_only=True)
class SeriesPolicy:
    """Bounds; seconds and days. A thousand workers may push two series each for a week: 20 million small rows."""

    max_series: int = 2000
    max_names: int = 100
    # Of those that one sender has begun, so that none of them uses up all. A key counts with the workers that have
    # registered by it: whoever has a pool's key has as many workers as they like.
    max_series_of_worker: int = 50
    max_series_of_key: int = 1600
    max_names_of_key: int = 80
    # Clocks of hosts in one network agree far better; a sender that was cut off for an hour may catch up.
    ahead_seconds: float = 60.0
    behind_seconds: float = 3600.0
    keep_days: int = 7
    # For so long a batch is recognized when it is sent again.
    remember_batches_days: int = 1


def refusals(
    samples: Sequence[PushedSample], kinds: Mapping[str, MetricKind], now: datetime, policy: SeriesPolicy
) -> list[tuple[str, str]]:
    """Fields that are refused, each with the reason; `kinds` are those of existing names."""
    kind_by_name: dict[str, MetricKind] = dict(kinds)
    errors = []
    for index, sample in enumerate(samples):
        # A new name takes the kind of its first sample, so two kinds within one batch are refused as well.
        kind = kind_by_name.setdefault(sample.series.name, sample.kind)
        if kind is not sample.kind:
            errors.append((f"samples.{index}.kind", f"{sample.series.name} is a {kind}"))
        if sample.kind is MetricKind.COUNTER and sample.value < 0:
            errors.append((f"samples.{index}.value", "a counter only grows; send what has come since the last sample"))
        if (skew := _skew(sample.at, now, policy)) is not None:
            errors.append((f"samples.{index}.at", skew))
    return errors


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkerLabels:
    """The labels that the samples of a worker may bear, beside none: by its name, its agents, and its tasks' goals."""

    worker: str
    agents: frozenset[str]
    goals: frozenset[str]


def label_refusals(samples: Sequence[PushedSample], allowed: WorkerLabels) -> list[tuple[str, str]]:
    """Fields of a worker's samples that name somebody or something else, each with the reason."""
    errors = []
    for index, series in enumerate(sample.series for sample in samples):
        if series.worker not in ("", allowed.worker):
            errors.append((f"samples.{index}.worker", f"the key is that of {allowed.worker}; name that one, or none"))
        if series.agent and series.agent not in allowed.agents:
            errors.append((f"samples.{index}.agent", "this worker cannot run this agent"))
        if series.goal and series.goal not in allowed.goals:
            errors.append((f"samples.{index}.goal", "this worker has held no task of this goal lately"))
    return errors


def _skew(at: datetime | None, now: datetime, policy: SeriesPolicy) -> str | None:
    seconds = (at - now).total_seconds() if at is not None else 0.0
    if seconds > policy.ahead_seconds:
        return f"it is {seconds:,.0f} s in the future, and {policy.ahead_seconds:g} are allowed; is the clock right?"
    if -seconds > policy.behind_seconds:
        return f"it is {-seconds:,.0f} s ago, and {policy.behind_seconds:g} are allowed"
    return None


def overflow(
    new: Iterable[Series], series_count: int, existing_names: Iterable[str], policy: SeriesPolicy
) -> str | None:
    """Reason to refuse the new series, or None while there is room."""
    new_series = set(new)
    names = set(existing_names) | {series.name for series in new_series}
    if len(names) > policy.max_names:
        return f"there are {policy.max_names:,} names of metrics already; tell things apart by labels instead"
    if series_count + len(new_series) > policy.max_series:
        return (
            f"there are {series_count:,} series already, {len(new_series):,} would come "
            f"and {policy.max_series:,} may be; do not label by what never comes twice. "
            "A series is forgotten a week after its last sample"
        )
    return None


@dataclass(frozen=True, slots=True, kw_only=True)
class BegunSeries:
    """Series that a sender has begun, those of its key, and the names that nobody but its key bears."""

    own: int
    of_key: int
    names_of_key: int


def share_overflow(
    new: Iterable[Series], existing_names: Collection[str], begun: BegunSeries, *, is_worker: bool, policy: SeriesPolicy
) -> str | None:
    """Reason to refuse a sender the new series, or None while it and its key have room."""
    new_series = set(new)
    new_names = {series.name for series in new_series} - set(existing_names)
    if is_worker and begun.own + len(new_series) > policy.max_series_of_worker:
        return f"this worker has begun as many series as it may, which is {policy.max_series_of_worker:,}"
    if begun.of_key + len(new_series) > policy.max_series_of_key:
        return f"this key has begun as many series as it may, with its workers, which is {policy.max_series_of_key:,}"
    if begun.names_of_key + len(new_names) > policy.max_names_of_key:
        return f"this key has begun as many names as it may, with its workers, which is {policy.max_names_of_key:,}"
    return None


def fold_samples(samples: Iterable[PushedSample], now: datetime) -> list[Point]:
    """One point for each series and minute, ordered by these: all senders lock rows in the same order."""
    values_by_minute: dict[tuple[Series, datetime], list[tuple[datetime, float]]] = defaultdict(list)
    for sample in samples:
        at = sample.at or now
        values_by_minute[sample.series, at.replace(second=0, microsecond=0)].append((at, sample.value))
    return [_point(*key, values) for key, values in sorted(values_by_minute.items())]


def _point(series: Series, minute: datetime, values: Sequence[tuple[datetime, float]]) -> Point:
    numbers = [value for _, value in values]
    # Of two samples of the same time the later one in the batch.
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
