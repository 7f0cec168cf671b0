"""Orders of people and of the Supervisor: a command, an override for a while, and its end; each audited."""

from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

from sqlalchemy.ext.asyncio import AsyncConnection

from app.admin.rules import config as documents
from app.admin.service import audit, config
from app.agents.errors import WeightsRefused
from app.agents.rules import steering as rules
from app.agents.rules.steering import Cause, Course, Override
from app.agents.rules.weights import WeightPolicy
from app.agents.service import weights
from app.agents.store import weights as store
from app.agents.store.weights import NewVersion, Version
from app.kernel.errors import DatabaseUnavailable, VersionStale
from app.kernel.modes import Mode
from app.kernel.shares import Weights

# Each failure means that somebody else has written, and steps are a minute apart.
_TRIES = 5


@dataclass(frozen=True, slots=True, kw_only=True)
class Order:
    """Who wants it and why; with `expected`, only if the weights are at that version still."""

    by: str
    reason: str = ""
    expected: int | None = None


_Change = Callable[[Course, datetime, WeightPolicy], Course]


async def command(connection: AsyncConnection, initial: Mode, order: Order, named: Weights) -> Version | None:
    """Head for these weights; agents that are not named share the rest. Raises WeightsRefused, VersionStale."""

    def change(course: Course, _: datetime, policy: WeightPolicy) -> Course:
        return rules.commanded(course, _completed(named, course.base), policy)

    return await _carry_out(connection, initial, order, Cause.COMMAND, change)


async def override(
    connection: AsyncConnection, initial: Mode, order: Order, named: Weights, seconds: float
) -> Version | None:
    """Head for these weights, whatever the agents achieve, for so long. Raises WeightsRefused, VersionStale."""

    def change(course: Course, now: datetime, policy: WeightPolicy) -> Course:
        expires_at = now + timedelta(seconds=seconds)
        wanted = Override(weights=_completed(named, course.base), expires_at=expires_at, reason=order.reason)
        return rules.overridden(course, wanted, policy)

    return await _carry_out(connection, initial, order, Cause.OVERRIDE, change)


async def release(connection: AsyncConnection, initial: Mode, order: Order) -> Version | None:
    """End the override, if there is one; the automatic weights go on. Raises VersionStale."""
    return await _carry_out(connection, initial, order, Cause.RELEASE, lambda course, *_: rules.released(course))


async def _carry_out(
    connection: AsyncConnection, initial: Mode, order: Order, cause: Cause, change: _Change
) -> Version | None:
    """Change the course and make the step that is due; the version that this makes.

    An order that changes nothing leaves no trace, and the version is the last one; None while there is none.
    """
    effective = config.effective(await config.current(connection, initial))
    _check_reason(effective.mode, order)
    policy = rules.policy_in(effective.mode)
    for _ in range(_TRIES):
        last = await store.last(connection)
        _check_version(last, order)
        before = last.course if last else rules.outset(effective.weights)
        sight = await weights.look(connection, effective, policy)
        wanted = change(before, sight.now, policy)
        if wanted == before:
            return last
        leg = rules.advance(wanted, sight, policy, cause)
        new = NewVersion(
            course=leg.course,
            target=rules.goal(leg.course, sight.standings, policy),
            adjustments=leg.adjustments,
            cause=cause,
            changed_by=order.by,
            reason=order.reason or leg.reason,
        )
        made = await weights.write(connection, last, new)
        if made is not None:
            await _record(connection, last, made)
            return made
    raise DatabaseUnavailable("others are changing the weights at this moment; send this one again")


def _completed(named: Weights, base: Weights) -> Weights:
    try:
        return rules.completed(named, base)
    except ValueError as error:
        raise WeightsRefused([("weights", str(error))]) from None


def _check_version(last: Version | None, order: Order) -> None:
    version = last.version if last else 0
    if order.expected is not None and order.expected != version:
        raise VersionStale(f"the weights are at version {version} now")


def _check_reason(mode: Mode, order: Order) -> None:
    if documents.conduct(mode).wants_reasons and not order.reason.strip():
        raise WeightsRefused([("reason", f"say why; the mode {mode.value} wants a reason for every change")])


async def _record(connection: AsyncConnection, before: Version | None, after: Version) -> None:
    await audit.record(
        connection,
        f"weights.{after.cause.value}",
        by=after.changed_by,
        before=_content(before) if before else None,
        after=_content(after),
        reason=after.reason,
    )


def _content(version: Version) -> dict[str, Any]:
    override = version.course.override
    return {
        "version": version.version,
        "weights": _named(version.course.current),
        "target": _named(version.target),
        "override_expires_at": override.expires_at.isoformat() if override else None,
    }


def _named(found: Weights) -> dict[str, float]:
    return {documents.weight_name(agent): weight for agent, weight in found.items()}
