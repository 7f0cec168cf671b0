"""Utilisation of hosts, workers and pool: sampled every few seconds, stored by the minute; a gap is never a zero."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from enum import StrEnum

# Subjects of measurement: all workers together, the pool as a whole, or a host by its name.
WORKERS = "workers"
POOL = "pool"
_HOST = "host:"


class Measure(StrEnum):
    """A measured quantity: the first three are percentages, the others amounts in use."""

    CPU = "cpu"
    MEMORY = "memory"
    BUSY = "busy"
    CORES = "cores"
    GIGABYTES = "gigabytes"


PERCENTAGES = (Measure.CPU, Measure.MEMORY, Measure.BUSY)


@dataclass(frozen=True, slots=True, kw_only=True)
class Sample:
    """One measurement. For many workers at once: the mean of them, and the lowest and highest of any."""

    subject: str
    measure: Measure
    low: float
    mean: float
    high: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Step:
    """Samples of a subject within a time that begins at `start`."""

    subject: str
    measure: Measure
    start: datetime
    samples: int
    total: float
    low: float
    high: float

    @property
    def mean(self) -> float:
        """The mean of the samples."""
        return self.total / self.samples


@dataclass(frozen=True, slots=True, kw_only=True)
class Span(Step):
    """Samples of a subject within a minute."""

    last: float
    last_at: datetime


@dataclass(frozen=True, slots=True, kw_only=True)
class UtilisationPolicy:
    """Seconds between two samples, and after which the last is stale; and the most points in one answer."""

    every_seconds: float = 5.0
    # Twelve samples are missing: the process that measured has ended.
    stale_seconds: float = 60.0
    # More points than a screen has columns would be drawn over each other.
    max_points: int = 1500


def host_subject(name: str) -> str:
    """The subject of a host."""
    return f"{_HOST}{name}"


def is_host(subject: str) -> bool:
    """Whether the subject is a host."""
    return subject.startswith(_HOST)


def single_sample(subject: str, measure: Measure, value: float) -> Sample:
    """A measurement of one thing."""
    return Sample(subject=subject, measure=measure, low=value, mean=value, high=value)


def latest_spans(spans: Iterable[Span], measure: Measure, now: datetime, policy: UtilisationPolicy) -> dict[str, Span]:
    """Per subject, the newest span of this measure, unless its last sample is stale by now."""
    fresh = [s for s in spans if s.measure is measure and (now - s.last_at).total_seconds() <= policy.stale_seconds]
    # Of several spans of a subject the last one in this order stays, which is the newest.
    return {span.subject: span for span in sorted(fresh, key=lambda span: span.last_at)}


def fullest_host_percent(
    spans: Iterable[Span], measure: Measure, now: datetime, policy: UtilisationPolicy
) -> float | None:
    """Percent in use on the host that has the least left; of all workers where no host is measured; None unknown."""
    latest = latest_spans(spans, measure, now, policy)
    hosts = [span.last for subject, span in latest.items() if is_host(subject)]
    # Hosts are sampled by API and loops; where only workers run, their own reports stand in.
    if hosts:
        return max(hosts)
    return latest[WORKERS].last if WORKERS in latest else None


def sample_mean(spans: Iterable[Span], subject: str, measure: Measure, *, least_samples: int = 1) -> float | None:
    """Mean of all samples of a subject; None where there are too few."""
    spans_of_subject = [span for span in spans if span.subject == subject and span.measure is measure]
    samples = sum(span.samples for span in spans_of_subject)
    return sum(span.total for span in spans_of_subject) / samples if samples >= max(1, least_samples) else None


def step_starts(since: datetime, until: datetime, step: timedelta) -> Sequence[datetime]:
    """Beginnings of all steps, from that around `since` to the last before `until`."""
    # Counted from 1970, as in the statement `_STEPS`.
    epoch = datetime.fromtimestamp(0, since.tzinfo)
    first = epoch + (since - epoch) // step * step
    # Negated twice, so that the division rounds up.
    count = max(0, -((first - until) // step))
    return [first + number * step for number in range(count)]
