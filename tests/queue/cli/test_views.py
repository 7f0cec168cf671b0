"""Tasks as people see them."""

from datetime import UTC, datetime
from typing import Any

import pytest

from app.queue.cli.views import error_line, listing, task_details
from app.terminal import output
from app.terminal.client import Json

_NOW = datetime(2026, 1, 1, tzinfo=UTC)
_TASK: Json = {
    **dict.fromkeys(
        ("worker_id", "worker_name", "run_at", "leased_at", "finished_at", "deadline", "progress", "result", "error")
    ),
    **dict.fromkeys(("usage", "checkpoint", "goal_id")),
    "namespace": "default",
    "id": "0190a5b2-0000-7000-8000-000000000000",
    "state": "pending",
    "agent_type": "ranking",
    "priority": "medium",
    "attempt": 1,
    "max_attempts": 3,
    "submitted_priority": "medium",
    "rescues": 0,
    "token": 0,
    "depends_on": [],
    "created_at": "2026-01-01T00:00:00+00:00",
    "labels": {},
    "held": False,
    "payload": {},
    "attempts": [],
}


def _shown(capsys: pytest.CaptureFixture[str], thing: Any) -> str:
    output.show(thing)
    return capsys.readouterr().out


@pytest.mark.parametrize(
    ("changes", "attempt"),
    [
        ({}, "1/3"),
        ({"state": "blocked"}, "-/3"),
        ({"state": "executing", "attempt": 2, "token": 5}, "2/3"),
        ({"state": "cancelled", "finished_at": "2026-01-01T00:00:00+00:00"}, "-/3"),
        ({"state": "failed", "finished_at": "2026-01-01T00:00:00+00:00", "token": 3, "attempt": 3}, "3/3"),
    ],
)
def test_what_has_no_attempt_shows_none(
    capsys: pytest.CaptureFixture[str], changes: Json, attempt: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    assert f" {attempt} " in _shown(capsys, listing([_TASK | changes], _NOW))
    assert f"Attempt   {attempt.replace('/', ' of ')}" in _shown(capsys, task_details(_TASK | changes, _NOW))


def test_progress_has_no_more_digits_than_anybody_reads(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    task = _TASK | {"progress": {"percent": 100 / 3, "message": "on it"}}
    assert " 33 %" in _shown(capsys, listing([task], _NOW))
    assert "33 %  on it" in _shown(capsys, task_details(task, _NOW))


@pytest.mark.parametrize(("rescues", "words"), [(1, "lost workers once"), (2, "lost workers 2 times")])
def test_rescues_are_counted_in_words(capsys: pytest.CaptureFixture[str], rescues: int, words: str) -> None:
    assert words in _shown(capsys, task_details(_TASK | {"rescues": rescues}, _NOW))


def test_dependencies_are_shown_whole(capsys: pytest.CaptureFixture[str]) -> None:
    ids = ["0190a5b2-1111-7000-8000-000000000000", "0190a5b2-2222-7000-8000-000000000000"]
    shown = _shown(capsys, task_details(_TASK | {"depends_on": ids}, _NOW))
    assert f"Depends on  {ids[0]}\n" in shown
    assert ids[1] in shown


def test_a_code_of_a_foreign_worker_stays_in_its_line() -> None:
    assert error_line({"code": "a\nError: b\x1b[2J", "message": "c"}) == r"a\nError: b\x1b[2J: c"
