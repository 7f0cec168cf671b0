"""What one caller reports binds that caller alone; what two report binds all, within a call each."""

from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from app.llm.rules.circuit_breaker import Breaker, BreakerState
from app.llm.rules.concurrency import ConcurrencyPolicy, ConcurrencyState
from app.llm.rules.models import Model
from app.llm.rules.outcomes import LOSSES, CallReport, Outcome
from app.llm.rules.reports import FinishedTurn, ReportPolicy, record_call

START = datetime(2026, 1, 1, tzinfo=UTC)
POLICY = ReportPolicy(concurrency=ConcurrencyPolicy())


@dataclass(kw_only=True)
class Reports:
    """A model, and a clock that each report moves on by a second."""

    model: Model = field(
        default_factory=lambda: Model(
            name="m", concurrency=ConcurrencyState(limit=20, ramping=False, latency_seconds=0.5)
        )
    )
    now: datetime = START

    def of(
        self,
        caller: str,
        outcome: Outcome,
        *,
        principal: str = "",
        has_rivals: bool = False,
        probe: bool = False,
        granted: float = 0.5,
        in_use: int = 10,
        **said: Any,
    ) -> None:
        """A report on a call whose permit was granted so many seconds ago."""
        self.now += timedelta(seconds=1)
        turn = FinishedTurn(
            caller=caller,
            principal=principal or caller,
            has_rivals=has_rivals,
            report=CallReport(outcome=outcome, **said),
            granted_at=self.now - timedelta(seconds=granted),
            is_probe=probe,
            in_use=in_use,
        )
        self.model = record_call(self.model, turn, ceiling=20, now=self.now, policy=POLICY)

    @property
    def state(self) -> BreakerState:
        return self.model.breaker.state(self.now)

    @property
    def cooldown(self) -> float:
        return self.model.concurrency.cooldown_seconds(self.now)

    def own_cooldown(self, caller: str) -> float:
        own = self.model.callers.get(caller)
        return 0.0 if own is None else own.cooldown_seconds(self.now)

    def is_blocked(self, caller: str) -> bool:
        own = self.model.callers.get(caller)
        return own is not None and own.is_blocked(self.now)


def test_a_cooldown_binds_its_caller_and_all_when_another_confirms_it() -> None:
    reports = Reports()
    reports.of("a", Outcome.RATE_LIMITED, retry_after_seconds=1e9)
    assert (reports.cooldown, reports.own_cooldown("a"), reports.own_cooldown("b")) == (0, 300, 0)
    reports.of("b", Outcome.RATE_LIMITED, retry_after_seconds=40)
    assert reports.cooldown == 40, "for as long as both agree"


def test_one_caller_confirms_nothing_however_often_it_reports() -> None:
    reports = Reports()
    for _ in range(50):
        reports.of("a", Outcome.RATE_LIMITED, retry_after_seconds=1e9)
        reports.of("a", Outcome.SERVER_ERROR, retry_after_seconds=1e9)
    assert (reports.cooldown, reports.state) == (0, BreakerState.CLOSED)
    assert reports.model.concurrency == Reports().model.concurrency, "neither limit nor slow start"
    assert reports.is_blocked("a")
    assert not reports.is_blocked("b")


def test_callers_of_one_key_confirm_nothing_where_those_of_another_call_too() -> None:
    reports = Reports()
    for number in range(40):
        for outcome in (Outcome.RATE_LIMITED, Outcome.SERVER_ERROR):
            reports.of(f"w{number}", outcome, principal="stolen", has_rivals=True, retry_after_seconds=1e9)
    assert (reports.cooldown, reports.state) == (0, BreakerState.CLOSED)
    assert reports.model.concurrency == Reports().model.concurrency
    reports.of("h", Outcome.RATE_LIMITED, principal="ours", has_rivals=True, retry_after_seconds=40)
    assert reports.cooldown == 40, "a caller of another key confirms it"


def test_where_one_key_alone_calls_its_third_caller_confirms_what_two_report() -> None:
    reports = Reports()
    for number in range(2):
        for outcome in (Outcome.RATE_LIMITED, *3 * [Outcome.SERVER_ERROR]):
            reports.of(f"w{number}", outcome, principal="pool", retry_after_seconds=60)
    assert (reports.cooldown, reports.state) == (0, BreakerState.CLOSED)
    assert reports.is_blocked("w0")
    assert reports.is_blocked("w1")
    reports.of("w2", Outcome.RATE_LIMITED, principal="pool", retry_after_seconds=50)
    assert reports.cooldown == pytest.approx(50)
    assert reports.model.concurrency.limit == pytest.approx(18)
    for _ in range(2):
        reports.of("w2", Outcome.SERVER_ERROR, principal="pool")
    assert reports.state.value == "open"


def test_an_answer_to_another_contradicts_a_cooldown() -> None:
    reports = Reports()
    reports.of("a", Outcome.RATE_LIMITED, retry_after_seconds=60)
    reports.of("c", Outcome.SUCCESS, granted=0.5)
    reports.of("b", Outcome.RATE_LIMITED, retry_after_seconds=60)
    assert reports.cooldown == 0
    reports.of("a", Outcome.RATE_LIMITED, retry_after_seconds=60)
    assert reports.cooldown == pytest.approx(59)


def test_an_answer_to_a_call_from_before_contradicts_nothing() -> None:
    reports = Reports()
    reports.of("a", Outcome.RATE_LIMITED, retry_after_seconds=60)
    reports.of("c", Outcome.SUCCESS, granted=5)
    reports.of("b", Outcome.RATE_LIMITED, retry_after_seconds=60)
    assert reports.cooldown > 50


def test_failures_of_one_open_its_own_breaker_and_those_of_two_that_of_all() -> None:
    reports = Reports()
    for _ in range(3):
        reports.of("a", Outcome.SERVER_ERROR)
    assert (reports.state, reports.model.breaker.failures) == (BreakerState.CLOSED, 1)
    assert reports.is_blocked("a")
    reports.of("b", Outcome.TIMEOUT)
    assert reports.state.value == "closed", "one failure of somebody else may be chance"
    reports.of("b", Outcome.TIMEOUT)
    assert reports.state.value == "open"


def test_a_real_outage_opens_the_breaker_with_the_third_failure_of_anybody() -> None:
    reports = Reports()
    for caller in "abc":
        assert reports.state is BreakerState.CLOSED
        reports.of(caller, Outcome.SERVER_ERROR)
    assert reports.state is BreakerState.OPEN


@pytest.mark.parametrize("answer", [Outcome.SUCCESS, Outcome.CLIENT_ERROR])
def test_an_answer_to_another_clears_failures_but_not_those_of_the_caller_itself(answer: Outcome) -> None:
    reports = Reports()
    for _ in range(3):
        reports.of("a", Outcome.TIMEOUT)
        reports.of("c", answer)
    assert reports.model.breaker == Breaker()
    assert reports.is_blocked("a"), "it alone fails, three times in a row"
    reports.of("b", Outcome.TIMEOUT)
    assert reports.state is BreakerState.CLOSED


def test_a_probe_that_fails_says_nothing_until_another_one_fails() -> None:
    reports = Reports()
    for caller in "abc":
        reports.of(caller, Outcome.SERVER_ERROR)
    reports.now += timedelta(seconds=31)
    reports.of("a", Outcome.SERVER_ERROR, probe=True)
    assert reports.state.value == "half_open", "others may try at once"
    assert reports.is_blocked("a"), "which has had its turn"
    reports.of("b", Outcome.TIMEOUT, probe=True)
    assert reports.state.value == "open"
    reports.now += timedelta(seconds=31)
    reports.of("c", Outcome.SUCCESS, probe=True)
    assert reports.model.breaker == Breaker()


@pytest.mark.parametrize("outcome", sorted(Outcome))
def test_late_news_move_no_open_breaker(outcome: Outcome) -> None:
    reports = Reports()
    for caller in "abc":
        reports.of(caller, Outcome.SERVER_ERROR)
    before = reports.model.breaker
    reports.of("d", outcome)
    assert reports.model.breaker == before


def test_losses_of_one_shrink_its_own_limit_and_those_of_two_that_of_all() -> None:
    reports = Reports()
    for _ in range(30):
        reports.of("a", Outcome.TIMEOUT)
    assert reports.model.concurrency.limit == 20
    assert reports.model.callers["a"].limit == 1
    reports.of("b", Outcome.RATE_LIMITED)
    assert reports.model.concurrency.limit == pytest.approx(18)
    for _ in range(30):
        reports.of("a", Outcome.TIMEOUT)
    assert reports.model.concurrency.limit == pytest.approx(16.2), "each loss of another lends weight to one"


def test_a_lone_caller_recovers_its_own_limit() -> None:
    reports = Reports()
    for _ in range(3):
        reports.of("a", Outcome.RATE_LIMITED)
    assert reports.model.callers["a"].limit == pytest.approx(20 * 0.9**3)
    for _ in range(100):
        reports.of("a", Outcome.SUCCESS)
    assert "a" not in reports.model.callers


def test_many_callers_are_remembered_up_to_a_number_and_for_a_while() -> None:
    reports = Reports()
    for number in range(100):
        reports.of(f"w{number}", Outcome.RATE_LIMITED, retry_after_seconds=300)
    assert len(reports.model.callers) <= POLICY.confirmation.max_callers + 1
    reports.now += timedelta(hours=1)
    reports.of("x", Outcome.CANCELLED)
    assert not reports.model.callers


_REPORTS = st.lists(
    st.tuples(st.sampled_from(Outcome), st.booleans(), st.floats(0, 1000), st.none() | st.floats(-1, 1e9)), max_size=60
)


@given(reported=_REPORTS, honest=st.lists(st.sampled_from(["b", "c", "d"]), min_size=1, max_size=20))
def test_whatever_one_caller_reports_others_that_are_answered_go_on(
    reported: list[tuple[Outcome, bool, float, float | None]], honest: list[str]
) -> None:
    """One caller lies as it likes between answers to the others: no breaker, no cool-down, no smaller limit."""
    reports, names = Reports(), [*honest]
    for number, (outcome, probe, granted, retry_after) in enumerate(reported):
        reports.of("a", outcome, probe=probe, granted=granted, retry_after_seconds=retry_after)
        reports.of(names[number % len(names)], Outcome.SUCCESS)
        assert (reports.state, reports.cooldown) == (BreakerState.CLOSED, 0)
        assert reports.model.concurrency.limit >= 20
        assert not any(reports.is_blocked(name) for name in names)


@given(outcomes=st.lists(st.sampled_from(sorted(LOSSES)), min_size=3, max_size=12))
def test_a_storm_over_two_callers_is_noticed_within_a_call_each(outcomes: list[Outcome]) -> None:
    reports = Reports()
    for number, outcome in enumerate(outcomes[:2]):
        reports.of("ab"[number], outcome, retry_after_seconds=30)
    assert reports.cooldown > 20
    assert reports.model.concurrency.limit == pytest.approx(18)
    assert replace(reports.model, callers={}).concurrency.cooldown_until is not None


def test_losses_bind_all_after_the_clock_was_set_back() -> None:
    """Those that had counted lay in the future, and none counted until the clock had come there again."""
    reports = Reports()
    for caller in "abab":
        reports.of(caller, Outcome.RATE_LIMITED)
    before = reports.model.concurrency.limit
    assert before < 20
    reports.now -= timedelta(hours=1)
    for caller in "ab":
        reports.of(caller, Outcome.RATE_LIMITED)
    assert reports.model.concurrency.limit < before
