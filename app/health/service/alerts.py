"""Alerts: opened and resolved by a duty that observes the system every few seconds, acknowledged by people."""

import logging
from collections.abc import Mapping
from dataclasses import replace
from datetime import datetime
from typing import Any

from sqlalchemy.ext.asyncio import AsyncConnection

from app.admin.service import audit
from app.db import duties, notify
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
from app.health.rules.snapshot import FOR_ALERTS, WATCH, Depth, Longest, with_recent
from app.health.service import observations, webhooks
from app.health.store import alerts
from app.health.store.alerts import Alert
from app.kernel.agents import AgentType
from app.kernel.events import AlertKind
from app.queue.rules.admission import CapacityPolicy
from app.queue.store import events

log = logging.getLogger(__name__)
_POLICY = AlertPolicy()


async def watch(
    connection: AsyncConnection, capacity: CapacityPolicy, policy: AlertPolicy = _POLICY, *, with_webhooks: bool = False
) -> dict[str, Any]:
    """Observe the system, and open, update and resolve alerts.

    The result is what the next turn remembers, and the strain, by which degradation decides.

    With `with_webhooks` a message for each change is put in the outbox in the same transaction.
    """
    memory = await _memory(connection)
    depths = [Depth(at=datetime.fromisoformat(d["at"]), tasks=d["tasks"]) for d in memory.get("depths", ())]
    observed = await observations.observe(connection, capacity, FOR_ALERTS, depths)
    current = replace(observed, longest=with_recent(_longest_tasks(memory), observed.queue))
    symptoms, unknown_rules = alert_symptoms(current, FOR_ALERTS)
    last_observed = memory.get("looked_at")
    snapshot = AlertSnapshot(
        symptoms=symptoms,
        unknown=unknown_rules,
        pending=pending_from_json(memory.get("spells", ())),
        alerts=await alerts.unresolved_alerts(connection),
        last_observed_at=datetime.fromisoformat(last_observed) if last_observed else None,
    )
    plan = plan_alerts(snapshot, policy, current.queue.at)
    # The database keeps only the alerts: what has to last from turn to turn is the result of the duty, written in the
    # same transaction, so a crash forgets both the turn and what it saw.
    return {
        **await _apply(connection, plan, with_webhooks=with_webhooks),
        "looked_at": current.queue.at.isoformat(),
        "spells": pending_to_json(plan.pending),
        "depths": [{"at": depth.at.isoformat(), "tasks": depth.tasks} for depth in current.depths],
        "longest": {
            agent.value: {"at": task.at.isoformat(), "seconds": task.seconds} for agent, task in current.longest.items()
        },
        "unknown": sorted(unknown_rules),
        "strain": observations.strain_to_json(observations.strain(current)),
    }


async def acknowledge(connection: AsyncConnection, alert_id: int, *, by: str, note: str) -> Alert:
    """Note that somebody knows of an alert; whoever was first is kept. Raises AlertNotFound, AlertResolved."""
    alert = await alerts.acknowledge(connection, alert_id, by=by, note=note)
    if alert is None:
        alert = await read(connection, alert_id)
        if alert.acknowledged_by is None:
            raise AlertResolved
        return alert
    open_state, new_state = ({"alert": alert.id, "state": state.value} for state in (AlertState.OPEN, alert.state))
    new_state |= {"rule": alert.rule.value, "subject": alert.subject}
    notify.note(connection, notify.STATUS)
    audit.record(connection, "alert.acknowledge", by=by, old_state=open_state, new_state=new_state, reason=note)
    return alert


async def read(connection: AsyncConnection, alert_id: int) -> Alert:
    """One alert. Raises AlertNotFound."""
    alert = await alerts.read(connection, alert_id)
    if alert is None:
        raise AlertNotFound
    return alert


async def last_looked_at(connection: AsyncConnection) -> datetime | None:
    """Time of the last turn of the duty; None when it never had one."""
    moment = (await _memory(connection)).get("looked_at")
    return datetime.fromisoformat(moment) if moment else None


async def _apply(connection: AsyncConnection, plan: AlertPlan, *, with_webhooks: bool) -> dict[str, int]:
    """Carry out the plan and announce each change; return the numbers of alerts opened, updated and resolved.

    The statements return None for an alert that another replica has opened or resolved meanwhile: it is not announced
    twice.
    """
    opened_alerts = [await alerts.open_alert(connection, symptom) for symptom in plan.to_open]
    updated_alerts = [await alerts.update(connection, update) for update in plan.to_update]
    worse_alerts = [alert for alert, update in zip(updated_alerts, plan.to_update, strict=True) if update.is_worse]
    resolved_alerts = [await alerts.resolve(connection, resolution) for resolution in plan.to_resolve]
    for kind, changed_alerts in (
        (AlertKind.OPENED, opened_alerts),
        (AlertKind.WORSENED, worse_alerts),
        (AlertKind.RESOLVED, resolved_alerts),
    ):
        for alert in (alert for alert in changed_alerts if alert is not None):
            log.warning("%s %s: %s", kind, alert.id, alert.summary)
            await events.append_system(connection, kind.value, _event_data(alert))
            # In the outbox with the change: a crash keeps both or neither.
            if with_webhooks:
                await webhooks.enqueue(connection, kind, alert)
    changes = {"opened": opened_alerts, "updated": updated_alerts, "resolved": resolved_alerts}
    counts = {name: sum(alert is not None for alert in changed_alerts) for name, changed_alerts in changes.items()}
    if any(counts.values()):
        notify.note(connection, notify.STATUS)
    return counts


def _event_data(alert: Alert) -> dict[str, Any]:
    identity = {"alert": alert.id, "rule": alert.rule.value, "subject": alert.subject}
    return {**identity, "severity": alert.severity.name.lower(), "summary": alert.summary}


def _longest_tasks(memory: Mapping[str, Any]) -> dict[AgentType, Longest]:
    return {
        AgentType(agent): Longest(at=datetime.fromisoformat(task["at"]), seconds=task["seconds"])
        for agent, task in memory.get("longest", {}).items()
    }


async def _memory(connection: AsyncConnection) -> dict[str, Any]:
    turn = (await duties.last_turns(connection, [WATCH])).get(WATCH)
    return turn.result if turn else {}
