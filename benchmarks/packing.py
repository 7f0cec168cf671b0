"""`python -m benchmarks.packing`: tasks of several sizes on workers of several sizes, by the rule of the broker.

Two simulations on a virtual clock, for which no database is needed. The first asks how soon unequal workers are done
with a batch by the order in which the broker itself gives tasks (`ClassView`), beside first-fit-decreasing, which knows
all lengths before it begins, and a bound that nothing can be below. The second asks what it costs that a slot runs one
task: the hosts that are needed at once, beside hosts whose room is shared out freely.
"""

import argparse
import heapq
import itertools
import math
import random
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean

from app.kernel.resources import NOTHING, Resources
from app.queue.broker.class_view import ClassView

SMALL = Resources(cores=1, memory_gb=4)
MEDIUM = Resources(cores=4, memory_gb=16)
LARGE = Resources(cores=8, memory_gb=32, gpus=1)
# Each offer covers the ones before it, so that the bound is simple.
FLEET: Sequence[tuple[Resources, int]] = ((SMALL, 16), (MEDIUM, 8), (LARGE, 4))
# Weights of requests; the lengths of all tasks have one distribution.
MIXES: Mapping[str, Mapping[Resources, float]] = {
    "as the workers are": {SMALL: 16, MEDIUM: 8, LARGE: 4},
    "nothing asked": {NOTHING: 1},
    "mostly small": {SMALL: 18, MEDIUM: 8, LARGE: 2},
    "mostly large": {SMALL: 8, MEDIUM: 8, LARGE: 12},
    "no medium ones": {SMALL: 20, LARGE: 8},
}
# Eight equal slots.
HOST, SLOTS = Resources(cores=64, memory_gb=256, gpus=8), 8
HOST_MIXES: Mapping[str, Mapping[Resources, float]] = {
    "all as large as a slot": {Resources(cores=8, memory_gb=32, gpus=1): 1},
    "half of a slot": {Resources(cores=4, memory_gb=16): 1},
    "a GPU and few cores": {Resources(cores=2, memory_gb=8, gpus=1): 1},
    "three sizes": {SMALL: 16, MEDIUM: 8, LARGE: 4},
    "small": {SMALL: 1},
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Task:
    """A task that waits from the beginning; nobody but first-fit-decreasing knows how long it takes."""

    request: Resources
    seconds: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """When the last task ended, and the mean waits of those that ask for least and for most."""

    makespan: float
    least_waited: float
    most_waited: float


def draw(mix: Mapping[Resources, float], count: int, rng: random.Random) -> list[Task]:
    """Tasks whose requests have these weights, of a minute on the mean (lognormal)."""
    requests = rng.choices(list(mix), list(mix.values()), k=count)
    return [Task(request=request, seconds=60 * rng.lognormvariate(-0.18, 0.6)) for request in requests]


def by_rule(tasks: Sequence[Task]) -> Outcome:
    """As the broker gives them: what asks for most of what the worker offers first, in every eighth choice least."""
    requests = sorted({task.request for task in tasks} - {NOTHING}, key=lambda request: request.rank)
    numbers = {NOTHING: 0, **{request: number for number, request in enumerate(requests, 1)}}
    view = ClassView()
    view.update({numbers[request]: request.text() for request in requests})
    queues: dict[int, deque[Task]] = {number: deque() for number in numbers.values()}
    for task in tasks:
        queues[numbers[task.request]].append(task)

    def take(offer: Resources) -> Task | None:
        served = view.served_by(offer, [number for number, queue in queues.items() if number and queue])
        if not served:
            order: tuple[int, ...] = (0,)
        else:
            order = (0, *reversed(served)) if view.takes_least() else (*served, 0)
        return next((queues[number].popleft() for number in order if queues[number]), None)

    return _play(tasks, take)


def by_arrival(tasks: Sequence[Task]) -> Outcome:
    """Each worker takes the first task that it can run."""
    waiting = dict(enumerate(tasks))

    def take(offer: Resources) -> Task | None:
        place = next((place for place, task in waiting.items() if offer.covers(task.request)), None)
        return None if place is None else waiting.pop(place)

    return _play(tasks, take)


def _play(tasks: Sequence[Task], take: Callable[[Resources], Task | None]) -> Outcome:
    offers = [offer for offer, count in FLEET for _ in range(count)]
    # All ask at the beginning, in no order of sizes.
    random.Random(0).shuffle(offers)
    free = [(0.0, place) for place in range(len(offers))]
    waits: dict[Resources, list[float]] = {}
    end = 0.0
    while free:
        now, place = heapq.heappop(free)
        # What it cannot take now it never can: no task comes later.
        if (task := take(offers[place])) is not None:
            heapq.heappush(free, (now + task.seconds, place))
            end = max(end, now + task.seconds)
            waits.setdefault(task.request, []).append(now)
    means = [fmean(waits[request]) for request in sorted(waits, key=lambda request: request.rank)]
    return Outcome(makespan=end, least_waited=means[0], most_waited=means[-1])


def first_fit_decreasing(tasks: Sequence[Task]) -> float:
    """The shortest makespan, by bisection, into which first-fit-decreasing packs all: largest request, then longest.

    Source: Coffman, Garey, Johnson: An application of bin-packing to multiprocessor scheduling (1978), MULTIFIT.
    """
    ordered = sorted(tasks, key=lambda task: (task.request.rank, task.seconds), reverse=True)
    low = bound(tasks)
    high = 2 * low + max(task.seconds for task in tasks)
    while not _fits(ordered, high):
        high *= 2
    for _ in range(20):
        middle = (low + high) / 2
        low, high = (low, middle) if _fits(ordered, middle) else (middle, high)
    return high


def _fits(ordered: Sequence[Task], length: float) -> bool:
    # The smallest workers first, so that no task sits where a larger one might have to.
    room = [(offer, [length] * count) for offer, count in FLEET]
    for task in ordered:
        for offer, left in room:
            if not offer.covers(task.request):
                continue
            place = next((place for place, seconds in enumerate(left) if seconds >= task.seconds), None)
            if place is not None:
                left[place] -= task.seconds
                break
        else:
            return False
    return True


def bound(tasks: Sequence[Task]) -> float:
    """No schedule is shorter: the longest task, and the work of what only some workers can do, shared among these."""
    shares = []
    for place, (offer, _) in enumerate(FLEET):
        smaller = [other for other, _ in FLEET[:place]]
        work = sum(task.seconds for task in tasks if not any(other.covers(task.request) for other in smaller))
        assert all(offer.covers(other) for other in smaller)
        shares.append(work / sum(count for _, count in FLEET[place:]))
    return max(*shares, *(task.seconds for task in tasks))


def hosts_with_slots(requests: Sequence[Resources]) -> int:
    """Hosts of equal slots that run all of these at once, one in each slot."""
    slot = Resources(cores=HOST.cores / SLOTS, memory_gb=HOST.memory_gb / SLOTS, gpus=HOST.gpus // SLOTS)
    assert all(slot.covers(request) for request in requests)
    return math.ceil(len(requests) / SLOTS)


def hosts_shared_out(requests: Sequence[Resources]) -> int:
    """Hosts that first-fit-decreasing needs where each has as many tasks at once as there is room for."""
    hosts: list[list[float]] = []
    for amounts in sorted((_amounts(request) for request in requests), key=max, reverse=True):
        for left in hosts:
            if all(room >= amount for room, amount in zip(left, amounts, strict=True)):
                break
        else:
            left = [1.0] * len(amounts)
            hosts.append(left)
        for place, amount in enumerate(amounts):
            left[place] = round(left[place] - amount, 9)
    return len(hosts)


def hosts_at_least(requests: Sequence[Resources]) -> int:
    """No packing has fewer: the sum of the scarcest resource."""
    return max(math.ceil(round(math.fsum(column), 6)) for column in zip(*map(_amounts, requests), strict=True))


def _amounts(request: Resources) -> tuple[float, ...]:
    return request.cores / HOST.cores, request.memory_gb / HOST.memory_gb, request.gpus / HOST.gpus


def main() -> None:
    """Print both tables."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.packing", description=__doc__)
    parser.add_argument("--tasks", type=int, nargs="+", default=[100, 1000])
    parser.add_argument("--seeds", type=int, default=20)
    options = parser.parse_args()
    print(
        "| tasks | requests | rule / bound | first-fit-decreasing | by arrival | least: wait, rule / arrival | most |"
    )
    print("|---|---|---|---|---|---|---|")
    for count, (name, mix) in itertools.product(options.tasks, MIXES.items()):
        print(f"| {count:,} | {name} | {' | '.join(_ratios(mix, count, options.seeds))} |")
    print("\n| requests | hosts with 8 slots / bound | first-fit-decreasing on shared hosts / bound |\n|---|---|---|")
    for name, mix in HOST_MIXES.items():
        print(f"| {name} | {' | '.join(_hosts(mix, options.tasks[-1], options.seeds))} |")


def _ratios(mix: Mapping[Resources, float], count: int, seeds: int) -> list[str]:
    rows = []
    for seed in range(seeds):
        tasks = draw(mix, count, random.Random(seed))
        least, rule, arrival = bound(tasks), by_rule(tasks), by_arrival(tasks)
        ratios = (rule.makespan / least, first_fit_decreasing(tasks) / least, arrival.makespan / least)
        waits = (rule.least_waited / arrival.least_waited, rule.most_waited / arrival.most_waited)
        rows.append((*ratios, *waits))
    columns = list(zip(*rows, strict=True))
    worst = [f"{fmean(column):.3f} ({max(column):.3f})" for column in columns[:3]]
    return [*worst, *(f"{fmean(column):.2f}" for column in columns[3:])]


def _hosts(mix: Mapping[Resources, float], count: int, seeds: int) -> list[str]:
    rows = []
    for seed in range(seeds):
        requests = [task.request for task in draw(mix, count, random.Random(seed))]
        least = hosts_at_least(requests)
        rows.append((hosts_with_slots(requests) / least, hosts_shared_out(requests) / least))
    return [f"{fmean(column):.2f}" for column in zip(*rows, strict=True)]


if __name__ == "__main__":
    main()
