"""Degradation: a duty moves the ladder, operators may hold it, and every process goes by where it stands."""

import logging
from dataclasses import asdict, dataclass
from datetime import timedelta
from typing import Any

from sqlalchemy.ext.asyncio import AsyncConnection

from app.admin.service import audit
from app.queue.rules.degradation import (
    DegradationStep,
    LadderHold,
    LadderPolicy,
    Strain,
    advice,
    decide,
    effective_step,
    hold_step,
    release_hold,
)
from app.queue.store import degradation as store
from app.queue.store.degradation import Standing

log = logging.getLogger(__name__)
WATCH = "watch resources"
_POLICY = LadderPolicy()


@dataclass(slots=True)
class CurrentStep:
    """The step in force, as this process knows it: read with the weights every second, so it is never much older."""

    step: DegradationStep = DegradationStep.NONE

    @property
    def advice(self) -> dict[str, Any] | None:
        """The advice for workers and the Supervisor, as JSON; None when everything runs as usual."""
        return {"step": self.step.value, **asdict(advice(self.step))} if self.step else None


async def current_step(connection: AsyncConnection) -> DegradationStep:
    """The step in force; one that nobody has renewed is over."""
    standing = await store.read(connection)
    return effective_step(standing.ladder, standing.at)


async def watch(connection: AsyncConnection, strain: Strain, policy: LadderPolicy = _POLICY) -> dict[str, Any]:
    """Move the ladder by a step at most, by how short resources are."""
    before = await store.lock(connection)
    decision = decide(before.ladder, strain, policy, before.at)
    seen = {
        "resources": dict(strain.resources),
        "capacity_lost": strain.capacity_lost,
        "oldest_wait_seconds": strain.oldest_wait_seconds,
    }
    await store.write(connection, before.ladder, decision, strain=seen)
    if decision.move is None:
        return {"step": decision.ladder.step.value}
    steps = f"{before.ladder.step.name.lower()} to {decision.ladder.step.name.lower()}"
    log.warning("degradation goes %s from %s: %s", decision.move, steps, decision.ladder.reason)
    return {"step": decision.ladder.step.value, "move": decision.move.value}


async def hold(
    connection: AsyncConnection, step: DegradationStep, length: timedelta, *, by: str, reason: str
) -> Standing:
    """Put the ladder on a step and keep it there for so long; step 0 keeps everything running as usual."""
    before = await store.lock(connection)
    decision = hold_step(before.ladder, step, LadderHold(until=before.at + length, by=by), reason, before.at, _POLICY)
    await store.write(connection, before.ladder, decision, by=by)
    return await _recorded(connection, before, "degradation.hold", by=by, reason=reason)


async def release(connection: AsyncConnection, *, by: str, reason: str) -> Standing:
    """Let the ladder move by itself again; without a hold nothing changes, and nothing is recorded."""
    before = await store.lock(connection)
    decision = release_hold(before.ladder, reason, before.at, _POLICY)
    if decision.move is None:
        return before
    await store.write(connection, before.ladder, decision, by=by)
    return await _recorded(connection, before, "degradation.release", by=by, reason=reason)


async def _recorded(connection: AsyncConnection, before: Standing, action: str, *, by: str, reason: str) -> Standing:
    after = await store.read(connection)
    await audit.record(connection, action, by=by, before=_audited(before), after=_audited(after), reason=reason)
    return after


def _audited(standing: Standing) -> dict[str, Any]:
    ladder = standing.ladder
    return {"step": ladder.step.value, "held_until": ladder.hold.until.isoformat() if ladder.hold else None}
