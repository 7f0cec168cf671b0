"""History of idle workers, and the number of them that have idled for long enough to go.

Shrinking is the ski-rental problem: a worker goes once keeping it idle has cost as much as fetching it back may.
Source: Karlin, Manasse, Rudolph, Sleator, "Competitive snoopy caching" (Algorithmica 1988): at most twice the cost of
knowing the future.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

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

    The defaults are for starts of 5 s, see `priced`.
    """

    price: float = 20.0
    busy_price: float = 40.0
    settle_seconds: float = conduct(Mode.PRODUCTION).scale_down_window_seconds
    # Whatever the price, nobody idles longer than the usual scale-down window of autoscalers.
    keep_at_most_seconds: float = 300.0


def idle_prices(policy: IdlePolicy, start_seconds: float) -> IdlePolicy:
    """The policy with the prices of a start that takes so long: that of four starts, in a busy pool of eight.

    The next burst of a busy pool is nearer. Measured on ten loads with starts of 5, 20 and 60 s, against dask's cost
    and tasks that waited over 30 s: four starts for both cost 0.5 % less at 5 s, and pools turn round a third more
    often; two and four are late more often at 60 s.
    """
    return replace(policy, price=4 * start_seconds, busy_price=8 * start_seconds)


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
