"""Looking back at decisions: read, explained, replayed, and made again under another configuration."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from typing import Any

from sqlalchemy.ext.asyncio import AsyncConnection

from app.admin.errors import ConfigRefused
from app.admin.rules import config as rules
from app.admin.rules.config import Document
from app.admin.service import config
from app.kernel import changes
from app.kernel.changes import Change
from app.kernel.modes import Mode
from app.scaling.errors import DecisionNotFound
from app.scaling.rules import record as records
from app.scaling.rules import target
from app.scaling.rules.decision import Inputs, resolve
from app.scaling.rules.explanation import Explanation, explain
from app.scaling.service import state
from app.scaling.store import decisions as store
from app.scaling.store.decisions import Kept


@dataclass(frozen=True, slots=True, kw_only=True)
class Replay:
    """Whether the kept inputs still have the kept outcome, to the byte, and where not."""

    decision_id: int
    identical: bool
    differences: Sequence[Change]


@dataclass(frozen=True, slots=True, kw_only=True)
class Variation:
    """What is to be different; None leaves it as it was. `wait_target_seconds` is how long a task may wait."""

    document: Document | None = None
    mode: Mode | None = None
    weights_changed: bool = False
    wait_target_seconds: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Recommendation:
    """How many workers there should be, in flat numbers; without a decision yet, the minimum."""

    target_workers: int
    current_workers: int
    decision_id: int | None = None
    decision_type: str = "maintain"
    decided_at: datetime | None = None
    waiting_tasks: int = 0
    waiting_seconds: float = 0.0
    bottleneck_agent: str | None = None
    reason: str = "nothing has been decided yet"


async def read(connection: AsyncConnection, decision_id: int | None) -> Kept:
    """A decision, the last one for None. Raises DecisionNotFound."""
    found = await (store.latest(connection) if decision_id is None else store.read(connection, decision_id))
    if found is None:
        raise DecisionNotFound
    return found


async def recommendation(connection: AsyncConnection, initial: Mode) -> Recommendation:
    """What the last decision says, from the one row that the scaling loop remembers."""
    memory = await state.recall(connection)
    if memory is None:
        least = (await config.current(connection, initial)).document.worker_pool.min_workers
        return Recommendation(target_workers=least, current_workers=0)
    known = {name: memory.brief[name] for name in Recommendation.__dataclass_fields__ if name in memory.brief}
    return Recommendation(**known, decided_at=memory.experience.at)


def inputs_of(kept: Kept) -> Inputs:
    """What the decision saw. Takes milliseconds of processor time where there are many workers."""
    return records.inputs_of(kept.roster, kept.inputs)


def explanation(kept: Kept) -> Explanation:
    """Why it is what it is, by the rules of today."""
    inputs = inputs_of(kept)
    return explain(inputs, resolve(inputs))


def replay(kept: Kept) -> Replay:
    """Decide again from the kept inputs, and compare the texts. Takes milliseconds of processor time."""
    again = records.replayed(kept.roster, kept.inputs)
    differences = [] if again == kept.output else changes.changes(json.loads(kept.output), json.loads(again))
    return Replay(decision_id=kept.id, identical=again == kept.output, differences=differences)


async def base_document(connection: AsyncConnection, inputs: Inputs, mode: Mode | None) -> Document:
    """The configuration by which a decision was made that saw these inputs.

    In another mode if wanted, with the pool of that mode. Raises ConfigVersionNotFound.
    """
    document = (await config.version(connection, inputs.config_version)).document
    return document if mode in (None, inputs.mode) else rules.with_mode(document, mode)


def what_if(kept: Kept, variation: Variation) -> Mapping[str, Any]:
    """What would have been decided. Raises ConfigRefused."""
    inputs = _varied(inputs_of(kept), variation)
    decision = resolve(inputs)
    return records.shown(records.outcome(decision, inputs), kept.roster)


def _varied(inputs: Inputs, wanted: Variation) -> Inputs:
    mode, document = wanted.mode or inputs.mode, wanted.document
    policy = inputs.policy
    if document is not None:
        if found := rules.problems(document, mode):
            raise ConfigRefused([(f"config.{remark.path}", remark.message) for remark in found])
        policy = target.scaling_policy(document, mode)
        inputs = replace(inputs, limits=document.resource_limits)
        if wanted.weights_changed:
            weights, _ = rules.effective_weights(document)
            inputs = replace(inputs, weights=weights, weight_reasons={})
    if wanted.wait_target_seconds is not None:
        policy = replace(policy, wait_target_seconds=wanted.wait_target_seconds)
    return replace(inputs, mode=mode, policy=policy)
