"""A discrete-event simulation of the pool: tasks arrive, workers start, work, may die and leave, a scaler decides."""

from array import array
from collections.abc import Callable
from dataclasses import dataclass, field
from heapq import heappop, heappush
from random import Random
from typing import NamedTuple

from app.queue.rules.fair_queueing import FairQueue
from app.scaling.rules.estimates import ServiceTimes
from app.scaling.simulation.pool import Pool
from app.scaling.simulation.queue import Backlog
from app.scaling.simulation.scalers import Observation, Scaler
from app.scaling.simulation.workloads import AGENTS, Workload

_NEVER = float("inf")


@dataclass(frozen=True, slots=True, kw_only=True)
class World:
    """Conditions that no scaler can change: durations in seconds, shares of 1.

    `death_rate` is the share of executions that kill their worker, at a random point; `detection_seconds` later the
    task waits again and a replacement starts. The pool is watched for `tail_seconds` after the last arrival, the same
    for every scaler, so that slow shrinking costs what it costs.
    """

    min_workers: int = 10
    max_workers: int = 1000
    start_seconds: float = 5.0
    death_rate: float = 0.0
    detection_seconds: float = 2.0
    tail_seconds: float = 300.0
    seed: int = 1


class PoolSample(NamedTuple):
    """The pool at a decision, for drawings."""

    at: float
    waiting: int
    busy: int
    workers: int


@dataclass(slots=True, kw_only=True)
class Run:
    """Result of a simulation; `waits` has one entry per start of a task, so a task that is run again has several."""

    scaler: str
    workload: Workload
    pool: Pool
    waits: "array[float]" = field(default_factory=lambda: array("d"))
    longest_wait: list[float] = field(default_factory=lambda: [0.0] * len(AGENTS))
    deaths: int = 0
    end: float = 0.0
    samples: list[PoolSample] = field(default_factory=list)


def simulate(
    workload: Workload, scaler: Scaler, world: World, *, progress: Callable[[float], None] | None = None
) -> Run:
    """Simulate a workload; the same arguments give the same run. `progress` is called with the share of arrivals."""
    engine = _Engine(workload, scaler, world, progress)
    engine.run()
    return engine.result


class _Engine:
    """One run. Events are the next arrival, the next end of a task, the next worker to be ready, the next decision."""

    def __init__(
        self, workload: Workload, scaler: Scaler, world: World, progress: Callable[[float], None] | None
    ) -> None:
        self._workload, self._scaler, self._world, self._progress = workload, scaler, world, progress
        self._pool = Pool(world.min_workers, min_workers=world.min_workers, max_workers=world.max_workers)
        self._shares = FairQueue() if len(workload.agent_types) > 1 else None
        self._backlog = Backlog(self._shares)
        self._service = ServiceTimes()
        self._random = Random(world.seed)
        # (time, job, whether the worker died)
        self._ends: list[tuple[float, int, bool]] = []
        self._running = [0] * len(AGENTS)
        self._next_decision = self._last_decision = self._last_end = 0.0
        self._size = world.min_workers
        self.result = Run(scaler=scaler.name, workload=workload, pool=self._pool)

    def run(self) -> None:
        """Go from event to event until the work is done and the tail is over."""
        arrivals, ends, starting = self._workload.arrivals, self._ends, self._pool.starting
        next_job, count = 0, len(arrivals)
        horizon = self._workload.span_seconds + self._world.tail_seconds
        while True:
            # At one moment workers become ready and decisions are made first, then tasks arrive, then tasks end.
            arrival = arrivals[next_job] if next_job < count else _NEVER
            end = ends[0][0] if ends else _NEVER
            control = min(starting[0], self._next_decision) if starting else self._next_decision
            if arrival <= end and arrival < control:
                self._arrive(next_job, arrival)
                next_job += 1
            elif end < control:
                self._end(*heappop(ends))
            elif starting and starting[0] == control:
                starting.pop(0)
                self._serve(control)
            elif control >= horizon and next_job == count and not self._backlog.tasks and not ends:
                break
            else:
                if self._progress:
                    self._progress(next_job / max(1, count))
                self._decide(control)
        self.result.end = max(horizon, self._last_end)
        self._pool.settle(self.result.end)

    def _arrive(self, job: int, now: float) -> None:
        pool, kind = self._pool, self._workload.agents[job]
        if pool.idle:
            pool.idle -= 1
            self._start(job, kind, now, now)
            return
        self._backlog.push(kind, now, job)
        since_last = now - self._last_decision
        if self._scaler.hurry_seconds <= since_last and self._scaler.is_burst(
            self._backlog.work_seconds(self._service), pool.workers, since_last
        ):
            self._decide(now)

    def _start(self, job: int, kind: int, since: float, now: float) -> None:
        """A worker that is neither idle nor busy takes the job."""
        self._pool.busy += 1
        self._running[kind] += 1
        wait = now - since
        self.result.waits.append(wait)
        if wait > self.result.longest_wait[kind]:
            self.result.longest_wait[kind] = wait
        seconds = self._workload.seconds[job]
        if self._world.death_rate and self._random.random() < self._world.death_rate:
            detected_at = now + self._random.random() * seconds + self._world.detection_seconds
            heappush(self._ends, (detected_at, job, True))
        else:
            heappush(self._ends, (now + seconds, job, False))

    def _end(self, now: float, job: int, is_death: bool) -> None:
        kind = self._workload.agents[job]
        self._last_end = now
        self._running[kind] -= 1
        if is_death:
            self._replace(job, kind, now)
            return
        seconds = self._workload.seconds[job]
        self._service.observe(AGENTS[kind], seconds)
        if self._shares:
            self._shares.observe(AGENTS[kind], seconds)
        # Workers are alike, so the first that is free leaves in place of the one that was told to.
        if self._pool.draining:
            self._pool.leave(now)
            return
        self._pool.busy -= 1
        self._serve(now)

    def _serve(self, now: float) -> None:
        """A worker has become free."""
        if self._backlog.tasks:
            since, job, kind = self._backlog.pop()
            self._start(job, kind, since, now)
        else:
            self._pool.idle += 1

    def _replace(self, job: int, kind: int, now: float) -> None:
        self.result.deaths += 1
        self._pool.die(now)
        if self._pool.workers < self._size:
            self._pool.start(1, now, now + self._world.start_seconds)
        # The one that died may have been on its way out; somebody may be idle.
        self._backlog.push(kind, now, job)
        if self._pool.idle:
            self._pool.idle -= 1
            self._serve(now)

    def _decide(self, now: float) -> None:
        pool = self._pool
        decision = self._scaler.decide(self._observation(now))
        self._last_decision = now
        self._next_decision = now + (decision.again_after_seconds or self._scaler.interval_seconds)
        self._size = decision.target
        pool.resize(decision.target, now, now + self._world.start_seconds, cancel_starting=decision.cancel_starting)
        self.result.samples.append(PoolSample(now, self._backlog.tasks, pool.busy + pool.draining, pool.total))

    def _observation(self, now: float) -> Observation:
        pool = self._pool
        running = sum(count * self._service.estimate(AGENTS[kind]) for kind, count in enumerate(self._running) if count)
        return Observation(
            now=now,
            idle=pool.idle,
            busy=pool.busy,
            starting=[ready_at - now for ready_at in pool.starting],
            draining=pool.draining,
            backlog=self._backlog,
            service=self._service,
            running_seconds=running,
        )
