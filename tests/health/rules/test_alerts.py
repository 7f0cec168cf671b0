"""When alerts open and are resolved: not before a symptom has lasted, not while it is near, never to and fro."""

from collections.abc import Iterable
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta

from hypothesis import given
from hypothesis import strategies as st

from app.health.rules.alerts import (
    AlertPlan,
    AlertPolicy,
    AlertSnapshot,
    Hysteresis,
    PendingAlert,
    UnresolvedAlert,
    pending_from_json,
    pending_to_json,
    plan_alerts,
)
from app.health.rules.finding import AlertKey, AlertRule, Level, Severity, Symptom

KEY = AlertKey(rule=AlertRule.QUEUE_GROWTH)
POLICY = AlertPolicy(hysteresis={rule: Hysteresis(opens_after=20, resolves_after=30) for rule in AlertRule})
START = datetime(2026, 1, 1, tzinfo=UTC)
TICK = timedelta(seconds=5)


def symptom(level: Level = Level.DEGRADED, *, fading: bool = False, key: AlertKey = KEY) -> Symptom:
    return Symptom(code=key.rule.value, key=key, level=level, message="grows", advice="look", is_fading=fading)


RAISED, FADING, WORSE = symptom(), symptom(fading=True), symptom(Level.CRITICAL)


@dataclass
class Watch:
    """Plays the duty, the table and the clock."""

    policy: AlertPolicy = POLICY
    now: datetime = START
    pending: dict[AlertKey, PendingAlert] = field(default_factory=dict)
    alerts: dict[int, UnresolvedAlert] = field(default_factory=dict)
    last_observed_at: datetime | None = None
    opened: list[datetime] = field(default_factory=list)
    resolved: list[datetime] = field(default_factory=list)

    def look(self, *symptoms: Symptom, unknown: Iterable[AlertRule] = (), after: timedelta = TICK) -> AlertPlan:
        self.now += after
        snapshot = AlertSnapshot(
            symptoms=symptoms,
            unknown=frozenset(unknown),
            pending=pending_from_json(pending_to_json(self.pending)),
            alerts=list(self.alerts.values()),
            last_observed_at=self.last_observed_at,
        )
        decided = plan_alerts(snapshot, self.policy, self.now)
        for resolution in decided.to_resolve:
            del self.alerts[resolution.alert_id]
            self.resolved.append(self.now)
        for update in decided.to_update:
            old = self.alerts[update.alert_id]
            self.alerts[update.alert_id] = UnresolvedAlert(
                alert_id=update.alert_id, key=old.key, severity=update.severity, updated_at=self.now
            )
        for new in decided.to_open:
            number = len(self.opened)
            self.alerts[number] = UnresolvedAlert(
                alert_id=number, key=new.key, severity=new.severity, updated_at=self.now
            )
            self.opened.append(self.now)
        self.pending, self.last_observed_at = dict(decided.pending), self.now
        return decided

    def looks(self, count: int, *symptoms: Symptom, unknown: Iterable[AlertRule] = ()) -> None:
        for _ in range(count):
            self.look(*symptoms, unknown=unknown)


def opened() -> Watch:
    watch = Watch()
    watch.looks(5, RAISED)
    assert len(watch.alerts) == 1
    return watch


def test_a_clock_that_is_set_back_neither_keeps_alerts_open_nor_from_opening() -> None:
    back = timedelta(hours=-3)
    watch = opened()
    watch.looks(2)
    watch.look(after=back)
    watch.looks(6)
    assert len(watch.resolved) == 1
    watch = Watch()
    watch.look(RAISED)
    watch.look(RAISED, after=back)
    watch.looks(4, RAISED)
    assert len(watch.opened) == 1
    # Its text follows too.
    assert watch.look(RAISED, after=back).to_update


def test_a_symptom_that_lasts_opens_one_alert_when_it_has_lasted() -> None:
    watch = Watch()
    watch.looks(4, RAISED)
    assert watch.opened == []
    watch.looks(20, RAISED)
    assert [moment - START for moment in watch.opened] == [5 * TICK]


def test_a_break_begins_it_anew() -> None:
    watch = Watch()
    for _ in range(10):
        watch.looks(4, RAISED)
        watch.look()
    assert watch.opened == []


def test_it_is_resolved_when_it_has_been_away_for_a_while() -> None:
    watch = opened()
    watch.looks(6)
    assert watch.resolved == []
    watch.look()
    assert len(watch.resolved) == 1
    assert watch.pending == {}


def test_a_fading_symptom_opens_nothing_and_keeps_what_stands() -> None:
    watch = Watch()
    watch.looks(50, FADING)
    assert watch.opened == []
    watch = opened()
    watch.looks(50, FADING)
    assert watch.resolved == []


def test_what_cannot_be_known_neither_opens_nor_resolves() -> None:
    watch = Watch()
    watch.looks(3, RAISED)
    watch.looks(20, unknown=[KEY.rule])
    assert watch.opened == []
    watch.look(RAISED)
    assert watch.opened == [], "nobody saw it last"
    watch = opened()
    watch.looks(50, unknown=[KEY.rule])
    assert watch.resolved == []
    watch.look()
    watch.looks(20, unknown=[KEY.rule])
    watch.look()
    assert watch.resolved == [], "nobody saw that it stayed away"


def test_unobserved_time_does_not_count() -> None:
    watch = Watch()
    watch.look(RAISED)
    watch.look(RAISED, after=timedelta(hours=1))
    assert watch.opened == []
    watch = opened()
    watch.look()
    watch.look(after=timedelta(hours=1))
    assert watch.resolved == []


def test_getting_worse_is_told_at_once_and_getting_better_never() -> None:
    watch = opened()
    (update,) = watch.look(WORSE).to_update
    assert (update.severity, update.is_worse) == (Severity.CRITICAL, True)
    assert watch.look(RAISED).to_update == []
    watch.looks(10, RAISED)
    (update,) = watch.look(RAISED).to_update
    assert (update.severity, update.is_worse) == (Severity.CRITICAL, False)


def test_an_alert_that_nothing_is_remembered_of_is_given_its_time() -> None:
    watch = opened()
    watch.pending = {}
    watch.looks(6)
    assert watch.resolved == []
    watch.look()
    assert len(watch.resolved) == 1


def test_subjects_of_a_rule_are_apart() -> None:
    cpu, memory = (symptom(key=AlertKey(rule=AlertRule.RESOURCE_PRESSURE, subject=name)) for name in ("cpu", "memory"))
    watch = Watch()
    watch.looks(5, cpu)
    watch.looks(5, cpu, memory)
    assert {alert.key.subject for alert in watch.alerts.values()} == {"cpu", "memory"}
    watch.looks(7, memory)
    assert {alert.key.subject for alert in watch.alerts.values()} == {"memory"}


@given(st.lists(st.sampled_from(["raised", "worse", "fading", "away", "unknown", "blind"]), max_size=120))
def test_nothing_flaps_whatever_the_noise(noise: list[str]) -> None:
    """Of a key one alert stands at most, and from one opening to the next both waits have passed."""
    symptoms = {"raised": [RAISED], "worse": [WORSE], "fading": [FADING]}
    watch = Watch()
    for kind in noise:
        after = timedelta(minutes=3) if kind == "blind" else TICK
        watch.look(*symptoms.get(kind, []), unknown=[KEY.rule] if kind == "unknown" else [], after=after)
        assert len(watch.alerts) <= 1
    hysteresis = POLICY.hysteresis[KEY.rule]
    least = timedelta(seconds=hysteresis.opens_after + hysteresis.resolves_after)
    for first, second in zip(watch.opened, watch.opened[1:], strict=False):
        assert second - first >= least
    assert len(watch.resolved) in (len(watch.opened), len(watch.opened) - 1)
    for start, end in zip(watch.opened, watch.resolved, strict=False):
        assert end - start >= timedelta(seconds=hysteresis.resolves_after)


def test_duties_that_had_to_wait_for_the_database_are_an_alert_only_where_they_stay_late() -> None:
    """A critical alert opened whenever the database was back after a minute, and was resolved a minute later."""
    late, outage = symptom(Level.CRITICAL, key=AlertKey(rule=AlertRule.DUTY_LATE)), timedelta(seconds=65)
    watch = Watch(policy=AlertPolicy())
    watch.look(late, after=outage)
    watch.look()
    assert watch.opened == []
    watch.look(late, after=outage)
    began = watch.now
    for _ in range(3):
        watch.look(late)
    assert watch.opened == [began + timedelta(seconds=15)]
