"""The weights in force: moved by what agents achieve and by orders, in small steps, and known to every process."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from sqlalchemy.ext.asyncio import AsyncConnection

from app.domain import course as rules
from app.domain import performance
from app.domain.agents import AgentType
from app.domain.course import Cause, Leg, Sight
from app.domain.degradation import Step, under_degradation
from app.domain.weights import WeightPolicy, Weights
from app.operations import config as configuration
from app.operations import degradation
from app.operations.config import Effective
from app.store import announcements
from app.store import config as config_store
from app.store import performance as performance_store
from app.store import weights as store
from app.store.database import now
from app.store.weights import NewVersion, Version

# Who moves weights when nobody has asked for it.
_NOBODY = "convener"


@dataclass(frozen=True, slots=True, kw_only=True)
class InForce:
    """The weights, why each last changed, and their version; 0 while they are what the configuration says.

    The shares are what they come to under the step of degradation: a suspension is no adjustment of a weight, which
    may never change by more than half at once.
    """

    weights: Weights
    reasons: Mapping[AgentType, str]
    version: int
    step: Step = Step.NONE

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


async def look(connection: AsyncConnection, config: Effective, policy: WeightPolicy) -> Sight:
    """What the next step depends on."""
    memory = await performance_store.memory(connection)
    moment = await now(connection)
    found = performance.achievements(memory.recent, moment, policy)
    return Sight(
        configured=config.weights,
        standings={agent: achievement.standing for agent, achievement in found.items()},
        results=memory.counted,
        now=moment,
    )


async def write(connection: AsyncConnection, before: Version | None, new: NewVersion) -> Version | None:
    """Put it in force, unless somebody else was faster."""
    made = await store.write(connection, before.version if before else 0, new)
    if made is not None:
        announcements.note(connection, announcements.WEIGHTS)
    return made


def _version(leg: Leg, sight: Sight, policy: WeightPolicy) -> NewVersion:
    return NewVersion(
        course=leg.course,
        target=rules.goal(leg.course, sight.standings, policy),
        adjustments=leg.adjustments,
        cause=leg.cause,
        changed_by=_NOBODY,
        reason=leg.reason,
    )
