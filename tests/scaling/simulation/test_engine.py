"""The simulation against what can be computed by hand, and against queueing theory."""

import math
from statistics import mean, stdev

import pytest

from app.kernel.agents import AgentType
from app.scaling.rules.target import ScalingPolicy
from app.scaling.simulation.baselines import Static
from app.scaling.simulation.engine import Run, World, simulate
from app.scaling.simulation.scalers import Observation, Rule, ScalerDecision
from app.scaling.simulation.synthetic import mixed_types, on_off, poisson, step
from app.scaling.simulation.workloads import Job, Workload, repeat_workload, speed_up, workload

G, R = AgentType.GENERATION, AgentType.RANKING


class Scripted:
    """Sizes by the clock."""

    name = "scripted"
    interval_seconds = 10.0
    hurry_seconds = math.inf

    def __init__(self, *sizes: tuple[float, int], cancel_starting: bool = False) -> None:
        self._sizes = sizes
        self._cancel_starting = cancel_starting

    def decide(self, seen: Observation) -> ScalerDecision:
        size = [size for at, size in self._sizes if at <= seen.now][-1]
        return ScalerDecision(target=size, cancel_starting=self._cancel_starting)

    def is_burst(self, queued_seconds: float, workers: int, seconds_since_last: float) -> bool:
        return False


def jobs(*pairs: tuple[float, float], agent: AgentType = G) -> Workload:
    return workload("by hand", [Job(arrival, seconds, agent) for arrival, seconds in pairs])


def run_rule(load: Workload, world: World) -> Run:
    policy = ScalingPolicy(min_workers=world.min_workers, max_workers=world.max_workers)
    return simulate(load, Rule(policy, start_seconds=world.start_seconds), world)


def test_a_case_by_hand() -> None:
    """Four jobs of 12 s for one worker; from 10 s on there shall be two, from 20 s on one again; starting takes 5 s.

    The first begins at 0, the second when that ends at 12, the third when the second worker is ready at 15. At 20 both
    are busy, so the first to end, at 24, leaves; the fourth job goes to the other, at 27, and ends at 39.
    """
    load = jobs((0.0, 12.0), (1.0, 12.0), (2.0, 12.0), (3.0, 12.0))
    world = World(min_workers=1, max_workers=2, start_seconds=5.0, tail_seconds=7.0)
    run = simulate(load, Scripted((0.0, 1), (10.0, 2), (20.0, 1)), world)
    assert list(run.waits) == [0.0, 11.0, 13.0, 24.0]
    assert run.end == 39.0
    # One all the time, the other from 10 to 24.
    assert run.pool.worker_seconds == 39.0 + 14.0
    assert (run.pool.peak, run.pool.turns, run.pool.breaches) == (2, 1, 0)


def test_removing_who_starts_or_ends_its_task_first() -> None:
    load = jobs((0.0, 50.0), (1.0, 1.0))
    world = World(min_workers=1, max_workers=9, start_seconds=15.0, tail_seconds=0.0)
    gone = simulate(load, Scripted((0.0, 1), (10.0, 5), (20.0, 1), cancel_starting=True), world)
    assert list(gone.waits) == [0.0, 49.0]
    assert gone.pool.worker_seconds == pytest.approx(gone.end + 4 * 10.0)
    kept = simulate(load, Scripted((0.0, 1), (10.0, 5), (20.0, 1)), world)
    assert kept.waits[1] == 24.0


def test_the_pool_counts_those_on_their_way_out() -> None:
    load = jobs((0.0, 40.0), (0.0, 40.0))
    world = World(min_workers=2, max_workers=2, start_seconds=1.0, tail_seconds=0.0)
    run = simulate(load, Scripted((0.0, 2), (10.0, 1), (20.0, 2)), world)
    assert run.pool.peak == 2
    assert run.pool.breaches > 0, "one is less than the minimum"


def _erlang_c(servers: int, load: float) -> float:
    """The share that waits in M/M/c; Erlang 1917."""
    terms = [load**k / math.factorial(k) for k in range(servers)]
    last = load**servers / math.factorial(servers) * servers / (servers - load)
    return last / (sum(terms) + last)


@pytest.mark.parametrize(("servers", "rate"), [(1, 0.06), (5, 0.4), (20, 1.7)])
def test_queueing_theory_agrees(servers: int, rate: float) -> None:
    """Mean wait and share that waits of M/M/c, within three standard errors over twelve seeds."""
    means, shares = [], []
    for seed in range(12):
        load = poisson(rate=rate, mean_seconds=10.0, span=12_000 / rate, seed=seed)
        world = World(min_workers=servers, max_workers=servers, tail_seconds=0.0)
        waits = simulate(load, Static(servers, servers, size=servers), world).waits
        means.append(mean(waits))
        shares.append(sum(wait > 0 for wait in waits) / len(waits))
    waiting = _erlang_c(servers, rate * 10.0)
    for found, expected in ((shares, waiting), (means, waiting * 10.0 / (servers - rate * 10.0))):
        assert abs(mean(found) - expected) <= 3 * stdev(found) / math.sqrt(len(found))


def test_the_same_arguments_give_the_same_run() -> None:
    world = World(min_workers=2, death_rate=0.05, seed=7)
    first, second = (run_rule(on_off(times=3), world) for _ in range(2))
    assert list(first.waits) == list(second.waits)
    assert first.samples == second.samples
    assert first.deaths > 0


def test_every_task_is_done_though_workers_die() -> None:
    load = on_off(times=4)
    run = run_rule(load, World(min_workers=2, max_workers=60, death_rate=0.3))
    assert len(run.waits) == len(load) + run.deaths
    assert run.deaths > 0.3 * len(load)
    assert run.pool.breaches == 0


def test_idle_workers_serve_whoever_died() -> None:
    load = jobs((0.0, 10.0))
    run = simulate(load, Static(2, 2, size=2), World(min_workers=2, max_workers=2, death_rate=0.5, seed=3))
    assert max(run.waits) == 0.0


@pytest.mark.parametrize("load", [step(), on_off(), mixed_types(span=900.0)], ids=lambda load: load.name)
def test_the_rule_keeps_its_bounds_and_its_promise(load: Workload) -> None:
    run = run_rule(load, World(min_workers=2, max_workers=500))
    assert run.pool.breaches == 0
    assert sum(wait > 30 for wait in run.waits) <= 0.0005 * len(run.waits)


def test_under_overload_it_stays_at_its_maximum_and_nobody_starves() -> None:
    run = run_rule(speed_up(mixed_types(span=900.0), 4.0), World(min_workers=2, max_workers=30))
    assert (run.pool.peak, run.pool.breaches) == (30, 0)
    assert all(run.longest_wait)
    # Equal weights: the type with little work is not kept waiting by those with much.
    shortest, longest = run.longest_wait[list(AgentType).index(AgentType.PROXIMITY)], max(run.longest_wait)
    assert shortest < longest / 4


def test_workloads_repeat_and_speed_up() -> None:
    once = jobs((0.0, 1.0), (10.0, 2.0))
    assert list(repeat_workload(once, 2).arrivals) == [0.0, 10.0, 20.0, 30.0]
    assert list(repeat_workload(once, 2).seconds) == [1.0, 2.0, 1.0, 2.0]
    assert list(speed_up(once, 2.0).arrivals) == [0.0, 5.0]


@pytest.mark.parametrize("job", [Job(0.0, 0.0, G), Job(0.0, -1.0, G), Job(math.nan, 1.0, G), Job(math.inf, 1.0, G)])
def test_nonsense_is_refused(job: Job) -> None:
    with pytest.raises(ValueError, match="makes no sense"):
        workload("nonsense", [job])


def test_years_are_refused() -> None:
    with pytest.raises(ValueError, match="31 days"):
        jobs((0.0, 1.0), (4e9, 1.0))
