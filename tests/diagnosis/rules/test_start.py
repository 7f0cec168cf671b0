"""The estimate of a start: by hand where that can be told, and its calibration in the simulation of real traces."""

from collections import deque
from random import Random
from typing import Any

import pytest

from app.diagnosis.rules.facts import Place
from app.diagnosis.rules.start import (
    Line,
    Rival,
    StartEstimate,
    StartPolicy,
    estimate_start,
    rivals,
    service_seconds,
)
from app.kernel.agents import AgentType
from app.kernel.histograms import Durations
from app.kernel.lanes import Lane, Priority
from app.queue.rules.fair_queueing import EQUAL_WEIGHTS
from app.scaling.rules.target import ScalingPolicy
from app.scaling.simulation import engine, synthetic, traces
from app.scaling.simulation.engine import World
from app.scaling.simulation.scalers import Rule
from app.scaling.simulation.workloads import AGENTS, Workload

_RANKING = Lane(agent_type=AgentType.RANKING, priority=Priority.MEDIUM)
_SECONDS = dict.fromkeys(AgentType, 10.0)


def _estimate(ahead: float, **fields: Any) -> StartEstimate:
    estimate = estimate_start(Line(ahead=ahead, seconds=10.0, **fields))
    assert estimate is not None
    return estimate


def test_an_idle_worker_takes_it_now() -> None:
    assert _estimate(1, idle=2) == StartEstimate(p50_seconds=0.0, p90_seconds=0.0)


def test_the_more_are_ahead_the_later_and_the_more_workers_the_sooner() -> None:
    one, many, shared = _estimate(0, busy=1), _estimate(40, busy=1), _estimate(40, busy=10)
    assert one.p50_seconds < shared.p50_seconds < many.p50_seconds
    # 41 openings of 10 s each.
    assert many.p50_seconds == pytest.approx(410, rel=0.05)
    assert shared.p50_seconds == pytest.approx(41, rel=0.05)
    assert 1.1 < many.p90_seconds / many.p50_seconds < one.p90_seconds / one.p50_seconds


def test_a_pool_that_may_grow_shortens_long_waits_alone() -> None:
    late, soon = (_estimate(99, busy=10, grows_after_seconds=seconds) for seconds in (1e6, 15.0))
    assert soon.p50_seconds == pytest.approx((late.p50_seconds + 15) / 2)
    assert _estimate(2, busy=10, grows_after_seconds=15.0) == _estimate(2, busy=10, grows_after_seconds=1e6)
    assert _estimate(99, busy=10).p90_seconds < late.p90_seconds


def test_without_workers_nobody_can_tell_and_a_starting_one_takes_it_when_it_is_ready() -> None:
    assert estimate_start(Line(ahead=0, seconds=10.0)) is None
    started = _estimate(0, starting=[4.0])
    assert started.p50_seconds == 4.0
    assert started.p90_seconds == pytest.approx(4.0 + 12.8, abs=1)
    assert _estimate(30, busy=1, starting=[4.0] * 9).p50_seconds < _estimate(30, busy=1).p50_seconds / 5


def test_rivals_that_keep_coming_keep_it_back() -> None:
    few = Rival(tasks=5, seconds=10.0, arrivals_per_second=0.05)
    assert _estimate(5, busy=1, rivals=[few]).p50_seconds > 2 * _estimate(5, busy=1).p50_seconds - 10
    assert (
        estimate_start(
            Line(ahead=5, seconds=10.0, busy=1, rivals=[Rival(tasks=0, seconds=10.0, arrivals_per_second=1)])
        )
        is None
    )
    bounded = Rival(tasks=0, seconds=10.0, arrivals_per_second=1, limit=6)
    assert _estimate(5, busy=1, rivals=[bounded]).p50_seconds == pytest.approx(120, rel=0.1)


def test_who_goes_first_goes_by_priority_and_weight() -> None:
    high = Lane(agent_type=AgentType.EVOLUTION, priority=Priority.HIGH)
    same = Lane(agent_type=AgentType.GENERATION, priority=Priority.MEDIUM)
    low = Lane(agent_type=AgentType.GENERATION, priority=Priority.LOW)
    alien = Lane(agent_type=AgentType.PROXIMITY, priority=Priority.HIGH)
    served = {AgentType.RANKING, AgentType.EVOLUTION, AgentType.GENERATION}
    waiting = {high: 7, same: 100, low: 50, alien: 9, _RANKING: 4}
    weights = {**EQUAL_WEIGHTS, AgentType.GENERATION: 2 * EQUAL_WEIGHTS[AgentType.RANKING]}
    place = Place(higher=2, same=4)
    chosen = rivals(
        _RANKING, place, served=served, waiting=waiting, arrivals={high: 0.5}, seconds=_SECONDS, weights=weights
    )
    by_tasks = {rival.tasks: rival for rival in chosen}
    assert set(by_tasks) == {2, 7, 100}
    assert by_tasks[7].arrivals_per_second == 0.5
    # The four before it and half of its own round, at twice the weight.
    assert by_tasks[100].limit == pytest.approx(9)


def test_tasks_that_completed_lately_tell_how_long_one_takes_once_there_are_some() -> None:
    assert service_seconds(Durations(), 20.0) == 20.0
    assert service_seconds(Durations(count=4, seconds=2.0), 4.1) == 4.1
    assert service_seconds(Durations(count=20, seconds=12.0), 1.5) == 0.6
    assert service_seconds(Durations(count=20, seconds=0.0), 1.5) == 1.5


class _Watched(engine._Engine):
    """A simulation that asks for an estimate for tasks that have to wait, and keeps it with the wait that came."""

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        self._arrivals: list[deque[float]] = [deque() for _ in AGENTS]
        self._ended: list[deque[tuple[float, float]]] = [deque() for _ in AGENTS]
        self._estimates: dict[int, StartEstimate | None] = {}
        self.outcomes: list[tuple[float, StartEstimate | None]] = []

    def _arrive(self, job: int, now: float) -> None:
        kind, is_idle = self._workload.agents[job], self._pool.idle > 0
        self._arrivals[kind].append(now)
        super()._arrive(job, now)
        if not is_idle:
            self._estimates[job] = estimate_start(self._line(kind, now))

    def _start(self, job: int, kind: int, since: float, now: float) -> None:
        super()._start(job, kind, since, now)
        if job in self._estimates:
            self.outcomes.append((now - since, self._estimates.pop(job)))

    def _end(self, now: float, job: int, is_death: bool) -> None:
        self._ended[self._workload.agents[job]].append((now, self._workload.seconds[job]))
        super()._end(now, job, is_death)

    def _line(self, kind: int, now: float) -> Line:
        waiting = {_lane(other): len(jobs) for other, jobs in enumerate(self._backlog._jobs)}
        lately = [self._lately(other, now) for other in range(len(AGENTS))]
        seconds = {
            agent: service_seconds(Durations(count=len(some), seconds=sum(some)), self._service.estimate(agent))
            for agent, some in zip(AGENTS, lately, strict=True)
        }
        running = {agent: self._running[other] for other, agent in enumerate(AGENTS)}
        ahead, count, total = waiting[_lane(kind)] - 1, len(lately[kind]), sum(lately[kind])
        squares = sum(one**2 for one in lately[kind])
        chosen = rivals(
            _lane(kind),
            Place(same=ahead),
            served=AGENTS,
            waiting=waiting,
            arrivals={_lane(other): self._rate(other, now) for other in range(len(AGENTS))},
            seconds=seconds,
            weights=EQUAL_WEIGHTS,
        )
        busy = sum(running.values())
        return Line(
            ahead=ahead,
            seconds=seconds[AGENTS[kind]],
            rivals=chosen,
            busy=self._pool.busy,
            running_seconds=sum(n * seconds[agent] for agent, n in running.items()) / busy if busy else 0.0,
            starting=[ready_at - now for ready_at in self._pool.starting],
            grows_after_seconds=15.0 if self._pool.total < self._world.max_workers else None,
            variation=squares * count / total**2 - 1 if count > 5 else None,
        )

    def _lately(self, kind: int, now: float) -> list[float]:
        """Seconds that each task of the last 15 minutes took."""
        ended = self._ended[kind]
        while ended and ended[0][0] < now - 900:
            ended.popleft()
        return [seconds for _, seconds in ended]

    def _rate(self, kind: int, now: float) -> float:
        times = self._arrivals[kind]
        while times and times[0] < now - 60:
            times.popleft()
        return len(times) / min(60.0, max(1.0, now))


def _lane(kind: int) -> Lane:
    return Lane(agent_type=AGENTS[kind], priority=Priority.MEDIUM)


def _share_before_p90(workload: Workload, world: World) -> tuple[int, float]:
    """Number of tasks that had to wait, and the share of them that started before the stated p90."""
    policy = ScalingPolicy(min_workers=world.min_workers, max_workers=world.max_workers)
    watched = _Watched(workload, Rule(policy, start_seconds=world.start_seconds), world, None)
    watched.run()
    in_time = sum(estimate is not None and wait <= estimate.p90_seconds for wait, estimate in watched.outcomes)
    return len(watched.outcomes), in_time / len(watched.outcomes)


def test_nine_of_ten_start_in_time_where_the_pool_stays_as_it_is() -> None:
    workload = synthetic.poisson(rate=1.0, mean_seconds=4.0, span=1800)
    tasks, share = _share_before_p90(workload, World(min_workers=5, max_workers=5))
    assert tasks > 500
    assert 0.85 <= share <= 0.95


def test_nine_of_ten_start_in_time_where_a_fixed_pool_is_too_small() -> None:
    workload = synthetic.poisson(rate=1.3, mean_seconds=4.0, span=1800)
    tasks, share = _share_before_p90(workload, World(min_workers=5, max_workers=5))
    assert tasks > 2000
    assert 0.85 <= share <= 0.95


@pytest.mark.slow
def test_nine_of_ten_start_in_time_over_both_traces() -> None:
    world = World(min_workers=10, max_workers=1000)
    counts = {name: _share_before_p90(traces.read(name), world) for name in ("azure-code", "azure-conv")}
    assert sum(tasks for tasks, _ in counts.values()) > 20_000
    assert all(0.85 <= share <= 0.95 for _, share in counts.values()), counts


def test_a_wider_policy_gives_a_wider_interval() -> None:
    line = Line(ahead=Random(1).randint(5, 50), seconds=3.0, busy=4, grows_after_seconds=1e6)
    narrow, wide = (estimate_start(line, StartPolicy(rate_uncertainty=share)) for share in (0.1, 0.5))
    assert narrow is not None
    assert wide is not None
    assert narrow.p90_seconds < wide.p90_seconds
