"""The health report: one rule for each thing that can go wrong, and no zero that looks like a measurement."""

from dataclasses import replace
from datetime import timedelta
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from app.cli.checks import commands_in
from app.health.rules import utilisation
from app.health.rules.finding import Finding, Level, Overall
from app.health.rules.report import DATABASE_AWAY, Report, make_report, outdated_report, overall_health
from app.health.rules.runtime import LanguageModel
from app.health.rules.snapshot import FOR_REPORT, WATCH, BlockingSession, DutyTurn, Snapshot
from app.health.rules.utilisation import Measure
from app.kernel.access import RefusalReason
from app.kernel.agents import AgentType
from app.queue.rules.admission import CapacityPolicy
from app.queue.rules.status import Pause
from tests.support.command_line import parse
from tests.support.snapshots import HOST, NOON, OPEN_WRITER, condition, pool, queue, span, well

_CAPACITY = CapacityPolicy(max_queue_size=1000)
_POLICY = FOR_REPORT
_RANKING = AgentType.RANKING
_ALIVE = DutyTurn(duty="sweep leases", seconds_ago=1, every_seconds=1)
_WATCH_TURN = DutyTurn(duty=WATCH, seconds_ago=44, every_seconds=5)
_PAUSE = Pause(agent_type=_RANKING, reason="upkeep", paused_by="key", paused_at=NOON)


def _session(seconds: float) -> BlockingSession:
    return BlockingSession(pid=4711, application="psql", seconds=seconds)


def _report(snapshot: Snapshot) -> Report:
    return make_report(snapshot, _POLICY, _CAPACITY)


def test_all_is_well_and_every_figure_is_told() -> None:
    result = _report(well(queue=queue({AgentType.EVOLUTION: {"pending": 30, "delayed": 2}}, oldest=12.9)))
    assert result == Report(
        at=NOON,
        overall=Overall.HEALTHY,
        total_workers=10,
        healthy_workers=10,
        utilization_percentage=50.0,
        pending_tasks=32,
        oldest_task_age_seconds=12,
        bottleneck=AgentType.EVOLUTION,
        cpu_percentage=40.0,
        memory_percentage=30.0,
        llm_api_usage_percentage=25.0,
        reasons=[],
    )


def test_an_empty_queue_has_no_bottleneck_and_no_age() -> None:
    stale = queue({_RANKING: {"delayed": 3, "executing": 5}}, oldest=99.0)
    for empty in (queue(), queue(oldest=99.0), stale):
        result = _report(well(queue=empty))
        assert (result.bottleneck, result.oldest_task_age_seconds, result.overall) == (None, 0, Overall.HEALTHY)


@pytest.mark.parametrize(
    ("changes", "code", "level"),
    [
        ({"duty_turns": []}, "loops_never_ran", Level.CRITICAL),
        ({"duty_turns": [DutyTurn(duty="a", seconds_ago=60, every_seconds=1)]}, "loops_silent", Level.CRITICAL),
        ({"duty_turns": [_ALIVE, replace(_WATCH_TURN, seconds_ago=46)]}, "alerts_unwatched", Level.DEGRADED),
        ({"pool": pool(idle=0, busy=0, starting=10)}, "no_healthy_worker", Level.CRITICAL),
        ({"pool": pool(silent=10)}, "no_healthy_worker", Level.CRITICAL),
        ({"pool": pool(idle=4)}, "pool_below_minimum", Level.DEGRADED),
        ({"pool": pool(idle=4, draining=3)}, "pool_below_minimum", Level.DEGRADED),
        ({"pool": pool(failed=2)}, "workers_lost", Level.DEGRADED),
        ({"pool": pool(failed=10)}, "workers_lost", Level.CRITICAL),
        ({"pool": pool(silent=1)}, "workers_silent", Level.NOTE),
        ({"pool": pool(starting=1, not_ready=1, not_ready_example="w: no")}, "workers_not_ready", Level.DEGRADED),
        ({"queue": queue({_RANKING: {"pending": 1}}, oldest=600)}, "oldest_task", Level.DEGRADED),
        ({"queue": queue({_RANKING: {"pending": 1}}, oldest=1800)}, "oldest_task", Level.CRITICAL),
        ({"queue": queue(open_writers=[OPEN_WRITER])}, "results_delayed", Level.DEGRADED),
        ({"queue": queue({_RANKING: {"blocked": 640}})}, "queue_nearly_full", Level.DEGRADED),
        ({"queue": queue({_RANKING: {"blocked": 960}})}, "queue_nearly_full", Level.CRITICAL),
        (
            {"queue": queue({_RANKING: {"pending": 1}}, oldest=1, served_agents=frozenset())},
            "agent_unserved",
            Level.DEGRADED,
        ),
        ({"queue": queue({_RANKING: {"pending": 1}}, oldest=1, pauses=[_PAUSE])}, "agent_paused", Level.NOTE),
        ({"spans": [span(HOST, m, 80.0, samples=12) for m in Measure]}, "cpu_short", Level.DEGRADED),
        ({"spans": [span(HOST, m, 80.0, samples=12) for m in Measure]}, "memory_short", Level.DEGRADED),
        ({"spans": [span(HOST, m, 95.0, samples=12) for m in Measure]}, "memory_short", Level.CRITICAL),
        ({"database": condition(snapshot_seconds=301)}, "old_snapshot", Level.DEGRADED),
        ({"database": condition(snapshot_seconds=7200)}, "old_snapshot", Level.CRITICAL),
        ({"database": condition(blocking=_session(10))}, "locks_held", Level.DEGRADED),
        ({"database": condition(blocking=_session(120))}, "locks_held", Level.CRITICAL),
        ({"database": condition(connections=0.8)}, "connections_short", Level.DEGRADED),
        ({"database": condition(connections=1.0)}, "connections_short", Level.CRITICAL),
        ({"database": condition(dead_rows={"tasks": 1_000_000})}, "dead_rows", Level.DEGRADED),
        ({"refusals": {RefusalReason.UNKNOWN_KEY: 100}}, "refused_requests", Level.NOTE),
        ({"certificate_expires_at": NOON + timedelta(days=14)}, "certificate_expiring", Level.NOTE),
        ({"certificate_expires_at": NOON + timedelta(days=3)}, "certificate_expiring", Level.DEGRADED),
        ({"certificate_expires_at": NOON}, "certificate_expired", Level.CRITICAL),
    ],
)
def test_each_thing_that_goes_wrong_has_a_reason(changes: dict[str, Any], code: str, level: Level) -> None:
    result = _report(well(**changes))
    assert [reason.level for reason in result.reasons if reason.code == code] == [level]
    advice = next(reason.advice for reason in result.reasons if reason.code == code)
    assert advice
    for command in commands_in(advice):
        parse(command)
    expected = {Level.NOTE: Overall.HEALTHY, Level.DEGRADED: Overall.DEGRADED, Level.CRITICAL: Overall.CRITICAL}
    assert result.overall is expected[level]


@pytest.mark.parametrize(
    "changes",
    [
        {"pool": pool(idle=95, failed=5)},
        {"pool": pool(draining=2)},
        {"refusals": {RefusalReason.UNKNOWN_KEY: 99}},
        {"certificate_expires_at": NOON + timedelta(days=15)},
        {"spans": [span(HOST, m, 99.0, samples=11) for m in Measure]},
        {"queue": queue({_RANKING: {"pending": 1}}, oldest=599)},
        {"queue": queue({_RANKING: {"pending": 639}}, oldest=1)},
        {"duty_turns": [_ALIVE, _WATCH_TURN]},
        {"database": condition(blocking=_session(9))},
        {"database": condition(snapshot_seconds=299, dead_rows={"tasks": 999_999}, connections=0.79)},
    ],
)
def test_what_is_ordinary_is_no_reason(changes: dict[str, Any]) -> None:
    assert _report(well(**changes)).reasons == []


def test_a_duty_that_is_late_is_told_by_its_name() -> None:
    alive = DutyTurn(duty="sweep leases", seconds_ago=1, every_seconds=1)
    late = DutyTurn(duty="fold events", seconds_ago=37, every_seconds=2)
    (reason,) = _report(well(duty_turns=[alive, late])).reasons
    assert (reason.code, reason.level) == ("duty_late", Level.DEGRADED)
    assert "`fold events`" in reason.message
    in_time = DutyTurn(duty="housekeeping", seconds_ago=1700, every_seconds=600)
    of_a_host = DutyTurn(duty="fleet local lab", seconds_ago=99_999, every_seconds=None)
    assert _report(well(duty_turns=[alive, in_time, of_a_host])).reasons == []


def test_a_peak_of_a_moment_is_shown_but_is_no_reason() -> None:
    busy = [span(HOST, Measure.CPU, 30.0, ago=70, samples=12), span(HOST, Measure.CPU, 99.0)]
    result = _report(well(spans=[*busy, span(HOST, Measure.MEMORY, 10.0)]))
    assert (result.cpu_percentage, result.overall) == (99.0, Overall.HEALTHY)


def test_the_host_that_has_the_least_left_counts() -> None:
    other = utilisation.host_subject("other")
    values = {HOST: 20.0, other: 70.0, utilisation.WORKERS: 90.0}
    result = _report(well(spans=[span(s, m, v) for s, v in values.items() for m in (Measure.CPU, Measure.MEMORY)]))
    assert (result.cpu_percentage, result.memory_percentage) == (70.0, 70.0)


def test_workers_stand_in_where_no_host_is_measured() -> None:
    stale = span(HOST, Measure.CPU, 50.0, ago=90)
    workers = [span(utilisation.WORKERS, m, 12.0) for m in (Measure.CPU, Measure.MEMORY)]
    result = _report(well(spans=[stale, *workers]))
    assert (result.cpu_percentage, result.memory_percentage, result.reasons) == (12.0, 12.0, [])


def test_what_nobody_has_measured_is_noted() -> None:
    nothing = well(
        spans=[span(HOST, Measure.CPU, 50.0, ago=61)],
        pool=pool(idle=0, busy=0),
        min_workers=0,
        language_model=LanguageModel(),
        queue=queue({_RANKING: {"pending": 1}}),
    )
    result = _report(nothing)
    assert {reason.code for reason in result.reasons} == {"not_measured"}
    messages = " ".join(reason.message for reason in result.reasons)
    for figure in (
        "cpu_percentage",
        "memory_percentage",
        "utilization_percentage",
        "llm_api_usage_percentage",
        "oldest_task_age_seconds",
    ):
        assert figure in messages
    assert result.overall is Overall.HEALTHY


def test_the_worst_comes_first() -> None:
    result = _report(well(pool=pool(idle=4, silent=1), duty_turns=[], language_model=LanguageModel()))
    assert [reason.level for reason in result.reasons] == [Level.CRITICAL, Level.DEGRADED, Level.NOTE, Level.NOTE]


def test_without_a_database_the_last_figures_are_told_with_their_age() -> None:
    last = _report(well(pool=pool(idle=4)))
    result = outdated_report(last, NOON + timedelta(seconds=42), DATABASE_AWAY, "it is away")
    assert result.overall is Overall.CRITICAL
    assert result.at == NOON + timedelta(seconds=42)
    assert (result.total_workers, result.cpu_percentage) == (9, 40.0)
    assert [reason.code for reason in result.reasons] == [DATABASE_AWAY, "out_of_date"]
    assert "42 s ago" in result.reasons[1].message


def test_without_a_database_from_the_beginning_nothing_is_known() -> None:
    result = outdated_report(None, NOON, DATABASE_AWAY, "it is away")
    assert (result.overall, result.total_workers, result.bottleneck) == (Overall.CRITICAL, 0, None)
    assert [reason.code for reason in result.reasons] == [DATABASE_AWAY, "not_measured"]


_REASONS = st.builds(Finding, code=st.text(), level=st.sampled_from(Level), message=st.text())


@given(st.lists(_REASONS), _REASONS)
def test_one_finding_more_never_makes_it_better(reasons: list[Finding], more: Finding) -> None:
    order = list(Overall)
    assert order.index(overall_health([*reasons, more])) >= order.index(overall_health(reasons))
    assert overall_health([*reasons, more]) is overall_health([more, *reasons])


_PERCENT = st.floats(0, 100)
_POOLS = st.builds(
    pool,
    starting=st.integers(0, 20),
    idle=st.integers(0, 20),
    busy=st.integers(0, 20),
    draining=st.integers(0, 20),
    failed=st.integers(0, 20),
)


@given(_POOLS, st.integers(0, 50), _PERCENT, st.integers(0, 5000), st.floats(0, 1e6))
def test_figures_stay_within_their_ranges(pool: Any, least: int, cpu: float, tasks: int, oldest: float) -> None:
    waiting = queue({_RANKING: {"pending": tasks}}, oldest=oldest)
    spans = [span(HOST, Measure.CPU, cpu)]
    result = _report(well(pool=pool, min_workers=least, spans=spans, queue=waiting))
    assert 0 <= result.healthy_workers <= result.total_workers
    assert 0 <= result.utilization_percentage <= 100
    assert 0 <= result.cpu_percentage <= 100
    assert result.overall is overall_health(result.reasons)
    assert (result.bottleneck is None) == (tasks == 0)
    assert tasks or result.oldest_task_age_seconds == 0
