"""Versions of the weights: the last one is in force."""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from datetime import datetime
from typing import Any

from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncConnection

from app.agents.rules.steering import Cause, Course, Heading, Override
from app.agents.rules.weights import Adjustment
from app.kernel.agents import AgentType
from app.kernel.shares import Weights


@dataclass(frozen=True, slots=True, kw_only=True)
class NewVersion:
    """What is to become the next version."""

    course: Course
    target: Weights
    adjustments: Mapping[AgentType, Adjustment]
    cause: Cause
    changed_by: str
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Version(NewVersion):
    """A version as it is kept."""

    version: int
    at: datetime


_COLUMNS = (
    "version, at, cause, weights, target, adjustments, configured, base, heading, override, expires_at, results, "
    "stepped_at, reason, changed_by"
)

_LAST = text(f"SELECT {_COLUMNS} FROM weights ORDER BY version DESC LIMIT 1")

# Only orders lie between the end and the last step, so this looks at few rows.
_ADJUSTMENTS = text("""
SELECT adjustments FROM weights WHERE adjustments <> CAST('{}' AS jsonb) ORDER BY version DESC LIMIT 1
""")

_HISTORY = text(f"SELECT {_COLUMNS} FROM weights WHERE version < :before ORDER BY version DESC LIMIT :limit")

# Of two rivals that both see the version they build on, the primary key lets one have the next.
_WRITE = text(f"""
INSERT INTO weights ({_COLUMNS})
SELECT CAST(:expected AS bigint) + 1, now(), :cause, CAST(:weights AS jsonb), CAST(:target AS jsonb),
       CAST(:adjustments AS jsonb), CAST(:configured AS jsonb), CAST(:base AS jsonb), :heading,
       CAST(:override AS jsonb), CAST(:expires_at AS timestamptz), :results, CAST(:stepped_at AS timestamptz),
       :reason, :changed_by
WHERE coalesce((SELECT version FROM weights ORDER BY version DESC LIMIT 1), 0) = :expected
ON CONFLICT DO NOTHING
RETURNING {_COLUMNS}
""")


async def last(connection: AsyncConnection) -> Version | None:
    """The version in force; None while there is none."""
    row = (await connection.execute(_LAST)).mappings().first()
    return _version(row) if row else None


async def write(connection: AsyncConnection, expected: int, new: NewVersion) -> Version | None:
    """Add the version after `expected` (0: there is none yet); None when that is not the last one any more.

    Waits for a rival that is just doing the same, and then knows whether it has.
    """
    row = (await connection.execute(_WRITE, {"expected": expected, **_values(new)})).mappings().first()
    return _version(row) if row else None


async def adjustments(connection: AsyncConnection) -> dict[AgentType, Adjustment]:
    """What the last step has changed, and why; nothing where there was none."""
    return _adjustments((await connection.execute(_ADJUSTMENTS)).scalar() or {})


async def history(connection: AsyncConnection, *, before: int, limit: int) -> list[Version]:
    """Versions below `before`, newest first."""
    rows = (await connection.execute(_HISTORY, {"before": before, "limit": limit})).mappings()
    return [_version(row) for row in rows]


def _values(new: NewVersion) -> dict[str, Any]:
    course, override = new.course, new.course.override
    told = {"weights": override.weights, "reason": override.reason} if override else {}
    return {
        "cause": new.cause.value,
        "weights": json.dumps(course.current),
        "target": json.dumps(new.target),
        "adjustments": json.dumps({agent: asdict(adjustment) for agent, adjustment in new.adjustments.items()}),
        "configured": json.dumps(course.configured),
        "base": json.dumps(course.base),
        "heading": course.heading.value,
        "override": json.dumps(told),
        "expires_at": override.expires_at if override else None,
        "results": course.results,
        "stepped_at": course.stepped_at,
        "reason": new.reason,
        "changed_by": new.changed_by,
    }


def _version(row: Any) -> Version:
    plain = {name: row[name] for name in ("version", "at", "changed_by", "reason")}
    return Version(
        **plain,
        cause=Cause(row["cause"]),
        target=_weights(row["target"]),
        adjustments=_adjustments(row["adjustments"]),
        course=_course(row),
    )


def _course(row: Any) -> Course:
    override = None
    if row["override"]:
        told = {**row["override"], "weights": _weights(row["override"]["weights"])}
        override = Override(**told, expires_at=row["expires_at"])
    return Course(
        current=_weights(row["weights"]),
        configured=_weights(row["configured"]),
        base=_weights(row["base"]),
        heading=Heading(row["heading"]),
        override=override,
        stepped_at=row["stepped_at"],
        results=row["results"],
    )


def _adjustments(told: Mapping[str, Any]) -> dict[AgentType, Adjustment]:
    return {AgentType(agent): Adjustment(**adjustment) for agent, adjustment in told.items()}


def _weights(told: Mapping[str, float]) -> dict[AgentType, float]:
    return {AgentType(agent): float(weight) for agent, weight in told.items()}
