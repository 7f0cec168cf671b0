"""Opening and resolving of alerts: late enough in both directions that nothing flaps.

An alert opens when its symptom has lasted, and is resolved when it has been away for a while. Between the two
thresholds of a symptom nothing changes, and what could not be measured neither opens nor resolves anything. Sources:
`for` and `keep_firing_for` of Prometheus' alerting rules; the two thresholds of a Schmitt trigger.
"""

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta
from enum import StrEnum
from typing import Any

from app.health.rules.finding import AlertKey, AlertRule, Severity, Symptom


class AlertState(StrEnum):
    """Acknowledged: somebody knows, and it is not over."""

    OPEN = "open"
    ACKNOWLEDGED = "acknowledged"
    RESOLVED = "resolved"


UNRESOLVED = frozenset({AlertState.OPEN, AlertState.ACKNOWLEDGED})


@dataclass(frozen=True, slots=True, kw_only=True)
class Hysteresis:
    """Seconds that a symptom lasts before it is an alert, and is absent before the alert is resolved."""

    opens_after: float = 0
    resolves_after: float = 60.0


# Five minutes for resources and half a minute for starvation are the contract's; a lost worker may be missing for the
# half minute that its replacement may take; growth by the minute must outlast one batch of submits; duties that had to
# wait for the database have their turns within seconds. Other rules open an alert at once.
_HYSTERESIS: Mapping[AlertRule, Hysteresis] = {
    AlertRule.POOL_BELOW_MINIMUM: Hysteresis(opens_after=30),
    AlertRule.RESOURCE_PRESSURE: Hysteresis(opens_after=300, resolves_after=120),
    AlertRule.QUEUE_GROWTH: Hysteresis(opens_after=120),
    # The check itself counts a worker as idle only after 30 s.
    AlertRule.WORKER_STARVATION: Hysteresis(opens_after=15),
    AlertRule.DATABASE_TROUBLE: Hysteresis(opens_after=60, resolves_after=120),
    AlertRule.DUTY_LATE: Hysteresis(opens_after=15),
    AlertRule.DEGRADED: Hysteresis(resolves_after=15),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class AlertPolicy:
    """Hysteresis of each rule, and two times in seconds.

    After `blind_after` without an observation nobody can say what has lasted: three turns of the duty. An unresolved
    alert is written anew every `refresh` at most, or when it gets worse.
    """

    hysteresis: Mapping[AlertRule, Hysteresis] = field(default_factory=lambda: _HYSTERESIS)
    blind_after: float = 15.0
    refresh: float = 60.0

    def of(self, rule: AlertRule) -> Hysteresis:
        """Hysteresis of a rule."""
        return self.hysteresis.get(rule, Hysteresis())


@dataclass(frozen=True, slots=True, kw_only=True)
class PendingAlert:
    """A symptom under watch: since when without a break, when last observed, and since when it has been absent."""

    since: datetime
    last_observed_at: datetime
    absent_since: datetime | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class UnresolvedAlert:
    """An alert that is open or acknowledged."""

    alert_id: int
    key: AlertKey
    severity: Severity
    updated_at: datetime


@dataclass(frozen=True, slots=True, kw_only=True)
class AlertResolution:
    """An alert that is over, and why."""

    alert_id: int
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class AlertUpdate:
    """New text and severity of an alert; `is_worse` when people should look again, also those who acknowledged it."""

    alert_id: int
    symptom: Symptom
    severity: Severity
    is_worse: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class AlertSnapshot:
    """Symptoms observed just now, and the memory of earlier observations.

    `unknown` are the rules that could not be judged; `last_observed_at` is when somebody last observed anything.
    """

    symptoms: Sequence[Symptom]
    unknown: Collection[AlertRule] = ()
    pending: Mapping[AlertKey, PendingAlert] = field(default_factory=dict)
    alerts: Sequence[UnresolvedAlert] = ()
    last_observed_at: datetime | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class AlertPlan:
    """Alerts to open, to update and to resolve, and what to remember until the next observation."""

    to_open: Sequence[Symptom] = ()
    to_update: Sequence[AlertUpdate] = ()
    to_resolve: Sequence[AlertResolution] = ()
    pending: Mapping[AlertKey, PendingAlert] = field(default_factory=dict)


def plan_alerts(snapshot: AlertSnapshot, policy: AlertPolicy, now: datetime) -> AlertPlan:
    """Open alerts on symptoms that have lasted and resolve those whose symptom has long been absent, one for a key."""
    symptoms = {symptom.key: symptom for symptom in snapshot.symptoms}
    alerts = {alert.key: alert for alert in snapshot.alerts}
    pending = {
        key: entry
        for key in dict.fromkeys([*symptoms, *alerts, *snapshot.pending])
        if (entry := _next_pending(key, symptoms.get(key), snapshot, policy, now, has_alert=key in alerts))
    }
    to_resolve = [r for alert in alerts.values() if (r := _resolution(alert, pending[alert.key], policy, now))]
    resolved_ids = {resolution.alert_id for resolution in to_resolve}
    return AlertPlan(
        to_open=[
            symptom
            for key, symptom in symptoms.items()
            if key not in alerts and not symptom.is_fading and _has_lasted(key, pending[key], policy, now)
        ],
        to_update=[
            update
            for key, alert in alerts.items()
            if key in symptoms and (update := _update(alert, symptoms[key], policy, now))
        ],
        to_resolve=to_resolve,
        pending={
            key: entry
            for key, entry in pending.items()
            if key not in alerts or alerts[key].alert_id not in resolved_ids
        },
    )


def _next_pending(
    key: AlertKey,
    symptom: Symptom | None,
    snapshot: AlertSnapshot,
    policy: AlertPolicy,
    now: datetime,
    *,
    has_alert: bool,
) -> PendingAlert | None:
    """Watch of a key after this observation; None when there is nothing to watch."""
    previous = snapshot.pending.get(key)
    if key.rule in snapshot.unknown:
        # Absence has to be observed without a break as well, so its clock starts anew after a time of not knowing.
        watch = previous or (PendingAlert(since=now, last_observed_at=now) if has_alert else None)
        return replace(watch, absent_since=None) if watch else None
    limit = timedelta(seconds=policy.blind_after)
    if symptom is None:
        if not has_alert:
            return None
        # An alert whose watch was lost gets the whole time of absence again before it is resolved.
        is_continuous = previous is not None and _is_recent(snapshot.last_observed_at, now, limit)
        absent_since = previous.absent_since if previous and is_continuous else None
        return replace(previous or PendingAlert(since=now, last_observed_at=now), absent_since=absent_since or now)
    # After a gap nobody knows whether the symptom was there meanwhile, so its time starts anew.
    if previous is not None and _is_recent(previous.last_observed_at, now, limit):
        return PendingAlert(since=previous.since, last_observed_at=now)
    if symptom.is_fading and not has_alert:
        return None
    return PendingAlert(since=now, last_observed_at=now)


def _is_recent(moment: datetime | None, now: datetime, span: timedelta) -> bool:
    # Of a time to come is what was seen before the clock was set back.
    return moment is not None and abs(now - moment) <= span


def _has_lasted(key: AlertKey, pending: PendingAlert, policy: AlertPolicy, now: datetime) -> bool:
    return now - pending.since >= timedelta(seconds=policy.of(key.rule).opens_after)


def _resolution(
    alert: UnresolvedAlert, pending: PendingAlert, policy: AlertPolicy, now: datetime
) -> AlertResolution | None:
    if pending.absent_since is None:
        return None
    absence = now - pending.absent_since
    if absence < timedelta(seconds=policy.of(alert.key.rule).resolves_after):
        return None
    return AlertResolution(alert_id=alert.alert_id, reason=f"not seen for {absence.total_seconds():.0f} s")


def _update(alert: UnresolvedAlert, symptom: Symptom, policy: AlertPolicy, now: datetime) -> AlertUpdate | None:
    """An alert keeps the worst severity that it had, so that this does not flap either."""
    is_worse = symptom.severity > alert.severity
    if not is_worse and abs(now - alert.updated_at) < timedelta(seconds=policy.refresh):
        return None
    severity = max(alert.severity, symptom.severity)
    return AlertUpdate(alert_id=alert.alert_id, symptom=symptom, severity=severity, is_worse=is_worse)


def pending_to_json(pending: Mapping[AlertKey, PendingAlert]) -> list[dict[str, Any]]:
    """Pending alerts as the duty remembers them from turn to turn."""
    return [
        {
            "rule": key.rule.value,
            "subject": key.subject,
            "since": entry.since.isoformat(),
            "seen": entry.last_observed_at.isoformat(),
            "away_since": entry.absent_since.isoformat() if entry.absent_since else None,
        }
        for key, entry in pending.items()
    ]


def pending_from_json(items: Iterable[Mapping[str, Any]]) -> dict[AlertKey, PendingAlert]:
    """Pending alerts that `pending_to_json` has written; those of rules that no longer exist are left out."""
    rules = {rule.value for rule in AlertRule}
    return {
        AlertKey(rule=AlertRule(item["rule"]), subject=item["subject"]): PendingAlert(
            since=datetime.fromisoformat(item["since"]),
            last_observed_at=datetime.fromisoformat(item["seen"]),
            absent_since=datetime.fromisoformat(item["away_since"]) if item["away_since"] else None,
        )
        for item in items
        if item["rule"] in rules
    }
