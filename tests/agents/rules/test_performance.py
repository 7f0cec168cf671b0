"""Summaries of the agents' last results."""

from datetime import UTC, datetime, timedelta
from uuid import UUID, uuid4

import pytest
from hypothesis import given
from hypothesis import strategies as st

from app.agents.rules.performance import (
    MAX_RESULTS,
    PerformanceSummary,
    Result,
    append_results,
    apply_ratings,
    summarize,
)
from app.agents.rules.weights import Evidence, WeightPolicy, add_result, earned_target, effectiveness
from app.kernel.agents import AgentType
from app.queue.rules.tasks import is_agent_fault

POLICY = WeightPolicy()
NOW = datetime(2026, 1, 1, tzinfo=UTC)
RANKING, EVOLUTION = AgentType.RANKING, AgentType.EVOLUTION


def results(count: int, quality: float | None = None, *, seconds: float = 1.0) -> list[Result]:
    """Successes, one a second, the last just now."""
    return [
        Result(at=NOW - timedelta(seconds=count - 1 - n), task_id=uuid4(), seconds=seconds, quality=quality)
        for n in range(count)
    ]


def failures(count: int) -> list[Result]:
    return [Result(at=NOW, task_id=uuid4(), seconds=1.0, is_success=False) for _ in range(count)]


def effectiveness_of(by_agent: dict[AgentType, PerformanceSummary], agent: AgentType) -> float:
    """Its effectiveness, which must be known."""
    value = by_agent[agent].effectiveness
    assert value is not None
    return value


def summaries(**recent: list[Result]) -> dict[AgentType, PerformanceSummary]:
    return summarize({AgentType[name.upper()]: agent_results for name, agent_results in recent.items()}, NOW, POLICY)


def test_results_that_are_all_judged_count_as_they_were_judged() -> None:
    evidence = Evidence()
    for _ in range(30):
        evidence = add_result(evidence, 0.8, 1.0, POLICY)
    summary = summaries(ranking=results(30, 0.8))[RANKING]
    assert summary.evidence.results == pytest.approx(evidence.results)
    assert summary.effectiveness == pytest.approx(effectiveness(evidence, 0.0, POLICY))
    assert (summary.results, summary.successes, summary.rated_results) == (30, 30, 30)
    assert summary.quality == pytest.approx(0.8)


def test_a_failure_counts_as_nothing_at_all() -> None:
    sound, shaky = summaries(ranking=results(20, 0.8)), summaries(ranking=failures(10) + results(20, 0.8))
    assert effectiveness_of(shaky, RANKING) < effectiveness_of(sound, RANKING)
    assert shaky[RANKING].quality == pytest.approx(0.8)
    assert shaky[RANKING].successes == 20


def test_while_nothing_is_judged_agents_differ_by_their_failures_alone() -> None:
    by_agent = summaries(ranking=results(30), evolution=results(30), generation=results(20) + failures(10))
    assert effectiveness_of(by_agent, RANKING) == effectiveness_of(by_agent, EVOLUTION)
    assert effectiveness_of(by_agent, AgentType.GENERATION) < effectiveness_of(by_agent, RANKING)
    assert by_agent[RANKING].quality is None


def test_an_agent_that_nobody_judges_is_presumed_to_be_like_the_others() -> None:
    by_agent = summaries(ranking=results(40, 0.6), evolution=results(40))
    assert by_agent[EVOLUTION].effectiveness == pytest.approx(by_agent[RANKING].effectiveness)


def test_few_judgements_say_little_of_all_the_other_results() -> None:
    few = effectiveness_of(summaries(ranking=results(60) + results(2, 1.0), evolution=results(60, 0.5)), RANKING)
    many = effectiveness_of(summaries(ranking=results(30) + results(30, 1.0), evolution=results(60, 0.5)), RANKING)
    like_others = effectiveness_of(summaries(evolution=results(60, 0.5)), EVOLUTION)
    assert like_others < few < like_others + 0.15 < many


def test_a_judgement_takes_the_place_of_the_one_before() -> None:
    rated = results(3, 0.9)
    task = rated[1].task_id
    assert task is not None
    rerated = apply_ratings(apply_ratings(rated, {task: 0.1}), {task: 0.2})
    assert [result.quality for result in rerated] == [0.9, 0.2, 0.9]


def test_a_judgement_of_a_failure_or_of_what_is_forgotten_changes_nothing() -> None:
    failed = failures(1)
    task = failed[0].task_id
    assert task is not None
    assert apply_ratings(failed, {task: 1.0}) == failed
    assert apply_ratings(failed, {UUID(int=1): 1.0}) == failed


def test_only_the_last_results_are_remembered_and_the_rest_would_count_for_nothing() -> None:
    kept = append_results(results(MAX_RESULTS), results(5, 0.1))
    assert len(kept) == MAX_RESULTS
    assert [result.quality for result in kept[-5:]] == [0.1] * 5
    assert 0.5 ** (MAX_RESULTS / POLICY.half_life_results) == pytest.approx(0.01, rel=0.01)


def test_speed_is_measured_and_is_no_part_of_effectiveness() -> None:
    slow, fast = summaries(ranking=results(20, 0.5, seconds=30.0)), summaries(ranking=results(20, 0.5, seconds=10.0))
    assert slow[RANKING].effectiveness == fast[RANKING].effectiveness
    assert fast[RANKING].score.tasks_per_second == pytest.approx(0.1)


def test_times_below_zero_tell_no_speed() -> None:
    """As earlier versions stored them where the clock was set back: a negative speed has no logarithm."""
    summary = summaries(ranking=results(20, 0.5, seconds=-1.0), reflection=results(20, 0.5))
    scores = {agent: each.score for agent, each in summary.items()}
    assert [score.tasks_per_second for score in scores.values()] == [None, 1.0]
    base = dict.fromkeys(AgentType, 1 / 6)
    assert earned_target(base, scores, WeightPolicy()) == pytest.approx(base)


def test_more_results_of_the_same_quality_make_nobody_better() -> None:
    """An agent that is three times faster has three times the results."""
    by_agent = summaries(ranking=results(60, 0.6), evolution=results(20, 0.6), generation=results(11, 0.6))
    assert effectiveness_of(by_agent, RANKING) == pytest.approx(effectiveness_of(by_agent, EVOLUTION))
    assert effectiveness_of(by_agent, RANKING) == pytest.approx(effectiveness_of(by_agent, AgentType.GENERATION))
    alone = summaries(ranking=results(60, 0.6))
    assert effectiveness_of(by_agent, RANKING) < effectiveness_of(alone, RANKING)


def test_an_agent_that_is_hardly_known_makes_nobody_less_sure() -> None:
    by_agent = summaries(ranking=results(60, 0.6), evolution=results(5, 0.6))
    assert by_agent[EVOLUTION].effectiveness is None
    assert effectiveness_of(by_agent, RANKING) == pytest.approx(
        effectiveness_of(summaries(ranking=results(60, 0.6)), RANKING)
    )


def test_agents_without_results_are_not_known() -> None:
    assert summaries(ranking=[]) == {}
    assert summaries(ranking=results(9, 1.0))[RANKING].effectiveness is None


@pytest.mark.parametrize(
    ("code", "fault"),
    [("handler_error", True), ("timeout", True), ("rate_limited", False), ("handler_unavailable", False)],
)
def test_what_comes_from_outside_is_not_the_agents_fault(code: str, fault: bool) -> None:
    assert is_agent_fault(code) is fault


@given(
    recent=st.dictionaries(
        st.sampled_from(list(AgentType)),
        st.lists(
            st.builds(
                Result,
                at=st.floats(0, 1e6).map(lambda seconds: NOW - timedelta(seconds=seconds)),
                seconds=st.floats(0, 1e6),
                is_success=st.booleans(),
                quality=st.one_of(st.none(), st.floats(0, 1)),
            ),
            max_size=60,
        ),
    )
)
def test_effectiveness_is_a_share_whatever_was_told_in_whatever_order(recent: dict[AgentType, list[Result]]) -> None:
    for summary in summarize(recent, NOW, POLICY).values():
        assert summary.effectiveness is None or 0 <= summary.effectiveness <= 1


def test_an_agent_that_praises_itself_gains_nothing_once_somebody_else_has_judged_it() -> None:
    """Both are judged alike, one result in ten; the liar calls all others perfect."""
    honest, liar = results(100, 0.5), results(100, 1.0)
    for place in range(0, 100, 10):
        honest = apply_ratings(honest, {honest[place].task_id or uuid4(): 0.5})
        liar = apply_ratings(liar, {liar[place].task_id or uuid4(): 0.5})
    by_agent = summarize({RANKING: honest, EVOLUTION: liar}, NOW, POLICY)
    assert effectiveness_of(by_agent, EVOLUTION) == pytest.approx(effectiveness_of(by_agent, RANKING))
    assert (by_agent[EVOLUTION].quality, by_agent[EVOLUTION].rated_results) == (0.5, 10)
    unjudged = summarize({RANKING: honest, EVOLUTION: results(100, 1.0)}, NOW, POLICY)
    assert effectiveness_of(unjudged, EVOLUTION) > effectiveness_of(unjudged, RANKING), "nobody has looked yet"
