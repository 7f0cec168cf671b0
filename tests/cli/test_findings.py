"""Checks made from what the service knows of itself: each says what is wrong, and by which commands it is mended."""

from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from app.cli import findings
from app.cli.checks import Check, Status
from app.health.rules.checks import alert_symptoms
from app.health.rules.snapshot import FOR_ALERTS, ModelTrouble, Running
from app.kernel.agents import AgentType
from app.llm.rules.conditions import ServiceState
from tests.support.command_line import parse
from tests.support.snapshots import NOON, well

_ID = "0190a5b2-0000-7000-8000-000000000001"
_POISON = {"id": _ID, "agent_type": "ranking", "error": {"message": "given up after 4 lost workers: killed"}}
_KEY = {"id": "a1", "label": "me", "role": "operator", "namespace": None}


def _key(days: float | None) -> dict[str, Any]:
    end = None if days is None else (datetime.now(UTC) + timedelta(days=days)).isoformat()
    return {**_KEY, "expires_at": end}


@pytest.mark.parametrize(
    ("check", "status", "words"),
    [
        (findings.clock_check(-1, "the service's"), Status.OK, "agree"),
        (findings.clock_check(-61, "the service's"), Status.WARNING, "the service's clock is 61 s behind"),
        (findings.key_check(_key(None)), Status.OK, "operator of the whole service"),
        (findings.key_check(_key(90)), Status.OK, "expires in 89 d"),
        (findings.key_check(_key(3.5)), Status.WARNING, "expires in 3 d"),
        (findings.letters_check([]), Status.OK, "no task"),
        (findings.letters_check([_POISON]), Status.WARNING, "given up after 4 lost workers"),
        (findings.mode_check("production", 10, 1000, 10), Status.OK, "10 live"),
        (findings.mode_check("production", 10, 1000, 3), Status.FAILED, "10 to 1,000 workers; 3 live"),
        (findings.model_check("m", ModelTrouble()), Status.OK, "ok"),
        (findings.model_check("m", ModelTrouble(key_seconds_left=3e6)), Status.OK, "ok"),
        (findings.model_check("m", ModelTrouble(key_seconds_left=7200)), Status.WARNING, "expires in 2 h"),
        (findings.model_check("m", ModelTrouble(key_seconds_left=0)), Status.FAILED, "has expired"),
        *(
            (findings.model_check("argo:gpt 5", ModelTrouble(state=state, until=NOON)), Status.FAILED, "2026-11-24")
            for state in ServiceState
            if ModelTrouble(state=state).is_out_of_order
        ),
    ],
)
def test_each_finding_has_its_mend(check: Check, status: Status, words: str) -> None:
    assert (check.status, words in check.detail) == (status, True), check
    assert bool(check.remedy) == (status is not Status.OK)
    for command in check.commands:
        parse(command)


def test_a_variable_that_names_another_mode_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CONVENER_MODE", "production")
    check = findings.mode_check("development", 2, 5, 3)
    assert (check.status, check.commands) == (Status.WARNING, ["convener config mode production"])
    parse(check.commands[0])


def test_what_only_alerts_tell_is_told_once() -> None:
    stuck = well(running={AgentType.RANKING: Running(longest_seconds=99.0, overdue=1)})
    symptoms, _ = alert_symptoms(stuck, FOR_ALERTS)
    (check,) = findings.symptom_checks(symptoms)
    assert (check.name, check.status, check.commands) == (
        "alert: stuck_executing",
        Status.FAILED,
        ["convener workers ls"],
    )
