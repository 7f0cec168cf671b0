"""Figures of one run, with their targets."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from statistics import median

from benchmarks.baseline import Baseline
from benchmarks.cycles import Cycles
from benchmarks.percentiles import percentile


@dataclass(frozen=True, slots=True, kw_only=True)
class Figure:
    """One number; `target` is in the same unit, a lower bound or an upper one."""

    name: str
    value: float
    unit: str = ""
    target: float | None = None
    more_is_better: bool = True

    @property
    def is_met(self) -> bool | None:
        """Whether the target was reached; None when there is none."""
        if self.target is None:
            return None
        return self.value >= self.target if self.more_is_better else self.value < self.target


@dataclass(frozen=True, slots=True, kw_only=True)
class Round:
    """Three ways to work off a backlog, measured one right after the other."""

    http: Cycles
    plain: Baseline
    with_events: Baseline


def of_submit(rates: Sequence[float]) -> list[Figure]:
    """Figures of submitting, from `rates` in tasks per second; the first filled an empty table and took longest."""
    return [Figure(name="submit, batches of 500, 4 clients", value=rates[0], unit="tasks/s", target=5000)]


def of_idle(seconds: Sequence[float]) -> list[Figure]:
    """Figures of an idle queue, from `seconds` between submit and lease."""
    p50, p99 = (percentile(seconds, share) * 1000 for share in (0.5, 0.99))
    return [
        Figure(name="idle, submit to lease, p50", value=p50, unit="ms", target=10, more_is_better=False),
        Figure(name="idle, submit to lease, p99", value=p99, unit="ms"),
    ]


def of_rounds(rounds: Sequence[Round]) -> list[Figure]:
    """Medians; a ratio is taken within its round, because both sides then had the same machine."""
    return [
        *_http([round_.http for round_ in rounds]),
        *_baseline("pgbench", [round_.plain for round_ in rounds]),
        *_baseline("pgbench with events", [round_.with_events for round_ in rounds]),
        Figure(name="HTTP / pgbench", value=_ratio(rounds, lambda round_: round_.plain), target=0.6),
        Figure(name="HTTP / pgbench with events", value=_ratio(rounds, lambda round_: round_.with_events)),
    ]


def of_memory(*, waiting: float, at_end: float) -> list[Figure]:
    """Memory of the API in MiB, with 500 waiting workers and at the end."""
    held_up = Figure(name="API, 500 workers waiting", value=waiting, unit="MiB", target=200, more_is_better=False)
    return [held_up, Figure(name="API, after everything", value=at_end, unit="MiB")]


def _http(samples: Sequence[Cycles]) -> list[Figure]:
    name = "HTTP, 32 workers"
    latencies = [seconds * 1000 for cycles in samples for seconds in cycles.latencies]
    return [
        Figure(name=f"{name}, lease+complete", value=median(c.per_second for c in samples), unit="cycles/s"),
        *(Figure(name=f"{name}, p{p}", value=percentile(latencies, p / 100), unit="ms") for p in (50, 95, 99)),
        Figure(name=f"{name}, CPU of the API", value=median(c.api_cpu_ms for c in samples), unit="ms/cycle"),
        Figure(name=f"{name}, CPU of PostgreSQL", value=median(c.postgres_cpu_ms for c in samples), unit="ms/cycle"),
    ]


def _baseline(name: str, samples: Sequence[Baseline]) -> list[Figure]:
    return [
        Figure(name=f"{name}, 8 clients", value=median(y.per_second for y in samples), unit="cycles/s"),
        Figure(name=f"{name}, mean", value=median(y.mean_ms for y in samples), unit="ms"),
        Figure(name=f"{name}, CPU of PostgreSQL", value=median(y.postgres_cpu_ms for y in samples), unit="ms/cycle"),
    ]


def _ratio(rounds: Sequence[Round], of: Callable[[Round], Baseline]) -> float:
    return median(round_.http.per_second / of(round_).per_second for round_ in rounds)
