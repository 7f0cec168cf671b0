"""Past decisions: read, explained, replayed, and made again under another configuration."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from typing import Any

from sqlalchemy.ext.asyncio import AsyncConnection

from app.admin.errors import ConfigRefused
from app.admin.rules import config as rules
from app.admin.rules.config import Document, LimitsConfig
from app.admin.service import config
from app.kernel import changes
from app.kernel.changes import Change
from app.kernel.modes import Mode
from app.scaling.errors import DecisionNotFound
from app.scaling.rules import record as records
from app.scaling.rules import target
from app.scaling.rules.decision import DecisionInputs, resolve
from app.scaling.rules.explanation import Explanation, explain
from app.scaling.service import state
from app.scaling.store import decisions as store
from app.scaling.store.decisions import StoredDecision
from app.workers.rules.assignment import host_policy
from app.workers.rules.hosts import PERMITS, host_limits


@dataclass(frozen=True, slots=True, kw_only=True)
class Replay:
    """Whether the stored inputs still lead to the stored outcome, to the byte, and the differences."""

    id: int
    identical: bool
    differences: Sequence[Change]


@dataclass(frozen=True, slots=True, kw_only=True)
class Variation:
    """Changes to the inputs of a decision; None leaves a value as it was."""

    document: Document | None = None
    mode: Mode | None = None
    weights_changed: bool = False
    wait_target_seconds: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Recommendation:
    """Recommended size of the pool in flat numbers; the minimum before the first decision."""

    target_workers: int
    current_workers: int
    decision_id: int | None = None
    decision_type: str = "maintain"
    decided_at: datetime | None = None
    waiting_tasks: int = 0
    waiting_seconds: float = 0.0
    bottleneck_agent: str | None = None
    reason: str = "nothing has been decided yet"


async def read(connection: AsyncConnection, decision_id: int | None) -> StoredDecision:
    """A decision, the last one for None. Raises DecisionNotFound."""
    decision = await (store.latest(connection) if decision_id is None else store.read(connection, decision_id))
    if decision is None:
        raise DecisionNotFound
    return decision


async def recommendation(connection: AsyncConnection, initial: Mode) -> Recommendation:
    """The size that the last decision recommends, read from the one row of the scaling state."""
    last = await state.read(connection)
    if last is None:
        min_workers = (await config.current(connection, initial)).document.worker_pool.min_workers
        return Recommendation(target_workers=min_workers, current_workers=0)
    values = {name: last.brief[name] for name in Recommendation.__dataclass_fields__ if name in last.brief}
    return Recommendation(**values, decided_at=last.estimates.at)


def inputs_of(decision: StoredDecision) -> DecisionInputs:
    """The inputs of a decision; takes milliseconds of processor time where there are many workers."""
    return records.inputs_of(decision.roster, decision.inputs)


def explanation(decision: StoredDecision) -> Explanation:
    """Explain a decision by the rules of today."""
    inputs = inputs_of(decision)
    return explain(inputs, resolve(inputs))


def replay(decision: StoredDecision) -> Replay:
    """Decide again from the stored inputs, and compare the texts; takes milliseconds of processor time."""
    again = records.replay(decision.roster, decision.inputs)
    differences = [] if again == decision.output else changes.changes(json.loads(decision.output), json.loads(again))
    return Replay(id=decision.id, identical=again == decision.output, differences=differences)


async def base_document(connection: AsyncConnection, inputs: DecisionInputs, mode: Mode | None) -> Document:
    """The configuration by which a decision with these inputs was made, or that configuration in another mode.

    Raises ConfigVersionNotFound.
    """
    document = (await config.version(connection, inputs.config_version)).document
    return document if mode in (None, inputs.mode) else rules.with_mode(document, mode)


def what_if(decision: StoredDecision, variation: Variation) -> Mapping[str, Any]:
    """Make a decision again with other inputs; return its outcome as published. Raises ConfigRefused."""
    inputs = _vary(inputs_of(decision), variation)
    outcome = records.outcome(resolve(inputs), inputs)
    return records.published_outcome(outcome, decision.roster)


def _vary(inputs: DecisionInputs, variation: Variation) -> DecisionInputs:
    mode, document = variation.mode or inputs.mode, variation.document
    policy = inputs.policy
    if document is not None:
        if problems := rules.problems(document, mode):
            raise ConfigRefused([(f"config.{remark.path}", remark.message) for remark in problems])
        policy = target.priced(target.scaling_policy(document, mode), inputs.snapshot.start_seconds)
        inputs = _with_limits(inputs, document.resource_limits)
        if variation.weights_changed:
            # Otherwise the weights stay those in force then, which performance may have adjusted.
            weights, _ = rules.effective_weights(document)
            inputs = replace(inputs, weights=weights, weight_reasons={})
    if variation.wait_target_seconds is not None:
        policy = replace(policy, wait_target_seconds=variation.wait_target_seconds)
    return replace(inputs, mode=mode, policy=policy)


def _with_limits(inputs: DecisionInputs, limits: LimitsConfig) -> DecisionInputs:
    """The inputs where a worker may need more or less memory, so that the hosts have room for fewer or more of them."""
    if limits == inputs.limits:
        return inputs
    if inputs.hosts is None and inputs.provisions:
        raise ConfigRefused(
            [
                (
                    "config.resource_limits",
                    "this decision kept no hosts, as those of today do, so it holds for its limits only",
                )
            ]
        )
    by_host = host_limits(inputs.hosts or (), inputs.workers_elsewhere, host_policy(limits))
    # Permits limit the pool whatever a worker needs.
    others = [limit for limit in inputs.snapshot.limits if limit.resource == PERMITS]
    return replace(inputs, limits=limits, snapshot=replace(inputs.snapshot, limits=[*by_host, *others]))
