"""Statements on alerts; of each key at most one is unresolved, which a unique index enforces."""

import json
from collections.abc import Collection
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncConnection

from app.db import pages
from app.db.pages import Page
from app.db.retention import pruning
from app.health.rules.alerts import UNRESOLVED, AlertResolution, AlertState, AlertUpdate, UnresolvedAlert
from app.health.rules.finding import AlertKey, AlertRule, Severity, Symptom


@dataclass(frozen=True, slots=True, kw_only=True)
class Alert:
    """A row of the table."""

    id: int
    rule: AlertRule
    subject: str
    state: AlertState
    severity: Severity
    summary: str
    advice: str
    facts: dict[str, float]
    opened_at: datetime
    updated_at: datetime
    acknowledged_at: datetime | None
    acknowledged_by: str | None
    note: str | None
    resolved_at: datetime | None
    resolution: str | None


@dataclass(frozen=True, slots=True, kw_only=True)
class AlertFilter:
    """Alerts to select; None: any."""

    states: Collection[AlertState] = UNRESOLVED
    rule: AlertRule | None = None
    severity: Severity | None = None


_COLUMNS = ", ".join(Alert.__dataclass_fields__)
# Written as in the predicate of the index `alerts_standing`, by which ON CONFLICT finds it.
_UNRESOLVED = "state IN ('open', 'acknowledged')"

_UNRESOLVED_ALERTS = text(f"SELECT id, rule, subject, severity, updated_at FROM alerts WHERE {_UNRESOLVED} ORDER BY id")

# Two replicas may observe the same symptom: the second waits for the first and then inserts nothing.
_OPEN = text(f"""
INSERT INTO alerts (rule, subject, state, severity, summary, advice, facts, opened_at, updated_at)
VALUES (:rule, :subject, 'open', :severity, :summary, :advice, CAST(:facts AS jsonb), now(), now())
ON CONFLICT (rule, subject) WHERE {_UNRESOLVED} DO NOTHING
RETURNING {_COLUMNS}
""")

# An acknowledgement does not cover what has got worse since.
_UPDATE = text(f"""
UPDATE alerts SET severity = :severity, summary = :summary, advice = :advice, facts = CAST(:facts AS jsonb),
    updated_at = now(), state = CASE WHEN :is_worse THEN 'open' ELSE state END,
    acknowledged_at = CASE WHEN :is_worse THEN NULL ELSE acknowledged_at END,
    acknowledged_by = CASE WHEN :is_worse THEN NULL ELSE acknowledged_by END,
    note = CASE WHEN :is_worse THEN NULL ELSE note END
WHERE id = :id AND {_UNRESOLVED} RETURNING {_COLUMNS}
""")

# Of two people who acknowledge at once the second waits, finds the alert no longer open, and changes nothing.
_ACKNOWLEDGE = text(f"""
UPDATE alerts SET state = 'acknowledged', acknowledged_at = now(), acknowledged_by = :by, note = :note,
    updated_at = now()
WHERE id = :id AND state = 'open' RETURNING {_COLUMNS}
""")

_RESOLVE = text(f"""
UPDATE alerts SET state = 'resolved', resolved_at = now(), resolution = :reason, updated_at = now()
WHERE id = :id AND {_UNRESOLVED} RETURNING {_COLUMNS}
""")

_READ = text(f"SELECT {_COLUMNS} FROM alerts WHERE id = :id")

prune = pruning("alerts", "resolved_at")


async def unresolved_alerts(connection: AsyncConnection) -> list[UnresolvedAlert]:
    """The alerts that are open or acknowledged."""
    return [
        UnresolvedAlert(
            alert_id=row["id"],
            key=AlertKey(rule=AlertRule(row["rule"]), subject=row["subject"]),
            severity=Severity[row["severity"].upper()],
            updated_at=row["updated_at"],
        )
        for row in (await connection.execute(_UNRESOLVED_ALERTS)).mappings()
    ]


async def open_alert(connection: AsyncConnection, symptom: Symptom) -> Alert | None:
    """Open an alert; None when one of this key is unresolved already."""
    identity = {"rule": symptom.key.rule.value, "subject": symptom.key.subject}
    values = {**identity, **_text_columns(symptom), "severity": _severity_name(symptom.severity)}
    return _first_alert(await connection.execute(_OPEN, values))


async def update(connection: AsyncConnection, change: AlertUpdate) -> Alert | None:
    """Give an alert its new text; None when it is resolved. One that got worse is open again."""
    values = {"id": change.alert_id, "severity": _severity_name(change.severity), "is_worse": change.is_worse}
    return _first_alert(await connection.execute(_UPDATE, {**values, **_text_columns(change.symptom)}))


async def acknowledge(connection: AsyncConnection, alert_id: int, *, by: str, note: str) -> Alert | None:
    """Note who knows of an open alert; None when it is not open."""
    return _first_alert(await connection.execute(_ACKNOWLEDGE, {"id": alert_id, "by": by, "note": note}))


async def resolve(connection: AsyncConnection, resolution: AlertResolution) -> Alert | None:
    """End an alert; None when it has ended already."""
    values = {"id": resolution.alert_id, "reason": resolution.reason}
    return _first_alert(await connection.execute(_RESOLVE, values))


async def read(connection: AsyncConnection, alert_id: int) -> Alert | None:
    """One alert; None when it does not exist, or no longer."""
    return _first_alert(await connection.execute(_READ, {"id": alert_id}))


async def page(connection: AsyncConnection, selection: AlertFilter, *, below_id: int, limit: int) -> Page[Alert]:
    """Alerts with smaller ids than `below_id`, newest first."""
    # Written out, so that the partial index of the few unresolved ones can be used.
    filters = [f"state IN ({', '.join(repr(state.value) for state in sorted(selection.states))})", "id < :below_id"]
    values: dict[str, Any] = {"below_id": below_id}
    if selection.rule is not None:
        filters.append("rule = :rule")
        values["rule"] = selection.rule.value
    if selection.severity is not None:
        filters.append("severity = :severity")
        values["severity"] = _severity_name(selection.severity)
    query = f"SELECT {_COLUMNS} FROM alerts WHERE {' AND '.join(filters)} ORDER BY id DESC"
    return await pages.read(connection, query, values, limit, _alert)


def _text_columns(symptom: Symptom) -> dict[str, str]:
    return {"summary": symptom.message, "advice": symptom.advice, "facts": json.dumps(dict(symptom.facts))}


def _severity_name(severity: Severity) -> str:
    return severity.name.lower()


def _first_alert(rows: Any) -> Alert | None:
    row = rows.mappings().first()
    return _alert(row) if row else None


def _alert(row: Any) -> Alert:
    enums = {"rule": AlertRule(row["rule"]), "state": AlertState(row["state"])}
    return Alert(**{**row, **enums, "severity": Severity[row["severity"].upper()]})
