"""Other rules for the size of a pool, each as its source has it, for comparison."""

import math
from collections import deque

from app.scaling.simulation.scalers import Observation, ScalerDecision


class _Baseline:
    """A rule that decides at fixed intervals and stays between bounds."""

    name = ""
    interval_seconds = 15.0
    hurry_seconds = math.inf

    def __init__(self, min_workers: int, max_workers: int) -> None:
        self.min_workers, self.max_workers = min_workers, max_workers

    def decide(self, observation: Observation) -> ScalerDecision:
        return ScalerDecision(target=max(self.min_workers, min(self.max_workers, self.target(observation))))

    def target(self, observation: Observation) -> int:
        raise NotImplementedError

    def is_burst(self, queued_seconds: float, workers: int, seconds_since_last: float) -> bool:
        """Always False: none of them decides before its interval is over."""
        return False


class Static(_Baseline):
    """A pool of one size: by default what the mean load needs at 70 % use, which nobody knows beforehand."""

    name = "static"

    def __init__(self, min_workers: int, max_workers: int, *, size: int) -> None:
        super().__init__(min_workers, max_workers)
        self._size = size

    def target(self, observation: Observation) -> int:
        return self._size


class Threshold(_Baseline):
    """Half as many again above 80 % use, a tenth fewer below 30 %, then 60 s of rest.

    Source: simple scaling with a cooldown, as in the guide of Amazon EC2 Auto Scaling, with our thresholds.
    """

    name = "threshold"
    interval_seconds = 5.0

    def __init__(
        self, min_workers: int, max_workers: int, *, up: float = 0.8, down: float = 0.3, rest_seconds: float = 60.0
    ) -> None:
        super().__init__(min_workers, max_workers)
        self._up, self._down, self._rest_seconds = up, down, rest_seconds
        self._rests_until = 0.0

    def target(self, observation: Observation) -> int:
        use = observation.busy / max(1, observation.ready)
        if observation.now < self._rests_until or self._down <= use <= self._up:
            return observation.workers
        self._rests_until = observation.now + self._rest_seconds
        return math.ceil(observation.workers * 1.5) if use > self._up else math.floor(observation.workers * 0.9)


class _Stabilised(_Baseline):
    """The policy of Kubernetes' HorizontalPodAutoscaler for any metric.

    Every 15 s; up by at most 4 pods or 100 %; down to the highest recommendation of the last 300 s; changes within 10 %
    are left alone. Source: kubernetes pkg/controller/podautoscaler/horizontal.go and its defaults.
    """

    interval_seconds = 15.0

    def __init__(self, min_workers: int, max_workers: int) -> None:
        super().__init__(min_workers, max_workers)
        self._recommendations: deque[tuple[float, int]] = deque()

    def target(self, observation: Observation) -> int:
        while self._recommendations and self._recommendations[0][0] <= observation.now - 300:
            self._recommendations.popleft()
        self._recommendations.append((observation.now, self.desired_size(observation)))
        if self._recommendations[-1][1] > observation.workers:
            return min(self._recommendations[-1][1], max(observation.workers + 4, 2 * observation.workers))
        return min(observation.workers, max(size for _, size in self._recommendations))

    def desired_size(self, observation: Observation) -> int:
        raise NotImplementedError


class Hpa(_Stabilised):
    """Kubernetes HPA on use, target 70 %; workers that are not ready count as unused when it would grow.

    Source: kubernetes pkg/controller/podautoscaler/replica_calculator.go.
    """

    name = "hpa"

    def desired_size(self, observation: Observation) -> int:
        ratio = observation.busy / max(1, observation.ready) / 0.7
        if ratio > 1 and observation.starting:
            ratio = max(1.0, observation.busy / observation.workers / 0.7)
        if abs(ratio - 1) <= 0.1:
            return observation.workers
        return math.ceil(ratio * (observation.workers if ratio > 1 else observation.ready))


class Keda(_Stabilised):
    """A queue-length trigger: one worker for every few tasks of the list, carried out by the HPA.

    The tasks that wait and those that run are on the list. Source: KEDA's Redis list scaler (listLength is 5 by
    default, which is more than a worker of one task can serve) with the HPA behind it.
    """

    def __init__(self, min_workers: int, max_workers: int, *, tasks_per_worker: int) -> None:
        super().__init__(min_workers, max_workers)
        self.name = f"keda-{tasks_per_worker}"
        self._tasks_per_worker = tasks_per_worker

    def desired_size(self, observation: Observation) -> int:
        desired_size = (observation.backlog.tasks + observation.busy) / self._tasks_per_worker
        if abs(desired_size / max(1, observation.workers) - 1) <= 0.1:
            return observation.workers
        return math.ceil(desired_size)


class Knative(_Baseline):
    """Mean concurrency over 60 s at 70 %, or over 6 s in a panic, which begins at twice what is there.

    Source: knative pkg/autoscaler/scaling/autoscaler.go and its defaults (tick 2 s, at max_workers halved in one step).
    """

    name = "knative"
    interval_seconds = 2.0

    def __init__(self, min_workers: int, max_workers: int) -> None:
        super().__init__(min_workers, max_workers)
        self._samples: deque[int] = deque(maxlen=30)
        self._panic_until = -math.inf
        self._panic_size = 0

    def target(self, observation: Observation) -> int:
        self._samples.append(observation.backlog.tasks + observation.busy + observation.draining)
        ready = max(1, observation.ready)
        stable = self._size(len(self._samples), ready)
        panic = self._size(3, ready)
        if panic >= 2 * ready:
            self._panic_until = observation.now + 60
        if observation.now > self._panic_until:
            self._panic_size = 0
            return stable
        # A panic never shrinks the pool before it is over.
        self._panic_size = max(self._panic_size, stable, panic)
        return self._panic_size

    def _size(self, samples: int, ready: int) -> int:
        latest = list(self._samples)[-samples:]
        return max(math.ceil(sum(latest) / len(latest) / 0.7), ready // 2)


class Dask(_Baseline):
    """dask's Adaptive: all work over a target duration, never more than there are tasks; where the pool is larger, the
    idle go, once three looks in a row have proposed it.

    Source: distributed/deploy/adaptive_core.py and Scheduler.adaptive_target, with their interval and wait_count; a
    target duration of 20 s instead of 5 s, since tasks may wait 30 s here: it costs a third less. They close workers by
    name, here they are counted, so that more of them go: cheaper than theirs.
    """

    name = "dask"
    interval_seconds = 1.0

    def __init__(
        self, min_workers: int, max_workers: int, *, target_duration: float = 20.0, wait_count: int = 3
    ) -> None:
        super().__init__(min_workers, max_workers)
        self._target_duration = target_duration
        self._proposals: deque[int] = deque(maxlen=wait_count)

    def target(self, observation: Observation) -> int:
        surplus = observation.workers - max(self.min_workers, self._desired_size(observation))
        if surplus <= 0:
            self._proposals.clear()
            return observation.workers - surplus
        self._proposals.append(surplus)
        # Only what all of the last proposals agree on goes; the rest stays proposed.
        firm = min(self._proposals) if len(self._proposals) == self._proposals.maxlen else 0
        self._proposals.extend([proposal - firm for proposal in self._proposals])
        return observation.workers - firm

    def _desired_size(self, observation: Observation) -> int:
        work = observation.running_seconds + observation.backlog.work_seconds(observation.service)
        desired_size = min(math.ceil(work / self._target_duration), observation.backlog.tasks + observation.busy)
        return desired_size if desired_size >= observation.ready else observation.busy
