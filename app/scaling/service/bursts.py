"""Wakes the scaling loop at once when more work comes than the pool can start in time.

Only a hint: each process counts what it takes in, by its own clock, and the loop that it wakes decides by the counters
whether this is a burst. Work that many processes take in little by little waits for the tick.
"""

import asyncio
import logging
import time
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from datetime import datetime

from app.admin.service.config import CurrentConfig
from app.db import notify
from app.db.database import Database
from app.kernel.agents import AgentType
from app.kernel.errors import DatabaseUnavailable
from app.scaling.rules import estimates
from app.scaling.rules.target import ScalingPolicy, is_burst, scaling_policy
from app.scaling.service import state

log = logging.getLogger(__name__)
# Seconds after which the outlook is read again; an older one counts work that the last decision knew already.
_TRUST_SECONDS = 1.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Outlook:
    """The pool after the last decision: workers, queued seconds of work, and the `costs` of a task of each type.

    `decided_at` is by the clock of the database, `decided_clock` by the monotonic one of this process.
    """

    decided_at: datetime
    decided_clock: float
    workers: int
    queued_seconds: float
    costs: Mapping[AgentType, float]
    policy: ScalingPolicy


class Bursts:
    """Counts the work that this process takes in between two decisions, without IO where tasks are submitted."""

    def __init__(self, database: Database, config: CurrentConfig) -> None:
        self._database = database
        self._config = config
        self._outlook: Outlook | None = None
        self._new_seconds = 0.0
        self._announced_at = self._read_at = float("-inf")
        self._reading: asyncio.Task[None] | None = None

    def count_new_tasks(self, agents: Iterable[AgentType]) -> Collection[str]:
        """Count new tasks; return the topics to announce when they are committed, of which a burst is one."""
        moment, outlook = time.monotonic(), self._outlook
        if moment - self._read_at > _TRUST_SECONDS and (self._reading is None or self._reading.done()):
            self._read_at = moment
            # Beside the submission, which must not wait for a connection.
            self._reading = asyncio.create_task(self._refresh(), name="outlook of the pool")
        if outlook is None or outlook.policy.is_fixed:
            return ()
        self._new_seconds += sum(outlook.costs[agent] for agent in agents)
        # Since the last announcement too, or every submission of a burst would make another.
        since = moment - max(outlook.decided_clock, self._announced_at)
        if not is_burst(outlook.queued_seconds + self._new_seconds, outlook.workers, since, outlook.policy):
            return ()
        self._announced_at = moment
        return (notify.BURST,)

    async def stop(self) -> None:
        """Stop reading the outlook."""
        if self._reading is not None:
            self._reading.cancel()
            await asyncio.gather(self._reading, return_exceptions=True)

    async def _refresh(self) -> None:
        try:
            outlook = await self._read_outlook()
        except DatabaseUnavailable:
            return
        except Exception:
            log.exception("could not read how the pool stands, trying again")
            return
        # The queue of a new decision includes what was counted here before it.
        if outlook is not None and (self._outlook is None or outlook.decided_at != self._outlook.decided_at):
            self._outlook, self._new_seconds = outlook, 0.0

    async def _read_outlook(self) -> Outlook | None:
        config = await self._config.read()
        async with self._database.transaction() as connection:
            previous, moment = await state.read_with_time(connection)
        if previous is None:
            return None
        current = previous.estimates
        costs = {agent: estimates.task_seconds(current, agent) for agent in AgentType}
        return Outlook(
            decided_at=current.at,
            decided_clock=time.monotonic() - (moment - current.at).total_seconds(),
            workers=current.workers,
            queued_seconds=sum(tasks * costs[lane.agent_type] for lane, tasks in current.pending.items()),
            costs=costs,
            policy=scaling_policy(config.document, config.mode),
        )
