"""Summaries of runs: waits, cost, reversals of the pool, and breaches of its bounds; and runs side by side."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial

from app.scaling.rules.target import ScalingPolicy
from app.scaling.simulation.baselines import Dask, Hpa, Keda, Knative, Static, Threshold
from app.scaling.simulation.engine import Run, World, simulate
from app.scaling.simulation.scalers import Rule, Scaler
from app.scaling.simulation.workloads import AGENTS, Workload

LATE_AFTER_SECONDS = 30.0


BASELINES: dict[str, Callable[[int, int], Scaler]] = {
    **{baseline.name: baseline for baseline in (Threshold, Hpa, Knative, Dask)},
    **{f"keda-{tasks}": partial(Keda, tasks_per_worker=tasks) for tasks in (1, 2, 5)},
}
STATIC = Static.name


@dataclass(frozen=True, slots=True, kw_only=True)
class Summary:
    """Figures of a run: waits in seconds, shares of 1.

    `cost` is worker-hours over hours of pure work: 1 is a pool that never idles. `turns` are real starts after real
    removals, or the reverse, within 300 s. `longest_waits`, by agent type, show which type starved. `breaches` of
    min_workers or max_workers must be 0.
    """

    scaler: str
    tasks: int
    wait_p50: float
    wait_p95: float
    wait_p99: float
    wait_max: float
    late_share: float
    cost: float
    worker_hours: float
    work_hours: float
    turns: int
    peak_workers: int
    deaths: int
    breaches: int
    longest_waits: Mapping[str, float]


def summary(run: Run) -> Summary:
    """Summarize a run."""
    waits = sorted(run.waits)
    late = sum(wait > LATE_AFTER_SECONDS for wait in waits)
    work = run.workload.work_seconds
    return Summary(
        scaler=run.scaler,
        tasks=len(run.workload),
        wait_p50=percentile(waits, 0.50),
        wait_p95=percentile(waits, 0.95),
        wait_p99=percentile(waits, 0.99),
        wait_max=waits[-1] if waits else 0.0,
        late_share=late / len(waits) if waits else 0.0,
        cost=run.pool.worker_seconds / work if work else 0.0,
        worker_hours=run.pool.worker_seconds / 3600,
        work_hours=work / 3600,
        turns=run.pool.turns,
        peak_workers=run.pool.peak,
        deaths=run.deaths,
        breaches=run.pool.breaches,
        longest_waits={agent.value: run.longest_wait[AGENTS.index(agent)] for agent in run.workload.agent_types},
    )


def percentile(values: Sequence[float], share: float) -> float:
    """Nearest-rank percentile of sorted values: the smallest that this share of them does not exceed; 0 of none."""
    return values[max(0, -int(-share * len(values) // 1) - 1)] if values else 0.0


def compare(
    workload: Workload,
    policy: ScalingPolicy,
    world: World,
    baselines: Sequence[str] = (),
    *,
    progress: Callable[[str, float], None] = lambda scaler, share: None,
) -> list[Run]:
    """Run our rule, then the named baselines; `progress` is called with the scaler and the share of arrivals so far."""
    scalers = [
        Rule(policy, start_seconds=world.start_seconds),
        *(_baseline(name, workload, world) for name in baselines),
    ]
    return [simulate(workload, scaler, world, progress=partial(progress, scaler.name)) for scaler in scalers]


def _baseline(name: str, workload: Workload, world: World) -> Scaler:
    if name == STATIC:
        # The size that the mean load needs at 70 % use, which in life is known only afterwards.
        span = max(1.0, workload.span_seconds)
        return Static(world.min_workers, world.max_workers, size=math.ceil(workload.work_seconds / span / 0.7))
    return BASELINES[name](world.min_workers, world.max_workers)
