"""Alerts: opened and resolved by a duty that looks every few seconds, acknowledged by people."""

import logging
from datetime import datetime
from typing import Any

from sqlalchemy.ext.asyncio import AsyncConnection

from app.admin.service import audit
from app.db import duties
from app.health.errors import AlertNotFound, AlertResolved
from app.health.rules.alerts import (
    AlertPlan,
    AlertPolicy,
    AlertSnapshot,
    AlertState,
    pending_from_json,
    pending_to_json,
    plan_alerts,
)
from app.health.rules.checks import alert_symptoms
from app.health.rules.snapshot import FOR_ALERTS, Depth
from app.health.service import observations, webhooks
from app.health.store import alerts
from app.health.store.alerts import Alert
from app.queue.rules.admission import CapacityPolicy
from app.queue.rules.events import AlertKind
from app.queue.store import events

log = logging.getLogger(__name__)
WATCH = "watch for alerts"
_POLICY = AlertPolicy()


async def watch(
    connection: AsyncConnection, capacity: CapacityPolicy, policy: AlertPolicy = _POLICY, *, tells: bool = False
) -> dict[str, Any]:
    """Look, and open, bring up to date and resolve alerts. The result of the turn is what the next one remembers.

    With `tells`, what others are to hear of it is written down in the same transaction.
    """
    memory = await _memory(connection)
    seen = await observations.observe(connection, capacity, FOR_ALERTS, _depths(memory))
    symptoms, unknown = alert_symptoms(seen, FOR_ALERTS)
    before = memory.get("looked_at")
    snapshot = AlertSnapshot(
        symptoms=symptoms,
        unknown=unknown,
        spells=pending_from_json(memory.get("spells", ())),
        standing=await alerts.unresolved_alerts(connection),
        looked_at=datetime.fromisoformat(before) if before else None,
    )
    decided = plan_alerts(snapshot, policy, seen.queue.at)
    return {
        **await _apply(connection, decided, tells=tells),
        "looked_at": seen.queue.at.isoformat(),
        "spells": pending_to_json(decided.spells),
        "depths": [{"at": depth.at.isoformat(), "tasks": depth.tasks} for depth in seen.depths],
        "unknown": sorted(unknown),
    }


async def acknowledge(connection: AsyncConnection, alert_id: int, *, by: str, note: str) -> Alert:
    """Somebody knows of it. Who is first is kept; again changes nothing. Raises AlertNotFound, AlertResolved."""
    alert = await alerts.acknowledge(connection, alert_id, by=by, note=note)
    if alert is None:
        return await _acknowledged_before(connection, alert_id)
    before, after = ({"alert": alert.id, "state": state.value} for state in (AlertState.OPEN, alert.state))
    key = {"rule": alert.rule.value, "subject": alert.subject}
    await audit.record(connection, "alert.acknowledge", by=by, before=before, after={**after, **key}, reason=note)
    return alert


async def read(connection: AsyncConnection, alert_id: int) -> Alert:
    """One alert. Raises AlertNotFound."""
    alert = await alerts.read(connection, alert_id)
    if alert is None:
        raise AlertNotFound
    return alert


async def _acknowledged_before(connection: AsyncConnection, alert_id: int) -> Alert:
    alert = await read(connection, alert_id)
    if alert.acknowledged_by is None:
        raise AlertResolved
    return alert


async def _apply(connection: AsyncConnection, decided: AlertPlan, *, tells: bool) -> dict[str, int]:
    opened = [await alerts.open_alert(connection, symptom) for symptom in decided.opened]
    updated = [await alerts.update(connection, change) for change in decided.updated]
    worse = [alert for alert, change in zip(updated, decided.updated, strict=True) if change.is_worse]
    resolved = [await alerts.resolve(connection, resolution) for resolution in decided.resolved]
    for kind, changed in ((AlertKind.OPENED, opened), (AlertKind.WORSENED, worse), (AlertKind.RESOLVED, resolved)):
        for alert in (each for each in changed if each is not None):
            log.warning("%s %s: %s", kind, alert.id, alert.summary)
            await events.announce(connection, kind.value, _event_data(alert))
            if tells:
                await webhooks.enqueue(connection, kind, alert)
    done = {"opened": opened, "updated": updated, "resolved": resolved}
    return {what: sum(alert is not None for alert in changed) for what, changed in done.items()}


def _event_data(alert: Alert) -> dict[str, Any]:
    key = {"alert": alert.id, "rule": alert.rule.value, "subject": alert.subject}
    return {**key, "severity": alert.severity.name.lower(), "summary": alert.summary}


async def last_looked_at(connection: AsyncConnection) -> datetime | None:
    """When somebody last looked whether anything is wrong; None when nobody ever has."""
    moment = (await _memory(connection)).get("looked_at")
    return datetime.fromisoformat(moment) if moment else None


async def _memory(connection: AsyncConnection) -> dict[str, Any]:
    turn = (await duties.turns(connection, [WATCH])).get(WATCH)
    return turn.result if turn else {}


def _depths(memory: dict[str, Any]) -> list[Depth]:
    return [Depth(at=datetime.fromisoformat(d["at"]), tasks=d["tasks"]) for d in memory.get("depths", ())]
