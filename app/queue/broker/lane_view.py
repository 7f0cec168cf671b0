"""What one process believes of the lanes: where work may wait, and from which tag on.

Wrong for a moment at most: a claim that finds nothing corrects it, an announcement of work puts it right, and a look
at the whole of every lane every few seconds finds what nobody announced.
"""

import asyncio
import itertools
import logging
import random
from collections.abc import Awaitable, Callable, Collection, Mapping, Set
from dataclasses import dataclass, field
from datetime import datetime, timedelta

from app.db import hot_path, notify
from app.db.database import Database
from app.db.notify import News
from app.kernel.agents import AgentType
from app.kernel.errors import DatabaseUnavailable
from app.kernel.lanes import Lane, Priority
from app.queue.store import claims, lanes
from app.queue.store.claims import BOTTOM
from app.queue.store.lanes import TagIssuer

LANES = tuple(Lane(agent_type=agent, priority=priority) for agent in AgentType for priority in Priority)
_TOPICS = {notify.work(lane): lane for lane in LANES}
# How many are to ask at once where little is known; it doubles with every claim that finds as many tasks.
_FIRST_ASKS = 4
_MOST_ASKS = 64


log = logging.getLogger(__name__)
_LOOK_EVERY = 3


# Longer than a transaction usually takes between the time that it writes into a row and its commit.
_OVERLAP = timedelta(seconds=15)
_FROM_THE_BOTTOM_EVERY = 60


@dataclass(slots=True)
class Backlog:
    """Per lane: the lowest tag at which a task may wait, where there may be any."""

    _floors: dict[Lane, float] = field(default_factory=dict)
    _stood: dict[Lane, float] = field(default_factory=dict)
    _rung: dict[Lane, float] = field(default_factory=dict)
    _asks: dict[Lane, int] = field(default_factory=dict)
    _best: dict[AgentType, Lane] = field(default_factory=dict)

    def hear(self, news: News) -> bool:
        """Take in announcements; whether any was about work."""
        found = {lane: tag for topic, tag in news.items() if (lane := _TOPICS.get(topic)) is not None}
        self.ring(found)
        return bool(found)

    def ring(self, tags: Mapping[Lane, float]) -> None:
        """There may be work in these lanes, at these tags or above."""
        for lane, tag in tags.items():
            self._rung[lane] = min(tag, self._rung.get(lane, tag))
            self._put(lane, min(tag, self._floors.get(lane, tag)))

    def agents(self) -> Set[AgentType]:
        """The agent types that may have work."""
        return self._best.keys()

    def lane(self, agent: AgentType) -> Lane | None:
        """The most urgent lane of the type that may have work."""
        return self._best.get(agent)

    def most_urgent(self, agents: Collection[AgentType]) -> set[AgentType]:
        """Those of the types whose work may be of the highest priority."""
        lanes = [lane for agent in agents if (lane := self.lane(agent)) is not None]
        highest = max((lane.priority for lane in lanes), default=None)
        return {lane.agent_type for lane in lanes if lane.priority == highest}

    def asks(self, lane: Lane) -> int:
        """How many waiting workers should ask at once: one task needs no crowd to find it."""
        return self._asks.get(lane, _FIRST_ASKS)

    def floor(self, lane: Lane) -> float:
        """From which tag on to look."""
        return self._floors.get(lane, BOTTOM)

    def stood(self) -> Mapping[Lane, float]:
        """For every lane, from where to look for work that was not announced: where it was last seen to stand."""
        return {lane: self._floors.get(lane, self._stood.get(lane, BOTTOM)) for lane in LANES}

    def about_to_look(self) -> None:
        """A claim is about to look: whatever rings from now on, it may not see."""
        self._rung.clear()

    def found(self, lane: Lane, tags: Collection[float], *, dry: bool) -> None:
        """What the claim leased from a lane; `dry` when there was less than asked for."""
        rung = self._rung.get(lane)
        reached = max(tags, default=self._stood.get(lane, BOTTOM))
        self._stood[lane] = reached if rung is None else min(reached, rung)
        if not dry:
            self._put(lane, self._stood[lane])
            self._asks[lane] = min(_MOST_ASKS, max(self.asks(lane), 2 * len(tags)))
            return
        self._asks.pop(lane, None)
        if rung is not None:
            self._put(lane, rung)
        else:
            self._drop(lane)

    def _put(self, lane: Lane, floor: float) -> None:
        self._floors[lane] = floor
        best = self._best.get(lane.agent_type)
        if best is None or best.priority < lane.priority:
            self._best[lane.agent_type] = lane

    def _drop(self, lane: Lane) -> None:
        self._floors.pop(lane, None)
        rest = [other for other in self._floors if other.agent_type == lane.agent_type]
        if rest:
            self._best[lane.agent_type] = max(rest, key=lambda other: other.priority)
        else:
            self._best.pop(lane.agent_type, None)


async def keep_in_step(database: Database, look_everywhere: Callable[[], Awaitable[None]]) -> None:
    """About once a second until cancelled: exchange virtual times; every third time look for what nobody announced."""
    for turn in itertools.count(1):
        await asyncio.sleep(random.uniform(0.8, 1.2))  # noqa: S311 - jitter, not a secret
        try:
            await _exchange(database)
            if turn % _LOOK_EVERY == 0:
                await look_everywhere()
        except DatabaseUnavailable:
            continue
        except Exception:
            log.exception("could not keep in step with the lanes, trying again")


async def _exchange(database: Database) -> None:
    tag_issuer = database.shared(TagIssuer)
    times = tag_issuer.unstored_times()
    tag_issuer.merge_stored_times(await hot_path.run(database, lambda c: lanes.exchange_times(c, times)))


class Strays:
    """Remembers how far it has looked."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self._looked_at: datetime | None = None
        self._turn = 0

    async def find(self, stood: Mapping[Lane, float]) -> dict[Lane, float]:
        """Lane -> lowest tag of what lies below where the lane stood, as far as it became ready since the last look."""
        since, self._looked_at = self._looked_at, await hot_path.run(self._database, claims.current_time)
        self._turn += 1
        if since is None or self._turn % _FROM_THE_BOTTOM_EVERY == 0:
            return await hot_path.run(self._database, lambda c: claims.ready_lanes(c, LANES))
        return await hot_path.run(self._database, lambda c: claims.ready_below(c, stood, since - _OVERLAP))
