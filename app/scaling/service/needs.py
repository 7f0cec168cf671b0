"""Waiting tasks by the pool that they are a need of, and those that ask for what nobody offers, a need of none."""

from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

from sqlalchemy.ext.asyncio import AsyncConnection

from app.kernel import resources
from app.kernel.agents import AgentType
from app.kernel.lanes import Lane
from app.kernel.resources import NOTHING, Resources
from app.queue.store import resource_classes
from app.scaling.rules.needs import USUAL, Pools, destination
from app.workers.rules.classes import WorkerClass
from app.workers.store import offers as worker_offers

# In each lane, at each decision: beyond, the tasks of the usual pool tell how many are left.
_MOST_COUNTED = 1_000


@dataclass(frozen=True, slots=True, kw_only=True)
class Needs:
    """Numbers of waiting tasks by agent type and priority: of each class by its name, and of what nobody offers.

    `examples` has one request that nobody offers of each agent type. All other tasks are a need of the usual pool.
    """

    unoffered: Mapping[Lane, int] = field(default_factory=dict)
    examples: Mapping[AgentType, Resources] = field(default_factory=dict)
    by_class: Mapping[str, Mapping[Lane, int]] = field(default_factory=dict)

    def elsewhere(self, lane: Lane) -> int:
        """Number of tasks of a lane that are no need of the usual pool."""
        return self.unoffered.get(lane, 0) + sum(tasks.get(lane, 0) for tasks in self.by_class.values())


async def find(
    connection: AsyncConnection,
    pending: Mapping[Lane, int],
    classes: Mapping[str, WorkerClass],
    limit: int = _MOST_COUNTED,
) -> Needs:
    """Find the needs of the pending tasks; reads the workers, and tasks only of lanes that are not the usual pool's."""
    waiting = [lane for lane, tasks in pending.items() if tasks > 0]
    texts = await resource_classes.requests(connection) if waiting else {}
    if not waiting or not (texts or classes):
        return Needs()
    requests = {0: NOTHING, **{number: resources.parse(text) for number, text in texts.items()}}
    offers = await worker_offers.read(connection)
    pools = Pools(usual=offers.by_agent if offers.is_known else None, classes=classes)
    places = {
        replace(lane, resource_class=number): destination(lane.agent_type, request, pools)
        for lane in waiting
        for number, request in requests.items()
    }
    lanes = [lane for lane, place in places.items() if place != USUAL]
    if not lanes:
        return Needs()
    counts = await resource_classes.count_waiting(connection, lanes, limit)
    if full := [lane for lane, count in counts.items() if count >= limit]:
        counts = await _with_rest(connection, pending, counts, full, list(places), limit)
    unoffered: Counter[Lane] = Counter()
    examples: dict[AgentType, Resources] = {}
    by_class: dict[str, Counter[Lane]] = defaultdict(Counter)
    for lane, count in counts.items():
        place = places[lane]
        if count and place is None:
            unoffered[_plain(lane)] += count
            examples.setdefault(lane.agent_type, requests[lane.resource_class])
        elif count and place is not None:
            by_class[place][_plain(lane)] += count
    return Needs(unoffered=unoffered, examples=examples, by_class=by_class)


async def _with_rest(
    connection: AsyncConnection,
    pending: Mapping[Lane, int],
    counts: Mapping[Lane, int],
    full: Sequence[Lane],
    lanes: Sequence[Lane],
    limit: int,
) -> dict[Lane, int]:
    """The counts where lanes have more than was counted: these have what is left beside all the others."""
    total = dict(counts)
    plain_lanes = {_plain(lane) for lane in full}
    usual_lanes = [lane for lane in lanes if lane not in counts and _plain(lane) in plain_lanes]
    usual = await resource_classes.count_waiting(connection, usual_lanes, limit) if usual_lanes else {}
    for plain in sorted(plain_lanes):
        many = [lane for lane in full if _plain(lane) == plain]
        counted = sum(count for lane, count in {**counts, **usual}.items() if _plain(lane) == plain)
        # Where the usual pool has more than was counted as well, the rest may be its own.
        if not any(count >= limit for lane, count in usual.items() if _plain(lane) == plain):
            total[many[0]] += max(0, pending[plain] - counted)
    return total


def _plain(lane: Lane) -> Lane:
    return replace(lane, resource_class=0)
