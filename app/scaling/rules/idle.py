"""History of idle workers, and the number of them that have idled for long enough to go.

Shrinking is the ski-rental problem: a worker goes once keeping it idle has cost as much as fetching it back may.
Source: Karlin, Manasse, Rudolph, Sleator, "Competitive snoopy caching" (Algorithmica 1988): at most twice the cost of
knowing the future.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from app.admin.rules.config import conduct
from app.kernel.modes import Mode


@dataclass(frozen=True, slots=True, kw_only=True)
class IdleSample:
    """Number of workers that idled during an interval of `seconds`; 0 while tasks waited."""

    seconds: float
    idle: int


@dataclass(frozen=True, slots=True, kw_only=True)
class IdlePolicy:
    """When idle workers go: durations in seconds, prices in seconds of one idle worker.

    The price is that of starting ten workers (5 s each), twice that in a busy pool: its next burst is nearer. Measured
    on 51 loads, most with three seeds: four times as much costs 6 % more on average, and up to 20 % more in small pools
    and with bursts of mixed lengths; 20 for both saves 2 %, and steady pools turn round half as often again.
    """

    price: float = 50.0
    busy_price: float = 100.0
    # Two ticks: one idle sample may be the gap between two tasks.
    settle_seconds: float = conduct(Mode.PRODUCTION).scale_down_window_seconds
    # Whatever the price, nobody idles longer than the usual scale-down window of autoscalers.
    keep_at_most_seconds: float = 300.0


def surplus(history: Sequence[IdleSample], idle: int, policy: IdlePolicy, *, busy: bool) -> tuple[int, float]:
    """Number of the `idle` workers that may go, and the seconds for which that many have idled; (0, 0) for none.

    The ski-rental rule: walking back with m = fewest idle so far and w = seconds so far, the first point counts at
    which w >= settle_seconds and either m * w >= price or w >= keep_at_most_seconds; then m workers may go.
    """
    price = policy.busy_price if busy else policy.price
    # The number that was idle throughout falls as the time grows, so the longest wait is tried with the fewest.
    fewest, seconds = idle, 0.0
    for sample in reversed(history):
        fewest, seconds = min(fewest, sample.idle), seconds + sample.seconds
        if not fewest:
            break
        long_enough = fewest * seconds >= price or seconds >= policy.keep_at_most_seconds
        if long_enough and seconds >= policy.settle_seconds:
            return fewest, seconds
    return 0, 0.0


def extend_history(history: Sequence[IdleSample], latest: IdleSample, policy: IdlePolicy) -> tuple[IdleSample, ...]:
    """The history with one more sample, cut to what a decision can look back on."""
    lasts = max(policy.keep_at_most_seconds, policy.settle_seconds)
    samples = [*history, latest]
    seconds = sum(sample.seconds for sample in samples)
    while seconds - samples[0].seconds >= lasts:
        seconds -= samples.pop(0).seconds
    return tuple(samples)


def without_workers(history: Sequence[IdleSample], count: int) -> tuple[IdleSample, ...]:
    """The history less `count` workers that have just gone, so that nobody's idleness counts twice."""
    return tuple(IdleSample(seconds=sample.seconds, idle=max(0, sample.idle - count)) for sample in history)
