"""Conditions of a service: recognized by what it refuses with, binding like any report, and seen by everybody."""

from datetime import UTC, datetime, timedelta
from random import Random
from typing import Any

import pytest

from app.llm.rules.circuit_breaker import BreakerState
from app.llm.rules.concurrency import ConcurrencyPolicy
from app.llm.rules.conditions import Condition, condition_of, may_try, park_seconds, service_state
from app.llm.rules.models import Model
from app.llm.rules.outcomes import CallReport, Outcome
from app.llm.rules.reports import FinishedTurn, ReportPolicy, record_call

START = datetime(2026, 1, 1, tzinfo=UTC)
POLICY = ReportPolicy(concurrency=ConcurrencyPolicy())
_EXPIRED: dict[str, Any] = {"outcome": Outcome.CLIENT_ERROR, "status": 401}
_ALL: list[dict[str, Any]] = [
    _EXPIRED,
    {"outcome": Outcome.CLIENT_ERROR, "status": 403},
    {"outcome": Outcome.CLIENT_ERROR, "status": 402},
    {"outcome": Outcome.RATE_LIMITED, "status": 429, "error_code": "insufficient_quota"},
    {"outcome": Outcome.SERVER_ERROR, "status": 503, "error_code": "cluster_under_maintenance"},
    {"outcome": Outcome.SERVER_ERROR, "status": 503, "error_code": "model_loading"},
]


def told(model: Model, seconds: float, caller: str = "a", *, probe: bool = False, **report: Any) -> Model:
    """The model after a report of a call that has just begun."""
    now = START + timedelta(seconds=seconds)
    turn = FinishedTurn(
        caller=caller, principal=caller, report=CallReport(**report), granted_at=now, is_probe=probe, in_use=1
    )
    return record_call(model, turn, ceiling=20, now=now, policy=POLICY)


def state(model: Model, seconds: float) -> str:
    return service_state(model, START + timedelta(seconds=seconds))[0].value


@pytest.mark.parametrize(
    ("report", "condition"),
    [
        ({"status": 401}, Condition.KEY_EXPIRED),
        ({"status": 403}, Condition.KEY_EXPIRED),
        ({"status": 403, "error_code": "content_policy_violation"}, None),
        ({"status": 402}, Condition.QUOTA_EXHAUSTED),
        ({"status": 400}, None),
        ({"status": 404, "error_code": "model_not_found"}, None),
        ({"outcome": Outcome.RATE_LIMITED, "status": 429}, None),
        ({"outcome": Outcome.RATE_LIMITED, "status": 429, "error_code": "rate_limit_exceeded"}, None),
        ({"outcome": Outcome.RATE_LIMITED, "status": 429, "error_code": "insufficient_quota"}, "quota_exhausted"),
        ({"outcome": Outcome.SERVER_ERROR, "status": 503}, None),
        ({"outcome": Outcome.SERVER_ERROR, "status": 503, "error_code": "cluster_under_maintenance"}, "maintenance"),
        ({"outcome": Outcome.SERVER_ERROR, "status": 503, "error_code": "model_loading"}, "loading"),
        ({"outcome": Outcome.SUCCESS, "status": 200, "error_code": "insufficient_quota"}, None),
    ],
)
def test_a_condition_is_recognized_by_status_and_code(report: dict[str, Any], condition: str | None) -> None:
    assert condition_of(CallReport(**{"outcome": Outcome.CLIENT_ERROR, **report})) == condition


def test_one_report_binds_its_caller_and_is_shown_to_all() -> None:
    model = told(Model(name="m"), 0, **_EXPIRED)
    assert model.breaker.state(START) is BreakerState.CLOSED
    assert model.callers["a"].is_blocked(START)
    assert state(model, 1) == "key_expired"
    assert park_seconds(model, "key_expired", timedelta(seconds=1), START) == 60
    model = told(model, 0.5, "b", outcome=Outcome.SUCCESS, status=200)
    assert state(model, 1) == "ok", "somebody else is answered"
    assert park_seconds(model, "key_expired", timedelta(seconds=1), START) == 1, "another worker may have the task"
    assert model.callers["a"].is_blocked(START)


def test_two_reports_bind_all_and_one_caller_at_a_time_tries_again() -> None:
    model = told(told(Model(name="m"), 0, **_EXPIRED), 0, "b", **_EXPIRED)
    assert model.breaker.state(START) is BreakerState.OPEN
    assert not may_try(model, START + timedelta(seconds=1))
    assert may_try(model, START + timedelta(seconds=2))
    for second in range(2, 600, 2):
        model = told(model, second, probe=True, **_EXPIRED)
        assert model.breaker.state(START + timedelta(seconds=second)) is BreakerState.OPEN
        assert state(model, second + 1.9) == "key_expired"
    model = told(model, 602, probe=True, outcome=Outcome.SUCCESS, status=200)
    assert (state(model, 602), model.breaker.state(START)) == ("ok", BreakerState.CLOSED)


def test_a_time_that_the_service_names_is_waited_for_and_shown() -> None:
    quota: dict[str, Any] = {"outcome": Outcome.RATE_LIMITED, "status": 429, "error_code": "insufficient_quota"}
    model = told(told(Model(name="m"), 0, **quota, retry_after_seconds=7200), 0, "b", **quota, retry_after_seconds=7200)
    until = START + timedelta(seconds=7200)
    assert service_state(model, START) == ("quota_exhausted", until)
    assert park_seconds(model, "quota_exhausted", timedelta(seconds=1), START) == 3600
    assert not may_try(model, START + timedelta(seconds=299))
    assert may_try(model, START + timedelta(seconds=301)), "somebody tries in between: it may have been paid"
    soon = told(Model(name="m"), 0, **quota, retry_after_seconds=40)
    assert not may_try(soon, START + timedelta(seconds=39))
    assert may_try(soon, START + timedelta(seconds=40))


@pytest.mark.parametrize("seed", range(20))
def test_any_order_of_conditions_ends_with_the_first_answer(seed: int) -> None:
    rng, model = Random(seed), Model(name="m")
    for number in range(200):
        model = told(model, 2 * number, rng.choice("abc"), probe=rng.random() < 0.5, **rng.choice(_ALL))
        assert state(model, 2 * number) not in ("ok", "limited", "failing")
    for caller in "abc":
        model = told(model, 500, caller, probe=True, outcome=Outcome.SUCCESS, status=200)
    assert state(model, 500) == "ok"
    assert not any(caller.is_blocked(START + timedelta(seconds=510)) for caller in model.callers.values())


def test_what_nobody_has_called_since_is_told_no_more() -> None:
    model = told(told(Model(name="m"), 0, **_EXPIRED), 0, "b", **_EXPIRED)
    assert state(model, 599) == "key_expired"
    assert state(model, 700) == "ok"
