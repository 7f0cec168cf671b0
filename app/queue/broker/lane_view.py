"""View of the lanes in one process: in which of them tasks may wait, and from which tag on.

It is wrong for moments only: a claim that finds nothing corrects it, an announcement of work corrects it, and a scan
of all lanes every few seconds finds work that was not announced, or that claims have missed.
"""

import asyncio
import itertools
import logging
import math
import random
import time
from collections import deque
from collections.abc import Awaitable, Callable, Collection, Mapping, Sequence, Set
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta

from app.db import hot_path, notify
from app.db.database import Database
from app.db.notify import News
from app.kernel.agents import AgentType
from app.kernel.errors import DatabaseUnavailable
from app.kernel.lanes import Lane, Priority
from app.queue.store import lanes, missed_tasks, ready_lanes
from app.queue.store.lanes import TagIssuer
from app.queue.store.missed_tasks import TagRange

LANES = tuple(Lane(agent_type=agent, priority=priority) for agent in AgentType for priority in Priority)
_TOPICS = {notify.work(lane): lane for lane in LANES}
# The width of a claim where little is known; it doubles with every claim that finds as many tasks.
_INITIAL_WIDTH = 4
_MAX_WIDTH = 128
# Of the turns of synchronization.
_SCAN_EVERY = 3
# Of the scans: from the bottom, to find even what the cheaper ones cannot see.
_FULL_SCAN_EVERY = 60
# At most, of the time: while somebody keeps an old snapshot, a full scan passes over all that was leased.
_FULL_SCAN_SHARE = 0.01
# Longer than a transaction usually takes from writing a row to its commit.
_OVERLAP = timedelta(seconds=15)
# Of the scans, as many as take about that long.
_LAST_LOOK_AFTER = 5

log = logging.getLogger(__name__)


@dataclass(slots=True)
class LaneView:
    """Per lane: the lowest tag at which a task may wait, where there may be any.

    A claim starts at this floor: below it an index scan would walk over dead entries of tasks leased before.
    """

    # Where the next claim begins; a lane without a floor is closed, as no task is known to wait there.
    _floors: dict[Lane, float] = field(default_factory=dict)
    # The tag that the last claim has reached, of closed lanes too.
    _positions: dict[Lane, float] = field(default_factory=dict)
    # The lowest tag of each lane that was announced since the last claim began.
    _announced_tags: dict[Lane, float] = field(default_factory=dict)
    # For `take_claim_floors`.
    _claim_floors: dict[Lane, float] = field(default_factory=dict)
    _widths: dict[Lane, int] = field(default_factory=dict)
    _best_lanes: dict[AgentType, Lane] = field(default_factory=dict)
    # Of lanes with resource classes, by class; a class is not in it while none of its lanes is open.
    _best_of_class: dict[int, dict[AgentType, Lane]] = field(default_factory=dict)
    _class_lanes: dict[int, tuple[Lane, ...]] = field(default_factory=dict)
    _topics: dict[str, Lane] = field(default_factory=lambda: _TOPICS)

    def know_classes(self, ids: Collection[int]) -> None:
        """Note which resource classes there are: tasks of others are not seen."""
        for gone in self._class_lanes.keys() - set(ids):
            for lane in self._class_lanes[gone]:
                self._close(lane)
                self._positions.pop(lane, None)
                self._widths.pop(lane, None)
        self._class_lanes = {
            number: tuple(replace(lane, resource_class=number) for lane in LANES) for number in sorted(ids)
        }
        self._topics = _TOPICS | {notify.work(lane): lane for same in self._class_lanes.values() for lane in same}

    @property
    def open_classes(self) -> Collection[int]:
        """The resource classes whose lanes may have work."""
        return self._best_of_class

    def receive(self, news: News) -> Collection[Lane]:
        """Take in announcements; return the lanes that they tell of."""
        topics = self._topics
        tags = {lane: tag for topic, tag in news.items() if (lane := topics.get(topic)) is not None}
        self.mark_ready(tags)
        return tags.keys()

    def mark_ready(self, tags: Mapping[Lane, float]) -> None:
        """Note that tasks may wait in these lanes, at these tags or above."""
        for lane, tag in tags.items():
            self._announced_tags[lane] = min(tag, self._announced_tags.get(lane, tag))
            self._open(lane, min(tag, self._floors.get(lane, tag)))

    def agents(self) -> Set[AgentType]:
        """The agent types that may have work which asks for no resources."""
        return self._best_lanes.keys()

    def best_lanes(self, classes: Sequence[int] = (), without: Set[Lane] = frozenset()) -> Mapping[AgentType, Lane]:
        """The lane of highest priority in which each type may have work, that of one of these classes included.

        Of several of one priority the first class counts; 0, which else comes last, is that of those that ask for none.
        """
        if without:
            order = {number: place for place, number in enumerate(reversed((*classes, 0)))}
            lanes = [lane for lane in self._floors if lane.resource_class in order and lane not in without]
            return {
                lane.agent_type: lane
                for lane in sorted(lanes, key=lambda lane: (lane.priority, order[lane.resource_class]))
            }
        if not classes:
            return self._best_lanes
        best = dict[AgentType, Lane]()
        nothing = dict[AgentType, Lane]()
        for number in (*classes, 0):
            best_of_one = self._best_of_class.get(number, nothing) if number else self._best_lanes
            for agent, lane in best_of_one.items():
                if agent not in best or best[agent].priority < lane.priority:
                    best[agent] = lane
        return best

    def most_urgent(self, agents: Collection[AgentType], best_lanes: Mapping[AgentType, Lane]) -> set[AgentType]:
        """Those of the types whose work may be of the highest priority."""
        lanes = [lane for agent in agents if (lane := best_lanes.get(agent)) is not None]
        highest = max((lane.priority for lane in lanes), default=None)
        return {lane.agent_type for lane in lanes if lane.priority == highest}

    def width(self, lane: Lane) -> int:
        """Number of waiting workers that may claim from a lane at once.

        When a single task arrives, a claim for hundreds of idle workers would lock and read for all of them in vain.
        """
        return self._widths.get(lane, _INITIAL_WIDTH)

    def floor(self, lane: Lane) -> float:
        """The tag from which a claim in this lane starts."""
        return self._floors.get(lane, lane.bottom)

    def positions(self) -> Mapping[Lane, float]:
        """For every lane the tag from which to look for ready tasks: its floor, or the tag at which it ran out."""
        every = LANES if not self._class_lanes else self.all_lanes()
        return {lane: self._floors.get(lane, self._positions.get(lane, lane.bottom)) for lane in every}

    def unseen_below(self) -> Mapping[Lane, float]:
        """For every lane the tag below which no task is known to wait: its floor, or its ceiling while it is closed."""
        return {lane: self._floors.get(lane, lane.ceiling) for lane in self.all_lanes()}

    def take_claim_floors(self) -> Mapping[Lane, float]:
        """For every lane with claims since this was last asked, the lowest floor from which one of them began."""
        floors, self._claim_floors = self._claim_floors, {}
        return floors

    def all_lanes(self) -> Sequence[Lane]:
        """Every lane, those of the known resource classes included."""
        return LANES + tuple(itertools.chain.from_iterable(self._class_lanes.values()))

    def begin_claim(self) -> None:
        """Note that a claim begins: it may not see the tasks that are announced from now on."""
        self._announced_tags.clear()

    def record_claim(
        self, lane: Lane, tags: Collection[float], *, is_exhausted: bool, ready_from: float | None = None
    ) -> None:
        """Take in the tags that a claim leased from a lane; exhausted is one with fewer tasks than claimed.

        `ready_from` is the lowest tag of those that it has passed over.
        """
        floor = self._floors.get(lane)
        if floor is not None and floor < self._claim_floors.get(lane, math.inf):
            self._claim_floors[lane] = floor
        # Tasks announced during the claim may lie below the tags that it reached, invisible to its snapshot.
        lowest_announced = self._announced_tags.get(lane)
        highest = max(tags, default=self._positions.get(lane, lane.bottom)) if ready_from is None else ready_from
        self._positions[lane] = highest if lowest_announced is None else min(highest, lowest_announced)
        if not is_exhausted:
            self._open(lane, self._positions[lane])
            self._widths[lane] = min(_MAX_WIDTH, max(self.width(lane), 2 * len(tags)))
            return
        self._widths.pop(lane, None)
        if lowest_announced is not None:
            self._open(lane, lowest_announced)
        else:
            self._close(lane)

    def _open(self, lane: Lane, floor: float) -> None:
        self._floors[lane] = floor
        number = lane.resource_class
        best_lanes = self._best_of_class.setdefault(number, {}) if number else self._best_lanes
        best = best_lanes.get(lane.agent_type)
        if best is None or best.priority < lane.priority:
            best_lanes[lane.agent_type] = lane

    def _close(self, lane: Lane) -> None:
        self._floors.pop(lane, None)
        agent, number = lane.agent_type, lane.resource_class
        best_lanes = self._best_of_class.get(number, {}) if number else self._best_lanes
        open_lanes = [other for other in self._floors if other.agent_type == agent and other.resource_class == number]
        if open_lanes:
            best_lanes[agent] = max(open_lanes, key=lambda candidate: candidate.priority)
        else:
            best_lanes.pop(agent, None)
            if number and not best_lanes:
                self._best_of_class.pop(number, None)


_IDLE_TURNS = 4


class LaneScanner:
    """Scanner for ready tasks that were not announced, whose announcement was lost, or that claims have missed.

    A claim skips a task whose row is locked, and later ones begin above it. So the tags that claims have gone through
    are looked at again: at the next scan, when most locks are gone, and at one about 15 s later, when all should be.
    """

    # No tag is looked at more than twice. So the work goes by the tasks leased, two entries of an index for each, and
    # neither by the depth of a lane nor by the age of a snapshot that keeps dead entries: 15 to 19 ms of every 3 s at
    # 5,000 tasks per second. To begin every scan where claims were 15 s ago would take twice as much.

    def __init__(self, database: Database) -> None:
        self._database = database
        self._scanned_at: datetime | None = None
        self._scan_count = 0
        # Of the server, as often as it may have changed, and of the one that was looked through last.
        self._server_number, self._scanned_number = 1, 0
        database.announcer.on_connection.append(self.begin_anew)
        self._next_full_scan = 0.0
        # Of the last scans, the oldest first.
        self._tag_ranges: deque[Sequence[TagRange]] = deque([()] * _LAST_LOOK_AFTER)
        # The highest position of each lane at any scan: what lies below has had its looks.
        self._highest_positions: Mapping[Lane, float] = {}

    async def scan(self, view: LaneView) -> dict[Lane, float]:
        """Lane -> lowest tag of tasks that are ready, though the view knows of none there."""
        new_tags = await self._find_new(view.unseen_below())
        tag_ranges = self._next_ranges(view)
        if not tag_ranges:
            return new_tags
        missed_tags = await hot_path.run(self._database, lambda c: missed_tasks.find(c, tag_ranges))
        return new_tags | {lane: min(tag, new_tags.get(lane, tag)) for lane, tag in missed_tags.items()}

    def begin_anew(self) -> None:
        """Look through all at the next scan, as this may be another server, where leases were lost.

        Their tasks wait there below the floors, since long ago, and nobody has announced them.
        """
        self._server_number += 1

    async def _find_new(self, unseen_below: Mapping[Lane, float]) -> dict[Lane, float]:
        """The lowest tags below these of tasks that became ready since the last scan; of all tasks in a full scan."""
        server_number = self._server_number
        since, self._scanned_at = self._scanned_at, await hot_path.run(self._database, ready_lanes.current_time)
        self._scan_count += 1
        begun = time.monotonic()
        is_due = self._scan_count % _FULL_SCAN_EVERY == 0 and begun >= self._next_full_scan
        if since is None or server_number != self._scanned_number or is_due:
            try:
                tags = await hot_path.run(self._database, lambda c: ready_lanes.find(c, list(unseen_below)))
            finally:
                self._next_full_scan = begun + (time.monotonic() - begun) / _FULL_SCAN_SHARE
            self._scanned_number = server_number
            return tags
        return await hot_path.run(self._database, lambda c: ready_lanes.find_below(c, unseen_below, since - _OVERLAP))

    def _next_ranges(self, view: LaneView) -> Sequence[TagRange]:
        """The tags that claims have gone through since the last scan, and those whose last look is due."""
        positions, highest = view.positions(), self._highest_positions
        # Above the highest position only: a task that somebody keeps locked would lead claims back to it for ever.
        starts = {lane: max(floor, highest.get(lane, floor)) for lane, floor in view.take_claim_floors().items()}
        newest = [TagRange(lane, start, positions[lane]) for lane, start in starts.items() if lane in positions]
        newest = [tags for tags in newest if tags.start < tags.end]
        self._highest_positions = {lane: max(tag, highest.get(lane, tag)) for lane, tag in positions.items()}
        self._tag_ranges.append(newest)
        return [*self._tag_ranges.popleft(), *newest]


async def synchronize_lanes(database: Database, scan_lanes: Callable[[], Awaitable[None]]) -> None:
    """About once a second until cancelled: exchange virtual times with other processes; scan on every third turn."""
    for turn in itertools.count(1):
        await asyncio.sleep(random.uniform(0.8, 1.2))  # noqa: S311 - jitter, not a secret
        try:
            await _exchange_times(database, turn)
            if turn % _SCAN_EVERY == 0:
                await scan_lanes()
        except DatabaseUnavailable:
            continue
        except Exception:
            log.exception("could not synchronize the lanes, trying again")


async def _exchange_times(database: Database, turn: int) -> None:
    # A process sees only its own leases; without those of the others its new tasks would get tags that are too low, and
    # go ahead of tasks that wait.
    tag_issuer = database.shared(TagIssuer)
    times = tag_issuer.unstored_times()
    # While this process leases nothing, usually no other does either.
    if not times and turn % _IDLE_TURNS:
        return
    tag_issuer.merge_stored_times(await hot_path.run(database, lambda c: lanes.exchange_times(c, times)))
