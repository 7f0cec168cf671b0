"""Alerts: opened, brought up to date, acknowledged and resolved; of each key one stands at most."""

import json
from collections.abc import Collection
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncConnection

from app.db.retention import BATCH, deletion
from app.health.rules.alerts import UNRESOLVED, AlertResolution, AlertState, AlertUpdate, UnresolvedAlert
from app.health.rules.finding import AlertKey, AlertRule, Severity, Symptom


@dataclass(frozen=True, slots=True, kw_only=True)
class Alert:
    """All that is known of one alert."""

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
    """Which alerts are looked for; None: any."""

    states: Collection[AlertState] = UNRESOLVED
    rule: AlertRule | None = None
    severity: Severity | None = None


_COLUMNS = ", ".join(Alert.__dataclass_fields__)
_STANDS = "state IN ('open', 'acknowledged')"

_STANDING = text(f"SELECT id, rule, subject, severity, updated_at FROM alerts WHERE {_STANDS} ORDER BY id")

_OPEN = text(f"""
INSERT INTO alerts (rule, subject, state, severity, summary, advice, facts, opened_at, updated_at)
VALUES (:rule, :subject, 'open', :severity, :summary, :advice, CAST(:facts AS jsonb), now(), now())
ON CONFLICT (rule, subject) WHERE {_STANDS} DO NOTHING
RETURNING {_COLUMNS}
""")

# Whoever knew of it did not know that it is worse now.
_UPDATE = text(f"""
UPDATE alerts SET severity = :severity, summary = :summary, advice = :advice, facts = CAST(:facts AS jsonb),
    updated_at = now(), state = CASE WHEN :is_worse THEN 'open' ELSE state END,
    acknowledged_at = CASE WHEN :is_worse THEN NULL ELSE acknowledged_at END,
    acknowledged_by = CASE WHEN :is_worse THEN NULL ELSE acknowledged_by END,
    note = CASE WHEN :is_worse THEN NULL ELSE note END
WHERE id = :id AND {_STANDS} RETURNING {_COLUMNS}
""")

_ACKNOWLEDGE = text(f"""
UPDATE alerts SET state = 'acknowledged', acknowledged_at = now(), acknowledged_by = :by, note = :note,
    updated_at = now()
WHERE id = :id AND state = 'open' RETURNING {_COLUMNS}
""")

_RESOLVE = text(f"""
UPDATE alerts SET state = 'resolved', resolved_at = now(), resolution = :reason, updated_at = now()
WHERE id = :id AND {_STANDS} RETURNING {_COLUMNS}
""")

_READ = text(f"SELECT {_COLUMNS} FROM alerts WHERE id = :id")

_PRUNE = deletion("alerts", "resolved_at < now() - make_interval(days => :days)", "resolved_at")


async def unresolved_alerts(connection: AsyncConnection) -> list[UnresolvedAlert]:
    """The alerts that are not resolved."""
    return [
        UnresolvedAlert(
            alert_id=row["id"],
            key=AlertKey(rule=AlertRule(row["rule"]), subject=row["subject"]),
            severity=Severity[row["severity"].upper()],
            updated_at=row["updated_at"],
        )
        for row in (await connection.execute(_STANDING)).mappings()
    ]


async def open_alert(connection: AsyncConnection, symptom: Symptom) -> Alert | None:
    """Open an alert; None when one on this key stands already."""
    key = {"rule": symptom.key.rule.value, "subject": symptom.key.subject}
    values = {**key, **_text_columns(symptom), "severity": _severity_name(symptom.severity)}
    return _first_alert(await connection.execute(_OPEN, values))


async def update(connection: AsyncConnection, change: AlertUpdate) -> Alert | None:
    """What an alert says from now on; None when it is resolved. One that is worse is open again."""
    values = {"id": change.alert_id, "severity": _severity_name(change.severity), "is_worse": change.is_worse}
    return _first_alert(await connection.execute(_UPDATE, {**values, **_text_columns(change.symptom)}))


async def acknowledge(connection: AsyncConnection, alert_id: int, *, by: str, note: str) -> Alert | None:
    """Somebody knows; None when the alert is not open."""
    return _first_alert(await connection.execute(_ACKNOWLEDGE, {"id": alert_id, "by": by, "note": note}))


async def resolve(connection: AsyncConnection, resolution: AlertResolution) -> Alert | None:
    """It is over; None when it was already."""
    values = {"id": resolution.alert_id, "reason": resolution.reason}
    return _first_alert(await connection.execute(_RESOLVE, values))


async def read(connection: AsyncConnection, alert_id: int) -> Alert | None:
    """One alert; None when there is none, or no more."""
    return _first_alert(await connection.execute(_READ, {"id": alert_id}))


async def page(connection: AsyncConnection, wanted: AlertFilter, *, before: int | None, limit: int) -> list[Alert]:
    """Alerts below `before`, those that opened last first."""
    # Written out, so that the index of the few that stand can be used.
    filters = [f"state IN ({', '.join(repr(state.value) for state in sorted(wanted.states))})"]
    values: dict[str, Any] = {"limit": limit}
    if wanted.rule is not None:
        filters.append("rule = :rule")
        values["rule"] = wanted.rule.value
    if wanted.severity is not None:
        filters.append("severity = :severity")
        values["severity"] = _severity_name(wanted.severity)
    if before is not None:
        filters.append("id < :before")
        values["before"] = before
    query = f"SELECT {_COLUMNS} FROM alerts WHERE {' AND '.join(filters)} ORDER BY id DESC LIMIT :limit"
    return [_alert(row) for row in (await connection.execute(text(query), values)).mappings()]


async def prune(connection: AsyncConnection, days: int, limit: int = BATCH) -> int:
    """Forget alerts that were resolved long ago; returns how many."""
    return (await connection.execute(_PRUNE, {"days": days, "limit": limit})).rowcount


def _text_columns(symptom: Symptom) -> dict[str, str]:
    return {"summary": symptom.message, "advice": symptom.advice, "facts": json.dumps(dict(symptom.facts))}


def _severity_name(severity: Severity) -> str:
    return severity.name.lower()


def _first_alert(rows: Any) -> Alert | None:
    row = rows.mappings().first()
    return _alert(row) if row else None


def _alert(row: Any) -> Alert:
    known = dict(row)
    words = {"rule": AlertRule(row["rule"]), "state": AlertState(row["state"])}
    return Alert(**{**known, **words, "severity": Severity[row["severity"].upper()]})
