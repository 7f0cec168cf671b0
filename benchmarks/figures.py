"""What one run has measured, beside what was aimed for."""

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import median

from benchmarks.cycles import Cycles
from benchmarks.percentiles import percentile
from benchmarks.pgbench import Yardstick


@dataclass(frozen=True, slots=True, kw_only=True)
class Figure:
    """One number; `target` is in the same unit, a lower bound or an upper one."""

    name: str
    value: float
    unit: str = ""
    target: float | None = None
    more_is_better: bool = True

    @property
    def met(self) -> bool | None:
        """Whether the target was reached; None when there is none."""
        if self.target is None:
            return None
        return self.value >= self.target if self.more_is_better else self.value < self.target


@dataclass(frozen=True, slots=True, kw_only=True)
class Round:
    """The three ways to work off a backlog, measured one right after the other."""

    http: Cycles
    plain: Yardstick
    with_events: Yardstick


def of_submit(rates: Sequence[float]) -> list[Figure]:
    """`rates` in tasks per second; the first filled an empty table and is the longest."""
    return [Figure(name="submit over HTTP, batches of 500, 4 clients", value=rates[0], unit="tasks/s", target=5000)]


def of_idle(seconds: Sequence[float]) -> list[Figure]:
    """`seconds` from submit to lease."""
    name = "idle, from POST /tasks to the lease"
    p50, p99 = percentile(seconds, 0.5) * 1000, percentile(seconds, 0.99) * 1000
    return [
        Figure(name=f"{name}, p50", value=p50, unit="ms", target=10, more_is_better=False),
        Figure(name=f"{name}, p99", value=p99, unit="ms"),
    ]


def of_rounds(rounds: Sequence[Round]) -> list[Figure]:
    """Medians; a ratio is taken within its round, because both sides then had the same machine."""
    over_http = "lease+complete over HTTP, 32 workers"
    latencies = [seconds * 1000 for round_ in rounds for seconds in round_.http.latencies]
    return [
        Figure(name=over_http, value=median(r.http.per_second for r in rounds), unit="cycles/s"),
        *(Figure(name=f"{over_http}, p{p}", value=percentile(latencies, p / 100), unit="ms") for p in (50, 95, 99)),
        Figure(name=f"{over_http}, CPU of the API", value=median(r.http.api_cpu_ms for r in rounds), unit="ms/cycle"),
        Figure(
            name=f"{over_http}, CPU of PostgreSQL",
            value=median(r.http.postgres_cpu_ms for r in rounds),
            unit="ms/cycle",
        ),
        *_yardstick("pgbench, the same claim and completion, 8 clients", [r.plain for r in rounds]),
        *_yardstick("pgbench, also writing the events, 8 clients", [r.with_events for r in rounds]),
        Figure(name="HTTP / pgbench", value=median(r.http.per_second / r.plain.per_second for r in rounds), target=0.6),
        Figure(
            name="HTTP / pgbench with events",
            value=median(r.http.per_second / r.with_events.per_second for r in rounds),
        ),
    ]


def of_memory(*, waiting: float, after: float) -> list[Figure]:
    """MiB."""
    return [
        Figure(
            name="memory of the API, 500 workers waiting", value=waiting, unit="MiB", target=200, more_is_better=False
        ),
        Figure(name="memory of the API after everything", value=after, unit="MiB"),
    ]


def _yardstick(name: str, measured: Sequence[Yardstick]) -> list[Figure]:
    return [
        Figure(name=name, value=median(y.per_second for y in measured), unit="cycles/s"),
        Figure(name=f"{name}, mean", value=median(y.mean_ms for y in measured), unit="ms"),
        Figure(name=f"{name}, CPU of PostgreSQL", value=median(y.postgres_cpu_ms for y in measured), unit="ms/cycle"),
    ]
