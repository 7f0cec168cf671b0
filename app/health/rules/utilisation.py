"""How busy hosts and workers are: measured every few seconds, kept by the minute, and never zero for want of a look."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from enum import StrEnum

# Whose figures they are: all workers together, the pool as a whole, or a host by its name.
WORKERS = "workers"
POOL = "pool"
_HOST = "host:"


class Measure(StrEnum):
    """What is measured. The first three are percentages of what there is, the others amounts in use."""

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
class Span:
    """What was measured of a subject within a minute, or a longer span, that begins at `start`."""

    subject: str
    measure: Measure
    start: datetime
    samples: int
    total: float
    low: float
    high: float
    last: float
    last_at: datetime

    @property
    def mean(self) -> float:
        """The mean of the samples."""
        return self.total / self.samples


@dataclass(frozen=True, slots=True, kw_only=True)
class UtilisationPolicy:
    """Seconds between two samples, and after which the last one says nothing of the present; the widest answer."""

    every_seconds: float = 5.0
    # Twelve samples missed: whoever measured is gone.
    stale_seconds: float = 60.0
    # More points than a screen has columns would be drawn over each other.
    max_points: int = 1500


def host_subject(name: str) -> str:
    """The subject that stands for a host."""
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
    return {span.subject: span for span in sorted(fresh, key=lambda span: span.last_at)}


def fullest_host_percent(
    spans: Iterable[Span], measure: Measure, now: datetime, policy: UtilisationPolicy
) -> float | None:
    """Percent in use on the host that has the least left; of all workers where no host is measured; None unknown."""
    known = latest_spans(spans, measure, now, policy)
    hosts = [span.last for subject, span in known.items() if is_host(subject)]
    if hosts:
        return max(hosts)
    return known[WORKERS].last if WORKERS in known else None


def sample_mean(spans: Iterable[Span], subject: str, measure: Measure, *, least_samples: int = 1) -> float | None:
    """The mean of all samples of a subject, None where there are too few."""
    known = [span for span in spans if span.subject == subject and span.measure is measure]
    samples = sum(span.samples for span in known)
    return sum(span.total for span in known) / samples if samples >= max(1, least_samples) else None


def step_starts(since: datetime, until: datetime, step: timedelta) -> Sequence[datetime]:
    """The beginnings of all steps from the one that holds `since` to the one before `until`."""
    first = step_start(since, step)
    count = max(0, -((first - until) // step))
    return [first + place * step for place in range(count)]


def step_start(moment: datetime, step: timedelta) -> datetime:
    """The beginning of the step that holds a moment; steps are counted from 1970, as those of the store are."""
    epoch = datetime.fromtimestamp(0, moment.tzinfo)
    return epoch + (moment - epoch) // step * step
