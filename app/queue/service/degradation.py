"""Operations on the ladder of degradation: the duty that moves it, and holds by operators."""

import logging
from dataclasses import asdict, dataclass
from datetime import timedelta
from typing import Any

from sqlalchemy.ext.asyncio import AsyncConnection

from app.admin.service import audit
from app.queue.rules import degradation as rules
from app.queue.rules.degradation import DegradationStep, LadderHold, LadderPolicy, Strain
from app.queue.store import degradation as store
from app.queue.store.degradation import LadderState

log = logging.getLogger(__name__)
WATCH = "watch resources"
_POLICY = LadderPolicy()


@dataclass(slots=True)
class CurrentStep:
    """The step in force as this process knows it; it is read again with the weights, every second."""

    step: DegradationStep = DegradationStep.NONE

    @property
    def advice(self) -> dict[str, Any] | None:
        """The advice for workers and the Supervisor, as JSON; None when everything runs as usual."""
        return {"step": self.step.value, **asdict(rules.advice(self.step))} if self.step else None


async def current_step(connection: AsyncConnection) -> DegradationStep:
    """Read the step in force; one that was not renewed in time counts as none."""
    state = await store.read(connection)
    return rules.effective_step(state.ladder, state.at)


async def watch(connection: AsyncConnection, strain: Strain, policy: LadderPolicy = _POLICY) -> dict[str, Any]:
    """Move the ladder by at most one step according to the strain; return the step and the move."""
    # The locked row makes decisions of several replicas and of operators follow one another.
    previous = await store.lock(connection)
    decision = rules.decide(previous.ladder, strain, policy, previous.at)
    figures = {
        "resources": dict(strain.resources),
        "capacity_lost": strain.capacity_lost,
        "oldest_wait_seconds": strain.oldest_wait_seconds,
    }
    await store.write(connection, previous.ladder, decision, strain=figures)
    if decision.move is None:
        return {"step": decision.ladder.step.value}
    steps = f"{previous.ladder.step.name.lower()} to {decision.ladder.step.name.lower()}"
    log.warning("degradation goes %s from %s: %s", decision.move, steps, decision.ladder.reason)
    return {"step": decision.ladder.step.value, "move": decision.move.value}


async def hold(
    connection: AsyncConnection, step: DegradationStep, length: timedelta, *, by: str, reason: str
) -> LadderState:
    """Put the ladder on a step and keep it there for `length`; step 0 keeps everything running as usual."""
    previous = await store.lock(connection)
    order = LadderHold(until=previous.at + length, by=by)
    decision = rules.hold_step(previous.ladder, step, order, reason, previous.at, _POLICY)
    await store.write(connection, previous.ladder, decision, by=by)
    return await _audit(connection, previous, "degradation.hold", by=by, reason=reason)


async def release(connection: AsyncConnection, *, by: str, reason: str) -> LadderState:
    """Let the ladder move by itself again; without a hold nothing changes and nothing is audited."""
    previous = await store.lock(connection)
    decision = rules.release_hold(previous.ladder, reason, previous.at, _POLICY)
    if decision.move is None:
        return previous
    await store.write(connection, previous.ladder, decision, by=by)
    return await _audit(connection, previous, "degradation.release", by=by, reason=reason)


async def _audit(
    connection: AsyncConnection, previous: LadderState, action: str, *, by: str, reason: str
) -> LadderState:
    current = await store.read(connection)
    audit.record(
        connection, action, by=by, old_state=_audit_fields(previous), new_state=_audit_fields(current), reason=reason
    )
    return current


def _audit_fields(state: LadderState) -> dict[str, Any]:
    ladder = state.ladder
    return {"step": ladder.step.value, "held_until": ladder.hold.until.isoformat() if ladder.hold else None}
