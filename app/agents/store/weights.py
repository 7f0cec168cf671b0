"""Versions of the weights: the last one is in force."""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from datetime import datetime
from typing import Any

from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncConnection

from app.agents.rules.steering import Cause, Heading, Override, SteeringState
from app.agents.rules.weights import Adjustment
from app.db import pages
from app.db.pages import Page
from app.kernel.agents import AgentType
from app.kernel.shares import Weights


@dataclass(frozen=True, slots=True, kw_only=True)
class NewVersion:
    """A version to be written."""

    state: SteeringState
    target: Weights
    adjustments: Mapping[AgentType, Adjustment]
    cause: Cause
    changed_by: str
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Version(NewVersion):
    """A stored version."""

    version: int
    at: datetime


_COLUMNS = (
    "version, at, cause, weights, target, adjustments, configured, base, heading, override, expires_at, results, "
    "stepped_at, reason, changed_by"
)

_LAST = text(f"SELECT {_COLUMNS} FROM weights ORDER BY version DESC LIMIT 1")

# Orders that are renewed for weeks lie between the end and the last step, so steps have an index of their own.
_ADJUSTMENTS = text("""
SELECT adjustments FROM weights WHERE adjustments <> CAST('{}' AS jsonb) ORDER BY version DESC LIMIT 1
""")

_HISTORY = f"SELECT {_COLUMNS} FROM weights WHERE version < :end_version ORDER BY version DESC"

# Compare-and-set on the last version. Of two rivals that both see it as the last, the primary key lets one write.
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
    """The version in force; None before the first."""
    row = (await connection.execute(_LAST)).mappings().first()
    return _version(row) if row else None


async def write(connection: AsyncConnection, expected_version: int, new: NewVersion) -> Version | None:
    """Add the version after `expected_version` (0: none yet); None when that is not the last. Waits for a rival."""
    row = (await connection.execute(_WRITE, {"expected": expected_version, **_values(new)})).mappings().first()
    return _version(row) if row else None


async def adjustments(connection: AsyncConnection) -> dict[AgentType, Adjustment]:
    """The adjustments of the last step; empty before the first."""
    return _adjustments((await connection.execute(_ADJUSTMENTS)).scalar() or {})


async def history(connection: AsyncConnection, *, end_version: int, limit: int) -> Page[Version]:
    """Versions before `end_version`, newest first."""
    return await pages.read(connection, _HISTORY, {"end_version": end_version}, limit, _version)


def _values(new: NewVersion) -> dict[str, Any]:
    state, override = new.state, new.state.override
    override_content = {"weights": override.weights, "reason": override.reason} if override else {}
    return {
        "cause": new.cause.value,
        "weights": json.dumps(state.current),
        "target": json.dumps(new.target),
        "adjustments": json.dumps({agent: asdict(adjustment) for agent, adjustment in new.adjustments.items()}),
        "configured": json.dumps(state.configured_weights),
        "base": json.dumps(state.base),
        "heading": state.heading.value,
        "override": json.dumps(override_content),
        "expires_at": override.expires_at if override else None,
        "results": state.results,
        "stepped_at": state.stepped_at,
        "reason": new.reason,
        "changed_by": new.changed_by,
    }


def _version(row: Any) -> Version:
    columns = {name: row[name] for name in ("version", "at", "changed_by", "reason")}
    return Version(
        **columns,
        cause=Cause(row["cause"]),
        target=_weights(row["target"]),
        adjustments=_adjustments(row["adjustments"]),
        state=_state(row),
    )


def _state(row: Any) -> SteeringState:
    override = None
    if row["override"]:
        content = {**row["override"], "weights": _weights(row["override"]["weights"])}
        override = Override(**content, expires_at=row["expires_at"])
    return SteeringState(
        current=_weights(row["weights"]),
        configured_weights=_weights(row["configured"]),
        base=_weights(row["base"]),
        heading=Heading(row["heading"]),
        override=override,
        stepped_at=row["stepped_at"],
        results=row["results"],
    )


def _adjustments(content: Mapping[str, Any]) -> dict[AgentType, Adjustment]:
    return {AgentType(agent): Adjustment(**adjustment) for agent, adjustment in content.items()}


def _weights(content: Mapping[str, float]) -> dict[AgentType, float]:
    return {AgentType(agent): float(weight) for agent, weight in content.items()}
