"""Telling the scaling loop at once when more work comes than the pool can start in time.

A hint, no more: each process counts what it takes in itself, by the clock of its own, and the loop, which is woken by
it, decides by the counters whether this is a burst. What many processes take in little by little waits for the tick.
"""

import asyncio
import logging
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import datetime

from sqlalchemy.ext.asyncio import AsyncConnection

from app.admin.service.config import CurrentConfig
from app.db import notify
from app.db.database import Database
from app.kernel.agents import AgentType
from app.kernel.errors import DatabaseUnavailable
from app.scaling.rules import estimates as learning
from app.scaling.rules.target import ScalingPolicy, is_burst, scaling_policy
from app.scaling.service import state
from app.scaling.service.snapshot import SERVICE

log = logging.getLogger(__name__)
_TRUST_SECONDS = 1.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Outlook:
    """What the last decision left behind: workers, queued seconds of work, and what a task of each type costs."""

    decided_at: datetime
    decided: float
    workers: int
    queued_seconds: float
    costs: Mapping[AgentType, float]
    policy: ScalingPolicy


class Bursts:
    """Counts what this process takes in between two decisions. Without IO where tasks are submitted."""

    def __init__(self, database: Database, config: CurrentConfig) -> None:
        self._database = database
        self._config = config
        self._outlook: Outlook | None = None
        self._added = 0.0
        self._told = self._read = float("-inf")
        self._reading: asyncio.Task[None] | None = None

    def took_in(self, connection: AsyncConnection, agents: Iterable[AgentType]) -> None:
        """These tasks have come; announces a burst with the commit of the connection's transaction."""
        moment, outlook = time.monotonic(), self._outlook
        if moment - self._read > _TRUST_SECONDS and (self._reading is None or self._reading.done()):
            self._read = moment
            self._reading = asyncio.create_task(self._look(), name="outlook of the pool")
        if outlook is None or outlook.policy.fixed:
            return
        self._added += sum(outlook.costs[agent] for agent in agents)
        since = moment - max(outlook.decided, self._told)
        if is_burst(outlook.queued_seconds + self._added, outlook.workers, since, outlook.policy):
            self._told = moment
            notify.note(connection, notify.BURST)

    async def stop(self) -> None:
        """Look no more."""
        if self._reading is not None:
            self._reading.cancel()
            await asyncio.gather(self._reading, return_exceptions=True)

    async def _look(self) -> None:
        try:
            found = await self._read_outlook()
        except DatabaseUnavailable:
            return
        except Exception:
            log.exception("could not read how the pool stands, trying again")
            return
        if found is not None and (self._outlook is None or found.decided_at != self._outlook.decided_at):
            self._outlook, self._added = found, 0.0

    async def _read_outlook(self) -> Outlook | None:
        config = await self._config.read()
        async with self._database.transaction() as connection:
            memory, moment = await state.recall_and_now(connection)
        if memory is None:
            return None
        known = memory.experience
        costs = {agent: learning.estimate(known, agent, SERVICE) for agent in AgentType}
        return Outlook(
            decided_at=known.at,
            decided=time.monotonic() - (moment - known.at).total_seconds(),
            workers=known.workers,
            queued_seconds=sum(tasks * costs[lane.agent_type] for lane, tasks in known.pending.items()),
            costs=costs,
            policy=scaling_policy(config.document, config.mode),
        )
