"""The weights in force: moved by what agents achieve and by orders, in small steps, and known to every process."""

import asyncio
import logging
from collections.abc import Collection, Mapping
from dataclasses import dataclass, replace
from typing import Any

from sqlalchemy.ext.asyncio import AsyncConnection

from app.admin.service import config as configuration
from app.admin.service.config import CurrentConfig, Effective
from app.admin.store import config as config_store
from app.agents.rules import performance
from app.agents.rules import steering as rules
from app.agents.rules.steering import AgentView, Cause, SteeringStep
from app.agents.rules.weights import WeightPolicy, under_degradation
from app.agents.store import performance as performance_store
from app.agents.store import weights as store
from app.agents.store.weights import NewVersion, Version
from app.db import notify
from app.db.database import Database, now
from app.kernel.agents import AgentType
from app.kernel.errors import DatabaseUnavailable
from app.kernel.shares import Weights
from app.queue.rules.degradation import DegradationStep
from app.queue.rules.fair_queueing import FairQueue
from app.queue.service import degradation
from app.queue.service.degradation import CurrentStep

# Who moves weights when nobody has asked for it.
_NOBODY = "convener"


log = logging.getLogger(__name__)
# A change is announced; one that nobody heard of is seen after this long.
_LOOK_SECONDS = 1.0
_TOPICS = frozenset({notify.WEIGHTS, notify.CONFIG})


@dataclass(frozen=True, slots=True, kw_only=True)
class InForce:
    """The weights, why each last changed, and their version; 0 while they are what the configuration says.

    The shares are what they come to under the step of degradation: a suspension is no adjustment of a weight, which
    may never change by more than half at once.
    """

    weights: Weights
    reasons: Mapping[AgentType, str]
    version: int
    step: DegradationStep = DegradationStep.NONE

    @property
    def shares(self) -> Weights:
        """What leases are shared by, and workers assigned by."""
        return under_degradation(self.weights, self.step)


async def in_force(connection: AsyncConnection, config: Effective) -> InForce:
    """The weights in force, and the step of degradation that they are under."""
    step = await degradation.current_step(connection)
    last = await store.last(connection)
    if last is None:
        return InForce(weights=config.weights, reasons={}, version=0, step=step)
    adjustments = last.adjustments or await store.adjustments(connection)
    reasons = {agent: adjustment.reason for agent, adjustment in adjustments.items()}
    return InForce(weights=last.course.current, reasons=reasons, version=last.version, step=step)


async def tick(connection: AsyncConnection) -> dict[str, Any]:
    """One turn: take up what has changed, and make a step if one is due."""
    config = await config_store.last(connection)
    if config is None:
        return {"waiting": "nobody has looked at the configuration yet"}
    effective = configuration.effective(config)
    last = await store.last(connection)
    before = last.course if last else rules.outset(effective.weights)
    policy = rules.policy_in(effective.mode)
    sight = await look(connection, effective, policy)
    leg = rules.advance(before, sight, policy)
    if last is not None and leg.course == before:
        return {"kept": leg.reason}
    if last is None and not leg.adjustments:
        leg = replace(leg, cause=Cause.CONFIG, reason="as configured")
    made = await write(connection, last, _version(leg, sight, policy))
    return {"version": made.version, "cause": leg.cause.value} if made else {"kept": "somebody else was faster"}


async def look(connection: AsyncConnection, config: Effective, policy: WeightPolicy) -> AgentView:
    """What the next step depends on."""
    memory = await performance_store.memory(connection)
    moment = await now(connection)
    found = performance.achievements(memory.recent, moment, policy)
    return AgentView(
        configured=config.weights,
        standings={agent: achievement.standing for agent, achievement in found.items()},
        results=memory.counted,
        now=moment,
    )


async def write(connection: AsyncConnection, before: Version | None, new: NewVersion) -> Version | None:
    """Put it in force, unless somebody else was faster."""
    made = await store.write(connection, before.version if before else 0, new)
    if made is not None:
        notify.note(connection, notify.WEIGHTS)
    return made


def _version(leg: SteeringStep, sight: AgentView, policy: WeightPolicy) -> NewVersion:
    return NewVersion(
        course=leg.course,
        target=rules.goal(leg.course, sight.standings, policy),
        adjustments=leg.adjustments,
        cause=leg.cause,
        changed_by=_NOBODY,
        reason=leg.reason,
    )


async def follow_weights(
    database: Database, config: CurrentConfig, fairness: FairQueue, degradation: CurrentStep
) -> None:
    """Until cancelled: weights and step of degradation, by which leases are shared, are those in force."""
    news = asyncio.Event()

    def hear(topics: Collection[str]) -> None:
        if not _TOPICS.isdisjoint(topics):
            news.set()

    database.announcer.subscribe(hear)
    try:
        while True:
            await take_weights(database, config, fairness, degradation)
            try:
                await asyncio.wait_for(news.wait(), _LOOK_SECONDS)
            except TimeoutError:
                continue
            news.clear()
    finally:
        database.announcer.unsubscribe(hear)


async def take_weights(
    database: Database, config: CurrentConfig, fairness: FairQueue, degradation: CurrentStep
) -> None:
    """Share by the weights in force, as far as the database tells them."""
    try:
        known = await config.read()
        async with database.transaction() as connection:
            found = await in_force(connection, known)
        fairness.weights, degradation.step = found.shares, found.step
    except DatabaseUnavailable:
        pass
    except Exception:
        log.exception("could not read the weights, trying again")
