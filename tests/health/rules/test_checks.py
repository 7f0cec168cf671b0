"""Each rule: what it tells, at its threshold, near it, and without figures."""

from collections.abc import Mapping
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from app.health.rules.checks import alert_symptoms
from app.health.rules.finding import AlertRule, Severity, Symptom
from app.health.rules.snapshot import (
    FOR_ALERTS,
    WATCH,
    BlockingSession,
    DatabaseCondition,
    Depth,
    DutyTurn,
    ModelTrouble,
    Observations,
    Running,
    WorkerCounts,
    with_depth,
    with_recent,
)
from app.kernel.access import RefusalReason
from app.kernel.agents import AgentType
from app.kernel.events import TaskEvent
from app.kernel.histograms import Durations
from app.kernel.lanes import Lane, Priority
from app.llm.rules.conditions import ServiceState
from app.queue.rules.degradation import DegradationStep
from app.queue.rules.status import MinuteCount, Pause, QueueSnapshot
from app.workers.rules.recovery import Recovery
from tests.support.snapshots import OPEN_WRITER

AT = datetime(2026, 1, 1, 12, tzinfo=UTC)
GENERATION = Lane(agent_type=AgentType.GENERATION, priority=Priority.MEDIUM)
RANKING = Lane(agent_type=AgentType.RANKING, priority=Priority.HIGH)


def queue(tasks: Mapping[Lane, int] | None = None, **more: Any) -> QueueSnapshot:
    return QueueSnapshot(at=AT, tasks={lane: {"pending": count} for lane, count in (tasks or {}).items()}, **more)


def symptoms_of(snapshot: QueueSnapshot | None = None, **observations: Any) -> list[Symptom]:
    return alert_symptoms(Observations(queue=snapshot or queue(), **observations), FOR_ALERTS)[0]


def only_symptom(snapshot: QueueSnapshot | None = None, **observations: Any) -> Symptom:
    (symptom,) = symptoms_of(snapshot, **observations)
    return symptom


def test_all_is_well_without_a_reason_to_worry() -> None:
    assert symptoms_of() == []


def test_what_was_not_measured_is_unknown_and_not_well() -> None:
    _, unknown = alert_symptoms(Observations(queue=queue()), FOR_ALERTS)
    assert unknown == frozenset(AlertRule) - {AlertRule.OLDEST_TASK, AlertRule.RESULTS_DELAYED}
    _, unknown = alert_symptoms(Observations(queue=queue(), workers=WorkerCounts(alive=0)), FOR_ALERTS)
    assert AlertRule.POOL_BELOW_MINIMUM in unknown, "no minimum is known"
    assert AlertRule.WORKER_STARVATION not in unknown


@pytest.mark.parametrize(
    ("minutes", "expected"),
    [(9, None), (9.5, (Severity.WARNING, True)), (11, (Severity.WARNING, False)), (31, (Severity.CRITICAL, False))],
)
def test_the_oldest_task(minutes: float, expected: tuple[Severity, bool] | None) -> None:
    oldest = {Priority.LOW: AT - timedelta(minutes=1), Priority.HIGH: AT - timedelta(minutes=minutes)}
    symptoms = symptoms_of(queue({GENERATION: 1}, oldest=oldest))
    assert [(s.severity, s.is_fading) for s in symptoms] == ([] if expected is None else [expected])
    assert all("priority high" in symptom.message for symptom in symptoms)


def test_a_task_past_its_deadline_that_nobody_has_ended() -> None:
    symptom = only_symptom(running={AgentType.RANKING: Running(longest_seconds=100, overdue=1)})
    assert (symptom.key.rule, symptom.key.subject) == (AlertRule.STUCK_EXECUTING, "ranking")
    assert symptom.severity is Severity.CRITICAL


def test_long_is_what_is_far_longer_than_usual() -> None:
    hour = MinuteCount(
        start=AT, lane=RANKING, kind=TaskEvent.COMPLETED.value, durations=Durations(count=1, seconds=3600, longest=3600)
    )
    running = {AgentType.RANKING: Running(longest_seconds=7200, overdue=0)}
    assert symptoms_of(queue(recent=[hour]), running=running) == []
    assert only_symptom(running=running).severity is Severity.WARNING


def test_what_a_task_of_its_kind_took_hours_ago_is_usual_as_well() -> None:
    """Of a few long tasks hardly ever one has completed within the last minutes."""
    running = {AgentType.RANKING: Running(longest_seconds=1500, overdue=0)}
    assert "and none has completed within a day" in only_symptom(running=running).message
    completed = MinuteCount(
        start=AT, lane=RANKING, kind=TaskEvent.COMPLETED.value, durations=Durations(count=1, seconds=1200, longest=1200)
    )
    longest = with_recent({}, queue(recent=[completed]))
    later = replace(queue(), at=AT + timedelta(hours=20))
    longest = with_recent(longest, later)
    assert symptoms_of(later, running=running, longest=longest) == []
    assert with_recent(longest, replace(queue(), at=AT + timedelta(hours=30))) == {}


def test_a_pool_below_its_minimum() -> None:
    assert symptoms_of(workers=WorkerCounts(alive=10, minimum=10)) == []
    assert only_symptom(workers=WorkerCounts(alive=9, minimum=10)).severity is Severity.WARNING
    assert only_symptom(workers=WorkerCounts(alive=4, minimum=10)).severity is Severity.CRITICAL


def test_resources_each_for_itself() -> None:
    symptoms = symptoms_of(resources={"cpu": 0.81, "memory": 0.5, "llm_permits": 0.96, "queue": 0.75, "gpu": None})
    kinds = {symptom.key.subject: (symptom.severity, symptom.is_fading) for symptom in symptoms}
    assert kinds == {
        "cpu": (Severity.WARNING, False),
        "llm_permits": (Severity.CRITICAL, False),
        "queue": (Severity.WARNING, True),
    }


def depths(*tasks: int, seconds: float = 20) -> list[Depth]:
    return [Depth(at=AT + timedelta(seconds=seconds * n), tasks=count) for n, count in enumerate(tasks)]


def test_growth_is_computed_over_a_minute_at_least() -> None:
    assert symptoms_of(depths=depths(0, 5_000, 10_000)) == []
    symptom = only_symptom(depths=depths(0, 50, 100, 150))
    assert (symptom.key.rule, symptom.facts["tasks_per_minute"]) == (AlertRule.QUEUE_GROWTH, 150)
    assert symptoms_of(depths=depths(5_000, 5_000, 5_000, 5_080)) == []
    assert only_symptom(depths=depths(0, 0, 0, 95)).is_fading


def test_depths_are_kept_for_a_minute_and_a_little() -> None:
    recent: list[Depth] = []
    for n in range(100):
        recent = with_depth(recent, AT + timedelta(seconds=5 * n), n)
        assert len(recent) <= 14
    assert recent[-1].at - recent[0].at == timedelta(minutes=1)
    later = with_depth(recent, AT + timedelta(hours=1), 7)
    assert [depth.tasks for depth in later] == [7], "an hour ago tells nothing of a minute"


def test_starvation_is_of_workers_that_could_run_what_waits() -> None:
    idle = WorkerCounts(alive=4, idle=1, idle_for=frozenset({AgentType.GENERATION}))
    assert symptoms_of(queue({RANKING: 5}), workers=idle) == []
    symptom = only_symptom(queue({GENERATION: 5, RANKING: 9}), workers=idle)
    assert symptom.message == "1 worker idles although tasks wait that could be run there: 5"
    paused = Pause(agent_type=AgentType.GENERATION, reason="", paused_by="x", paused_at=AT)
    assert symptoms_of(queue({GENERATION: 5}, pauses=[paused]), workers=idle) == []
    assert symptoms_of(queue({GENERATION: 5}), workers=WorkerCounts(alive=4)) == []


def test_of_very_many_workers_some_are_always_between_two_tasks() -> None:
    able = frozenset({AgentType.GENERATION})
    assert symptoms_of(queue({GENERATION: 500}), workers=WorkerCounts(alive=1000, idle=49, idle_for=able)) == []
    assert len(symptoms_of(queue({GENERATION: 500}), workers=WorkerCounts(alive=1000, idle=50, idle_for=able))) == 1


@pytest.mark.parametrize("state", [state for state in ServiceState if state.value not in ("ok", "limited", "failing")])
def test_a_model_that_answers_nobody_is_told_with_its_reason(state: ServiceState) -> None:
    until = datetime(2026, 11, 28, 12, 30, tzinfo=UTC)
    symptom = only_symptom(models={"large": ModelTrouble(state=state, until=until)})
    assert (symptom.key.rule, symptom.severity) == (AlertRule.BREAKER_OPEN, Severity.WARNING)
    assert "large" in symptom.message
    assert "until 2026-11-28 12:30 UTC" in symptom.message
    assert "wait" in symptom.advice
    assert symptoms_of(models={"large": ModelTrouble(state=ServiceState.LIMITED)}) == []


@pytest.mark.parametrize(
    ("hours", "severity"), [(49, None), (47, Severity.WARNING), (5, Severity.CRITICAL), (-1, Severity.CRITICAL)]
)
def test_a_key_is_told_of_days_and_hours_before_it_expires(hours: int, severity: Severity | None) -> None:
    found = symptoms_of(models={"large": ModelTrouble(key_seconds_left=3600 * hours)})
    assert [(s.key.rule, s.severity) for s in found] == ([(AlertRule.KEY_EXPIRING, severity)] if severity else [])


@pytest.mark.parametrize(("share", "severity"), [(0.79, None), (0.8, Severity.WARNING), (1.0, Severity.CRITICAL)])
def test_a_goal_is_told_of_whose_budget_is_nearly_used_up(share: float, severity: Severity | None) -> None:
    symptoms = symptoms_of(budgets={"kepler": share})
    expected = [(AlertRule.GOAL_BUDGET, "kepler", severity)] if severity else []
    assert [(s.key.rule, s.key.subject, s.severity) for s in symptoms] == expected
    symptoms = symptoms_of(llm_budgets={"agent ranking": share})
    expected = [(AlertRule.LLM_BUDGET, "agent ranking", severity)] if severity else []
    assert [(s.key.rule, s.key.subject, s.severity) for s in symptoms] == expected


def test_breakers_and_replacements() -> None:
    models = {"small": ModelTrouble(), "large": ModelTrouble(state=ServiceState.FAILING)}
    assert only_symptom(models=models).key.subject == "large"
    assert symptoms_of(recovery=Recovery()) == []
    failing = Recovery(failing=["here/1"], lost_share=0.25, reason="they die")
    assert (only_symptom(recovery=failing).message, only_symptom(recovery=failing).severity) == (
        "they die",
        Severity.WARNING,
    )
    overdue = Recovery(overdue=3, lost_share=0.75, reason="they do not come")
    assert only_symptom(recovery=overdue).severity is Severity.CRITICAL
    gone = Recovery(silent_hosts=["there"], lost_share=0.4, reason="there has not reported for 90 s")
    advice = only_symptom(recovery=gone).advice
    assert (advice.startswith("start the loops of there again"), "do the handlers load" in advice) == (True, False)
    shared = Recovery(shared_hosts=["here"], reason="several machines keep the pool of host here as if they were one")
    advice = only_symptom(recovery=shared).advice
    assert (advice.startswith("set CONVENER_HOST_NAME"), "do the handlers load" in advice) == (True, False)


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({}, []),
        ({"snapshot_seconds": 290}, [("old_snapshot", True)]),
        ({"snapshot_seconds": 301}, [("old_snapshot", False)]),
        ({"blocking": BlockingSession(pid=7, application="", seconds=11)}, [("locks", False)]),
        ({"snapshot_transactions": 1_000_001}, [("old_snapshot", False)]),
        ({"dead_rows": {"tasks": 10, "leases": 1_000_001}}, [("dead_rows", False)]),
        ({"connections": 0.9, "snapshot_seconds": 999}, [("old_snapshot", False), ("connections", False)]),
    ],
)
def test_database_trouble(changes: dict[str, Any], expected: list[tuple[str, bool]]) -> None:
    usual: dict[str, Any] = {"snapshot_seconds": 1.0, "snapshot_transactions": 5, "dead_rows": {}, "connections": 0.1}
    symptoms = symptoms_of(database=DatabaseCondition(**(usual | changes)))
    assert [(symptom.key.subject, symptom.is_fading) for symptom in symptoms] == expected


def test_degradation_raises_an_alert_and_its_last_step_is_critical() -> None:
    assert symptoms_of(step=DegradationStep.NONE) == []
    assert (only_symptom(step=DegradationStep.DEPTH).key.rule, only_symptom(step=DegradationStep.DEPTH).severity) == (
        AlertRule.DEGRADED,
        Severity.WARNING,
    )
    assert only_symptom(step=DegradationStep.ESSENTIALS).severity is Severity.CRITICAL


def test_an_open_transaction_for_which_readers_wait_is_named() -> None:
    symptom = only_symptom(queue(open_writers=[OPEN_WRITER]))
    assert (symptom.key.rule, symptom.severity) == (AlertRule.RESULTS_DELAYED, Severity.WARNING)
    for fact in ("process 4711", "database lab", "application psql", "12 s"):
        assert fact in symptom.message


def one_of_each() -> list[Symptom]:
    """A symptom of every rule; the reference of alerts shows them as examples."""
    return symptoms_of(
        queue({GENERATION: 500}, oldest={Priority.HIGH: AT - timedelta(hours=1)}, open_writers=[OPEN_WRITER]),
        depths=depths(0, 0, 0, 500),
        running={AgentType.RANKING: Running(longest_seconds=1e6, overdue=1)},
        workers=WorkerCounts(alive=1, idle=1, idle_for=frozenset({AgentType.GENERATION}), minimum=2),
        resources={"cpu": 1.0},
        models={"large": ModelTrouble(state=ServiceState.FAILING, key_seconds_left=3600)},
        budgets={"kepler": 1.0},
        llm_budgets={"key k": 1.0},
        recovery=Recovery(overdue=1, lost_share=1.0, reason="late"),
        database=DatabaseCondition(snapshot_seconds=999, snapshot_transactions=1, dead_rows={}, connections=0),
        step=DegradationStep.DEPTH,
        refusals={RefusalReason.UNKNOWN_KEY: 101},
        duty_turns=[DutyTurn(duty="sweep leases", seconds_ago=99, every_seconds=1)],
    )


def test_every_symptom_says_what_to_do() -> None:
    symptoms = one_of_each()
    assert {symptom.key.rule for symptom in symptoms} == set(AlertRule)
    assert all(symptom.advice and symptom.message for symptom in symptoms)


def test_refused_requests_are_told_with_their_reasons() -> None:
    assert symptoms_of(refusals={RefusalReason.FORBIDDEN: 20}) == []
    symptom = only_symptom(refusals={RefusalReason.UNKNOWN_KEY: 400, RefusalReason.FORBIDDEN: 20})
    assert (symptom.key.rule, symptom.severity) == (AlertRule.REFUSED_REQUESTS, Severity.WARNING)
    assert "420 requests were refused in the last five minutes: 20 forbidden, 400 unknown key" in symptom.message
    assert symptom.facts == {"forbidden": 20, "unknown_key": 400}


def test_a_duty_that_is_late_is_one_alert_and_loops_that_are_away_a_critical_one() -> None:
    well = DutyTurn(duty="sweep leases", seconds_ago=1, every_seconds=1)
    late = [DutyTurn(duty=name, seconds_ago=40, every_seconds=2) for name in ("fold events", "fold counts")]
    assert symptoms_of(duty_turns=[well]) == []
    symptom = only_symptom(duty_turns=[well, *late])
    assert (symptom.key.rule, symptom.severity) == (AlertRule.DUTY_LATE, Severity.WARNING)
    assert "`fold events` is due every 2 s and has not run for 40 s" in symptom.message
    # The API stands in for the duty that watches for alerts, so its turns say nothing about the loops.
    stood_in = DutyTurn(duty=WATCH, seconds_ago=1, every_seconds=5)
    symptom = only_symptom(duty_turns=[stood_in, *late])
    assert (symptom.code, symptom.severity) == ("loops_silent", Severity.CRITICAL)
    symptom = only_symptom(duty_turns=[stood_in])
    assert (symptom.code, symptom.severity) == ("loops_never_ran", Severity.CRITICAL)
    assert symptoms_of(duty_turns=[]) == []


def test_loops_that_have_gone_before_the_clock_was_set_back_are_away() -> None:
    past = DutyTurn(duty="sweep leases", seconds_ago=-3600, every_seconds=1)
    assert only_symptom(duty_turns=[past]).code == "loops_silent"
    # Slow ones have their turn later than the fast ones.
    assert symptoms_of(duty_turns=[past, DutyTurn(duty="fold events", seconds_ago=1, every_seconds=2)]) == []
