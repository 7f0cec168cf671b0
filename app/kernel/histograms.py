"""Durations kept as counts in exponential buckets: of fixed size, addable, and enough for percentiles.

A percentile read from them lies in the same bucket as the true one, so it is right within a factor of two from
10 ms to 11 hours.
"""

from bisect import bisect_right
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import accumulate, zip_longest

# Seconds: bucket 0 holds what took less than 10 ms, each next one reaches twice as far, and the last, of 24, everything
# from 41,943 s (11 h 39 min) on.
BOUNDS: Sequence[float] = tuple(0.01 * 2**k for k in range(23))
# Of the durations within their buckets, from the lower edge (0) to the upper (1); less is noise of the sums.
_LEAST_MEAN = 0.01


def bucket(seconds: float) -> int:
    """The bucket of a duration; a bound itself belongs to the bucket above, as in PostgreSQL's `width_bucket`."""
    return bisect_right(BOUNDS, seconds)


@dataclass(frozen=True, slots=True, kw_only=True)
class Durations:
    """A set of durations: their number, their sum and maximum in seconds, and the number in each bucket."""

    count: int = 0
    seconds: float = 0.0
    longest: float = 0.0
    histogram: Sequence[int] = ()

    @property
    def mean(self) -> float | None:
        """Mean in seconds; None without any."""
        return self.seconds / self.count if self.count else None

    def percentile(self, share: float) -> float | None:
        """Seconds that this share (0 to 1) of the durations did not exceed; None without any.

        Within a bucket it rises as it must for the durations to have their sum, and never beyond the longest: a line,
        as Prometheus' `histogram_quantile` has it, would put it below the mean where all take about as long.
        """
        rank = share * sum(self.histogram)
        sums = list(accumulate(self.histogram, initial=0))
        for place, count in enumerate(self.histogram):
            if count and sums[place + 1] >= rank:  # empty buckets are skipped: the share 0 lies in the first full one
                lower, upper = self._edges(place)
                height: float = ((rank - sums[place]) / count) ** self._exponent()
                return min(upper, lower + (upper - lower) * height)
        return None

    @property
    def variation(self) -> float | None:
        """Squared ratio of standard deviation and mean, from the middles of the buckets; None without any."""
        count = sum(self.histogram)
        if not count:
            return None
        middles = [BOUNDS[0] / 2, *(1.5 * bound for bound in BOUNDS)]
        mean = sum(n * middle for n, middle in zip(self.histogram, middles, strict=False)) / count
        square = sum(n * middle**2 for n, middle in zip(self.histogram, middles, strict=False)) / count
        return max(0.0, square / mean**2 - 1)

    def _edges(self, place: int) -> tuple[float, float]:
        """Between which seconds the durations of a bucket lie."""
        lower = min(self.longest, BOUNDS[place - 1] if place else 0.0)
        return lower, min(self.longest, BOUNDS[place] if place < len(BOUNDS) else self.longest)

    def _exponent(self) -> float:
        """The power by which durations rise from the lower edge of their bucket to the upper one; 1 is a line."""
        edges = [self._edges(place) for place in range(len(self.histogram))]
        least = sum(count * lower for count, (lower, _) in zip(self.histogram, edges, strict=True))
        span = sum(count * (upper - lower) for count, (lower, upper) in zip(self.histogram, edges, strict=True))
        # The mean of x^p between 0 and 1 is 1 / (1 + p).
        mean = (self.seconds - least) / span if span else 0.5
        return 1 / min(1.0, max(_LEAST_MEAN, mean)) - 1


def total(parts: Iterable[Durations]) -> Durations:
    """The sum of several sets of durations."""
    durations = list(parts)
    return Durations(
        count=sum(part.count for part in durations),
        seconds=sum(part.seconds for part in durations),
        longest=max((part.longest for part in durations), default=0.0),
        # Their lengths may differ: an empty set has no buckets.
        histogram=tuple(map(sum, zip_longest(*(part.histogram for part in durations), fillvalue=0))),
    )
