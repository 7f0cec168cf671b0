"""The weights in force: moved in small steps by results and orders, and followed by every process."""

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
from app.agents.rules.steering import Cause, SteeringSnapshot, SteeringStep
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

log = logging.getLogger(__name__)
# Named in place of a key where a step was not ordered.
_AUTOMATIC = "convener"
# Every change is announced; this is for those whose announcement was lost.
_POLL_SECONDS = 5.0
_TOPICS = frozenset({notify.WEIGHTS, notify.CONFIG})


@dataclass(frozen=True, slots=True, kw_only=True)
class WeightsInForce:
    """The weights in force, the reason for each one's last change, and their version; 0: as configured."""

    weights: Weights
    reasons: Mapping[AgentType, str]
    version: int
    step: DegradationStep = DegradationStep.NONE

    @property
    def shares(self) -> Weights:
        """Shares by which leases are granted and workers assigned: the weights under the step of degradation."""
        # Not weights themselves, as a suspension may take away more than a weight may change in one step.
        return under_degradation(self.weights, self.step)


async def in_force(connection: AsyncConnection, config: Effective) -> WeightsInForce:
    """Read the weights in force and the step of degradation."""
    step = await degradation.current_step(connection)
    last = await store.last(connection)
    if last is None:
        return WeightsInForce(weights=config.weights, reasons={}, version=0, step=step)
    # An order between two steps adjusts nothing, so the reasons are those of the last step.
    adjustments = last.adjustments or await store.adjustments(connection)
    reasons = {agent: adjustment.reason for agent, adjustment in adjustments.items()}
    return WeightsInForce(weights=last.state.current, reasons=reasons, version=last.version, step=step)


async def tick(connection: AsyncConnection) -> dict[str, Any]:
    """One turn of the duty: take a step if one is due; return the version written, or the reason for none."""
    config = await config_store.last(connection)
    if config is None:
        return {"waiting": "nobody has looked at the configuration yet"}
    effective = configuration.effective(config)
    last = await store.last(connection)
    state = last.state if last else rules.initial_state(effective.weights)
    policy = rules.policy_in(effective.mode)
    snapshot = await read_snapshot(connection, effective, policy)
    step = rules.advance(state, snapshot, policy)
    if last is not None and step.state == state:
        return {"kept": step.reason}
    # The first turn writes the configured weights, so that the history begins with them.
    if last is None and not step.adjustments:
        step = replace(step, cause=Cause.CONFIG, reason="as configured")
    version = await write(connection, last, new_version(step, snapshot, policy))
    return {"version": version.version, "cause": step.cause.value} if version else {"kept": "somebody else was faster"}


async def read_snapshot(connection: AsyncConnection, config: Effective, policy: WeightPolicy) -> SteeringSnapshot:
    """Read the scores of the agents, from their last results, and the configured weights."""
    results = await performance_store.read_results(connection)
    moment = await now(connection)
    summaries = performance.summarize(results.recent, moment, policy)
    return SteeringSnapshot(
        configured_weights=config.weights,
        scores={agent: summary.score for agent, summary in summaries.items()},
        results=results.total,
        now=moment,
    )


async def write(connection: AsyncConnection, last: Version | None, new: NewVersion) -> Version | None:
    """Put a new version in force and announce it; None when somebody else has written since `last`."""
    version = await store.write(connection, last.version if last else 0, new)
    if version is not None:
        notify.note(connection, notify.WEIGHTS)
    return version


def new_version(
    step: SteeringStep, snapshot: SteeringSnapshot, policy: WeightPolicy, by: str = _AUTOMATIC
) -> NewVersion:
    """The version that a step leads to, changed `by` a key or automatically."""
    return NewVersion(
        state=step.state,
        target=rules.current_target(step.state, snapshot.scores, policy),
        adjustments=step.adjustments,
        cause=step.cause,
        changed_by=by,
        reason=step.reason,
    )


async def follow_weights(
    database: Database, config: CurrentConfig, fairness: FairQueue, degradation: CurrentStep
) -> None:
    """Until canceled, keep the shares of this process's leases and its step of degradation those in force."""
    change_event = asyncio.Event()

    def note_change(topics: Collection[str]) -> None:
        if not _TOPICS.isdisjoint(topics):
            change_event.set()

    # Before the first read, so that no change falls between the two.
    database.announcer.subscribe(note_change)
    try:
        while True:
            await refresh_weights(database, config, fairness, degradation)
            try:
                await asyncio.wait_for(change_event.wait(), _POLL_SECONDS)
            except TimeoutError:
                continue
            change_event.clear()
    finally:
        database.announcer.unsubscribe(note_change)


async def refresh_weights(
    database: Database, config: CurrentConfig, fairness: FairQueue, degradation: CurrentStep
) -> None:
    """Share leases by the weights in force; while the database is away, by those last read."""
    try:
        current_config = await config.read()
        async with database.transaction() as connection:
            weights = await in_force(connection, current_config)
        fairness.weights, degradation.step = weights.shares, weights.step
    except DatabaseUnavailable:
        pass
    except Exception:
        log.exception("could not read the weights, trying again")
