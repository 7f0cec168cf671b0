"""The rule and others on the same workload in the same world."""

import math
from collections.abc import Callable, Sequence

from app.domain.scaling import ScalingPolicy
from app.simulation.baselines import Dask, Hpa, Keda, Knative, Static, Threshold
from app.simulation.engine import Run, World, simulate
from app.simulation.scalers import Rule, Scaler
from app.simulation.workloads import Workload

BASELINES: dict[str, Callable[[int, int], Scaler]] = {
    baseline.name: baseline for baseline in (Threshold, Hpa, Keda, Knative, Dask)
}
STATIC = Static.name


def compare(
    workload: Workload,
    policy: ScalingPolicy,
    world: World,
    baselines: Sequence[str] = (),
    *,
    progress: Callable[[str, float], None] = lambda scaler, share: None,
) -> list[Run]:
    """The run of our rule, then those of the named baselines. `progress` hears of whom, and the share that came."""
    scalers = [
        Rule(policy, start_seconds=world.start_seconds),
        *(_baseline(name, workload, world) for name in baselines),
    ]
    return [_run(workload, scaler, world, progress) for scaler in scalers]


def _baseline(name: str, workload: Workload, world: World) -> Scaler:
    if name == STATIC:
        span = max(1.0, workload.span_seconds)
        return Static(world.min_workers, world.max_workers, size=math.ceil(workload.work_seconds / span / 0.7))
    return BASELINES[name](world.min_workers, world.max_workers)


def _run(workload: Workload, scaler: Scaler, world: World, progress: Callable[[str, float], None]) -> Run:
    return simulate(workload, scaler, world, progress=lambda share: progress(scaler.name, share))
