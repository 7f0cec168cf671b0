"""Orders about the weights by people and the Supervisor: a command, an override and its end; each audited."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from typing import Any

from sqlalchemy.ext.asyncio import AsyncConnection

from app.admin.rules import config as documents
from app.admin.service import audit, config
from app.agents.errors import WeightsRefused
from app.agents.rules import steering as rules
from app.agents.rules.steering import Cause, Override, SteeringState
from app.agents.rules.weights import WeightPolicy
from app.agents.service import weights
from app.agents.store import weights as store
from app.agents.store.weights import Version
from app.kernel.errors import DatabaseUnavailable, VersionStale
from app.kernel.modes import Mode
from app.kernel.shares import Weights

# Each failure means that somebody else has written, and steps are a minute apart.
_MAX_ATTEMPTS = 5


@dataclass(frozen=True, slots=True, kw_only=True)
class Order:
    """Author and reason of an order; with `expected_version` it holds only for that version of the weights."""

    by: str
    reason: str = ""
    expected_version: int | None = None


_Change = Callable[[SteeringState, datetime, WeightPolicy], SteeringState]


async def command(connection: AsyncConnection, initial: Mode, order: Order, named_weights: Weights) -> Version | None:
    """Head for these weights; agents that are not named share the rest. Raises WeightsRefused, VersionStale."""

    def change(state: SteeringState, _: datetime, policy: WeightPolicy) -> SteeringState:
        return rules.command(state, _complete(named_weights, state.base), policy)

    return await _carry_out(connection, initial, order, Cause.COMMAND, change)


async def override(
    connection: AsyncConnection, initial: Mode, order: Order, named_weights: Weights, seconds: float
) -> Version | None:
    """Head for these weights for so many seconds, whatever the agents achieve. Raises WeightsRefused, VersionStale."""

    def change(state: SteeringState, now: datetime, policy: WeightPolicy) -> SteeringState:
        expires_at = now + timedelta(seconds=seconds)
        target = _complete(named_weights, state.base)
        return rules.override(state, Override(weights=target, expires_at=expires_at, reason=order.reason), policy)

    return await _carry_out(connection, initial, order, Cause.OVERRIDE, change)


async def release(connection: AsyncConnection, initial: Mode, order: Order) -> Version | None:
    """End the override, if there is one, and head back. Raises WeightsRefused, VersionStale."""
    return await _carry_out(connection, initial, order, Cause.RELEASE, lambda state, *_: rules.release(state))


async def _carry_out(
    connection: AsyncConnection, initial: Mode, order: Order, cause: Cause, change: _Change
) -> Version | None:
    """Change where the weights are headed and take a step if due; return the last version, new only if that changed."""
    effective = config.effective(await config.current(connection, initial))
    _check_reason(effective.mode, order)
    policy = rules.policy_in(effective.mode)
    for _ in range(_MAX_ATTEMPTS):
        last = await store.last(connection)
        _check_version(last, order)
        state = last.state if last else rules.initial_state(effective.weights)
        snapshot = await weights.read_snapshot(connection, effective, policy)
        ordered_state = change(state, snapshot.now, policy)
        if ordered_state == state:
            return last
        step = rules.advance(ordered_state, snapshot, policy)
        # Named by the order even if a new configuration came in the same turn: the order is the later word.
        step = replace(step, cause=cause, reason=order.reason or step.reason)
        version = await weights.write(connection, last, weights.new_version(step, snapshot, policy, order.by))
        if version is not None:
            _record(connection, last, version, order.reason)
            return version
    raise DatabaseUnavailable("others are changing the weights at this moment; send this one again")


def _complete(named_weights: Weights, base: Weights) -> Weights:
    try:
        return rules.complete_weights(named_weights, base)
    except ValueError as error:
        raise WeightsRefused([("weights", str(error))]) from None


def _check_version(last: Version | None, order: Order) -> None:
    version = last.version if last else 0
    if order.expected_version is not None and order.expected_version != version:
        raise VersionStale(f"the weights are at version {version} now")


def _check_reason(mode: Mode, order: Order) -> None:
    if documents.conduct(mode).wants_reasons and not order.reason.strip():
        raise WeightsRefused([("reason", f"say why; the mode {mode.value} wants a reason for every change")])


def _record(connection: AsyncConnection, previous: Version | None, version: Version, reason: str) -> None:
    audit.record(
        connection,
        f"weights.{version.cause.value}",
        by=version.changed_by,
        old_state=_content(previous) if previous else None,
        new_state=_content(version),
        reason=reason,
    )


def _content(version: Version) -> dict[str, Any]:
    override = version.state.override
    return {
        "version": version.version,
        "weights": documents.weights_by_name(version.state.current),
        "target": documents.weights_by_name(version.target),
        "override_expires_at": override.expires_at.isoformat() if override else None,
    }
