"""When a symptom becomes an alert, and when the alert is over: late enough in both directions that nothing flaps.

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
    """Seconds that a symptom lasts before it is an alert, and is away before the alert is resolved."""

    opens_after: float
    resolves_after: float = 60.0


# Five minutes for resources and half a minute for starvation are the contract's; a lost worker may be missing for the
# half minute that its replacement may take; growth by the minute must outlast one batch of submits.
_HYSTERESIS: Mapping[AlertRule, Hysteresis] = {
    AlertRule.OLDEST_TASK: Hysteresis(opens_after=0),
    AlertRule.STUCK_EXECUTING: Hysteresis(opens_after=0),
    AlertRule.POOL_BELOW_MINIMUM: Hysteresis(opens_after=30),
    AlertRule.RESOURCE_PRESSURE: Hysteresis(opens_after=300, resolves_after=120),
    AlertRule.QUEUE_GROWTH: Hysteresis(opens_after=120),
    AlertRule.WORKER_STARVATION: Hysteresis(opens_after=15),
    AlertRule.BREAKER_OPEN: Hysteresis(opens_after=0),
    AlertRule.REPLACEMENT_FAILING: Hysteresis(opens_after=0),
    AlertRule.DATABASE_TROUBLE: Hysteresis(opens_after=60, resolves_after=120),
    AlertRule.DEGRADED: Hysteresis(opens_after=0, resolves_after=15),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class AlertPolicy:
    """`blind_after`: seconds without a look after which nobody can say what has lasted, three turns of the duty.

    An alert that stands is written anew at most every `refresh` seconds, or when it gets worse.
    """

    patience: Mapping[AlertRule, Hysteresis] = field(default_factory=lambda: _HYSTERESIS)
    blind_after: float = 15.0
    refresh: float = 60.0


@dataclass(frozen=True, slots=True, kw_only=True)
class PendingAlert:
    """A symptom that is being watched: since when without a break, when last seen, and since when it is away."""

    since: datetime
    seen: datetime
    away_since: datetime | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class UnresolvedAlert:
    """An alert that is not resolved."""

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
    """What an alert says from now on; `is_worse` when people should look again, also those who knew."""

    alert_id: int
    symptom: Symptom
    severity: Severity
    is_worse: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class AlertSnapshot:
    """What was seen just now and what is remembered.

    `unknown` are the rules that could not be judged; `looked_at` is when somebody last looked.
    """

    symptoms: Sequence[Symptom]
    unknown: Collection[AlertRule] = ()
    spells: Mapping[AlertKey, PendingAlert] = field(default_factory=dict)
    standing: Sequence[UnresolvedAlert] = ()
    looked_at: datetime | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class AlertPlan:
    """Alerts to open, to bring up to date and to resolve, and what to remember until the next look."""

    opened: Sequence[Symptom] = ()
    updated: Sequence[AlertUpdate] = ()
    resolved: Sequence[AlertResolution] = ()
    spells: Mapping[AlertKey, PendingAlert] = field(default_factory=dict)


def plan_alerts(snapshot: AlertSnapshot, policy: AlertPolicy, now: datetime) -> AlertPlan:
    """What has lasted opens an alert, what has been away resolves it; each key has one alert at most."""
    seen = {symptom.key: symptom for symptom in snapshot.symptoms}
    standing = {alert.key: alert for alert in snapshot.standing}
    spells = {
        key: spell
        for key in dict.fromkeys([*seen, *standing, *snapshot.spells])
        if (spell := _next_pending(key, seen.get(key), snapshot, policy, now, stands=key in standing))
    }
    resolved = [r for alert in standing.values() if (r := _resolution(alert, spells[alert.key], policy, now))]
    over = {resolution.alert_id for resolution in resolved}
    return AlertPlan(
        opened=[
            symptom
            for key, symptom in seen.items()
            if key not in standing and not symptom.is_fading and _has_lasted(key, spells[key], policy, now)
        ],
        updated=[
            update
            for key, alert in standing.items()
            if key in seen and (update := _update(alert, seen[key], policy, now))
        ],
        resolved=resolved,
        spells={m: spell for m, spell in spells.items() if m not in standing or standing[m].alert_id not in over},
    )


def _next_pending(
    key: AlertKey,
    symptom: Symptom | None,
    snapshot: AlertSnapshot,
    policy: AlertPolicy,
    now: datetime,
    *,
    stands: bool,
) -> PendingAlert | None:
    """The spell as it is after this look; None when there is nothing to watch."""
    before = snapshot.spells.get(key)
    if key.rule in snapshot.unknown:
        known = before or (PendingAlert(since=now, seen=now) if stands else None)
        return replace(known, away_since=None) if known else None
    blind = timedelta(seconds=policy.blind_after)
    if symptom is None:
        if not stands:
            return None
        was_away = before.away_since if before and _is_recent(snapshot.looked_at, now, blind) else None
        return replace(before or PendingAlert(since=now, seen=now), away_since=was_away or now)
    if before is not None and _is_recent(before.seen, now, blind):
        return PendingAlert(since=before.since, seen=now)
    if symptom.is_fading and not stands:
        return None
    return PendingAlert(since=now, seen=now)


def _is_recent(moment: datetime | None, now: datetime, span: timedelta) -> bool:
    return moment is not None and now - moment <= span


def _has_lasted(key: AlertKey, spell: PendingAlert, policy: AlertPolicy, now: datetime) -> bool:
    return now - spell.since >= timedelta(seconds=policy.patience[key.rule].opens_after)


def _resolution(
    alert: UnresolvedAlert, spell: PendingAlert, policy: AlertPolicy, now: datetime
) -> AlertResolution | None:
    if spell.away_since is None:
        return None
    needed = policy.patience[alert.key.rule].resolves_after
    away = now - spell.away_since
    if away < timedelta(seconds=needed):
        return None
    return AlertResolution(alert_id=alert.alert_id, reason=f"not seen for {away.total_seconds():.0f} s")


def _update(alert: UnresolvedAlert, symptom: Symptom, policy: AlertPolicy, now: datetime) -> AlertUpdate | None:
    """An alert keeps the worst severity that it had, so that this does not flap either."""
    worse = symptom.severity > alert.severity
    if not worse and now - alert.updated_at < timedelta(seconds=policy.refresh):
        return None
    severity = max(alert.severity, symptom.severity)
    return AlertUpdate(alert_id=alert.alert_id, symptom=symptom, severity=severity, is_worse=worse)


def pending_to_json(spells: Mapping[AlertKey, PendingAlert]) -> list[dict[str, Any]]:
    """Spells as JSON has them."""
    return [
        {
            "rule": key.rule.value,
            "subject": key.subject,
            "since": spell.since.isoformat(),
            "seen": spell.seen.isoformat(),
            "away_since": spell.away_since.isoformat() if spell.away_since else None,
        }
        for key, spell in spells.items()
    ]


def pending_from_json(items: Iterable[Mapping[str, Any]]) -> dict[AlertKey, PendingAlert]:
    """Spells that `plain` has written; those of rules that there are no more are left out."""
    known = {rule.value for rule in AlertRule}
    return {
        AlertKey(rule=AlertRule(item["rule"]), subject=item["subject"]): PendingAlert(
            since=datetime.fromisoformat(item["since"]),
            seen=datetime.fromisoformat(item["seen"]),
            away_since=datetime.fromisoformat(item["away_since"]) if item["away_since"] else None,
        )
        for item in items
        if item["rule"] in known
    }
