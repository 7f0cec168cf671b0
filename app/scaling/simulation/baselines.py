"""Other ways to size a pool, each as its source has it, to compare with."""

import math
from collections import deque

from app.scaling.simulation.scalers import Change, Observation


class _Baseline:
    """Between bounds, at fixed intervals."""

    name = ""
    interval_seconds = 15.0
    hurry_seconds = math.inf

    def __init__(self, least: int, most: int) -> None:
        self.least, self.most = least, most

    def decide(self, seen: Observation) -> Change:
        return Change(target=max(self.least, min(self.most, self.target(seen))))

    def target(self, seen: Observation) -> int:
        raise NotImplementedError

    def is_burst(self, queued_seconds: float, workers: int, seconds_since_last: float) -> bool:
        """They wait for their turn."""
        return False


class Static(_Baseline):
    """A pool of one size: by default what the mean load needs at 70 % use, which nobody knows beforehand."""

    name = "static"

    def __init__(self, least: int, most: int, *, size: int) -> None:
        super().__init__(least, most)
        self._size = size

    def target(self, seen: Observation) -> int:
        return self._size


class Threshold(_Baseline):
    """Half as many again above 80 % use, a tenth fewer below 30 %, then 60 s of rest.

    Source: simple scaling with a cooldown, as in the guide of Amazon EC2 Auto Scaling, with our thresholds.
    """

    name = "threshold"
    interval_seconds = 5.0

    def __init__(
        self, least: int, most: int, *, up: float = 0.8, down: float = 0.3, rest_seconds: float = 60.0
    ) -> None:
        super().__init__(least, most)
        self._up, self._down, self._rest_seconds = up, down, rest_seconds
        self._rests_until = 0.0

    def target(self, seen: Observation) -> int:
        use = seen.busy / max(1, seen.ready)
        if seen.now < self._rests_until or self._down <= use <= self._up:
            return seen.workers
        self._rests_until = seen.now + self._rest_seconds
        return math.ceil(seen.workers * 1.5) if use > self._up else math.floor(seen.workers * 0.9)


class _Stabilised(_Baseline):
    """What Kubernetes' HorizontalPodAutoscaler does with any metric.

    Every 15 s; up by at most 4 pods or 100 %; down to the highest recommendation of the last 300 s; changes within 10 %
    are left alone. Source: kubernetes pkg/controller/podautoscaler/horizontal.go and its defaults.
    """

    interval_seconds = 15.0

    def __init__(self, least: int, most: int) -> None:
        super().__init__(least, most)
        self._recommended: deque[tuple[float, int]] = deque()

    def target(self, seen: Observation) -> int:
        while self._recommended and self._recommended[0][0] <= seen.now - 300:
            self._recommended.popleft()
        self._recommended.append((seen.now, self.desired(seen)))
        if self._recommended[-1][1] > seen.workers:
            return min(self._recommended[-1][1], max(seen.workers + 4, 2 * seen.workers))
        return min(seen.workers, max(desired for _, desired in self._recommended))

    def desired(self, seen: Observation) -> int:
        raise NotImplementedError


class Hpa(_Stabilised):
    """Kubernetes HPA on use, target 70 %; workers that are not ready count as unused when it would grow.

    Source: kubernetes pkg/controller/podautoscaler/replica_calculator.go.
    """

    name = "hpa"

    def desired(self, seen: Observation) -> int:
        ratio = seen.busy / max(1, seen.ready) / 0.7
        if ratio > 1 and seen.starting:
            ratio = max(1.0, seen.busy / seen.workers / 0.7)
        return seen.workers if abs(ratio - 1) <= 0.1 else math.ceil(ratio * (seen.workers if ratio > 1 else seen.ready))


class Keda(_Stabilised):
    """A queue-length trigger: one worker for every 5 tasks that wait or run, carried out by the HPA.

    Source: KEDA's Redis list scaler (listLength 5 by default) with the HPA behind it.
    """

    name = "keda"

    def desired(self, seen: Observation) -> int:
        wanted = (seen.backlog.tasks + seen.busy) / 5
        return seen.workers if abs(wanted / max(1, seen.workers) - 1) <= 0.1 else math.ceil(wanted)


class Knative(_Baseline):
    """Mean concurrency over 60 s at 70 %, or over 6 s in a panic, which begins at twice what is there.

    Source: knative pkg/autoscaler/scaling/autoscaler.go and its defaults (tick 2 s, at most halved in one step).
    """

    name = "knative"
    interval_seconds = 2.0

    def __init__(self, least: int, most: int) -> None:
        super().__init__(least, most)
        self._samples: deque[int] = deque(maxlen=30)
        self._panic_until = -math.inf
        self._panic_size = 0

    def target(self, seen: Observation) -> int:
        self._samples.append(seen.backlog.tasks + seen.busy + seen.draining)
        ready = max(1, seen.ready)
        stable = self._size(len(self._samples), ready)
        panic = self._size(3, ready)
        if panic >= 2 * ready:
            self._panic_until = seen.now + 60
        if seen.now > self._panic_until:
            self._panic_size = 0
            return stable
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

    def __init__(self, least: int, most: int, *, target_duration: float = 20.0, wait_count: int = 3) -> None:
        super().__init__(least, most)
        self._target_duration = target_duration
        self._proposed: deque[int] = deque(maxlen=wait_count)

    def target(self, seen: Observation) -> int:
        surplus = seen.workers - max(self.least, self._wanted(seen))
        if surplus <= 0:
            self._proposed.clear()
            return seen.workers - surplus
        self._proposed.append(surplus)
        firm = min(self._proposed) if len(self._proposed) == self._proposed.maxlen else 0
        self._proposed.extend([proposed - firm for proposed in self._proposed])
        return seen.workers - firm

    def _wanted(self, seen: Observation) -> int:
        work = seen.running_seconds + seen.backlog.work_seconds(seen.service)
        wanted = min(math.ceil(work / self._target_duration), seen.backlog.tasks + seen.busy)
        return wanted if wanted >= seen.ready else seen.busy
