"""Rules of checkpoints: when one is due, the tasks that a cut one leaves out, and the invariants of the content."""

from typing import Any

import pytest

from app.memory.rules.checkpoints import Activity, CheckpointPolicy, due_reason, find_violations, unreachable_tasks

_POLICY = CheckpointPolicy()


@pytest.mark.parametrize(
    ("since", "reason"),
    [
        (None, "the first"),
        (Activity(seconds=29, completions=500, changes=5000), None),
        (Activity(seconds=30, completions=50, changes=60), "50 tasks completed"),
        (Activity(seconds=299, completions=49, changes=1999), None),
        (Activity(seconds=30, completions=0, changes=2000), "2000 changes"),
        (Activity(seconds=300, completions=0, changes=0), "300 s passed"),
        (Activity(seconds=199, completions=50, changes=60, last_took=20), None),
        (Activity(seconds=200, completions=50, changes=60, last_took=20), "50 tasks completed"),
        (Activity(seconds=300, completions=0, changes=0, last_took=100), "300 s passed"),
        (Activity(seconds=299, completions=50, changes=60, is_behind=True), None),
        (Activity(seconds=300, completions=50, changes=60, is_behind=True), "50 tasks completed"),
    ],
)
def test_when_a_checkpoint_is_due(since: Activity | None, reason: str | None) -> None:
    assert due_reason(since, _POLICY) == reason


def test_what_would_wait_for_ever_is_left_out() -> None:
    edges = [("b", "a"), ("c", "b"), ("d", "c"), ("e", "x"), ("f", "e"), ("f", "a"), ("g", "f")]
    assert unreachable_tasks({"a", "b", "c", "d", "e", "f", "g"}, edges) == {"e", "f", "g"}
    assert unreachable_tasks({"a"}, []) == set()


def _task(name: str, **changes: Any) -> dict[str, Any]:
    usual = {"id": name, "state": "pending", "worker_id": None, "blockers": 0, "token": 0, "failures": 0, "rescues": 0}
    return {**usual, **changes}


def _content(**changes: Any) -> dict[str, Any]:
    tasks = [_task("a", state="executing", worker_id="w", token=2, failures=1), _task("b", state="blocked", blockers=1)]
    usual = {
        "format": 1,
        "event_cursor": "17-23",
        "counts": {"tasks": 2, "leased": 1, "dependencies": 1, "context": 0},
        "tasks": tasks,
        "dependencies": [{"task_id": "b", "depends_on": "a"}],
        "context": [],
        "taken_at": "2026-01-01T00:00:00+00:00",
        "is_cut": False,
    }
    return {**usual, **changes}


def test_content_that_agrees_with_itself() -> None:
    assert find_violations(_content()) == []
    weighted = {"id": "b", "state": None, "objective": None, "created_by": None, "started_at": None}
    running = {"id": "a", "state": "running", "objective": "to know", "created_by": "me", "started_at": "2026-12-01"}
    assert find_violations(_content(goals=[weighted, running])) == []


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"format": 2}, "format"),
        ({"event_cursor": None}, "not complete"),
        ({"event_cursor": "17"}, "no place among events"),
        ({"event_cursor": f"{10**18}-1"}, "no place among events"),
        ({"tasks": None}, "not complete"),
        ({"taken_at": None}, "does not say when"),
        ({"is_cut": None}, "does not say when"),
        ({"goals": 5}, "its goals are no list of rows"),
        ({"goals": [None]}, "its goals are no list of rows"),
        ({"goals": [{"state": "running", "objective": None}]}, "what it is for"),
        ({"goals": [{"state": "running", "started_at": None}]}, "when it began"),
        ({"config_versions": [{}]}, "not complete"),
        ({"config_versions": [{"version": "x"}]}, "has no number"),
        ({"counts": {}}, "not complete"),
        ({"counts": {"tasks": 3, "leased": 1, "dependencies": 1, "context": 0}}, "3 tasks"),
        ({"dependencies": []}, "1 unmet"),
        ({"dependencies": [{"task_id": "b", "depends_on": "z"}]}, "waits for z"),
        ({"tasks": [_task("a", state="executing"), _task("b", state="blocked", blockers=1)]}, "worker"),
        ({"tasks": [_task("a"), _task("a")]}, "2 times"),
        ({"tasks": [_task("a", failures=2, token=1), _task("b")]}, "token"),
        (
            {"tasks": [_task("a", state="assigned", worker_id="w"), _task("b", state="assigned", worker_id="w")]},
            "leases",
        ),
    ],
)
def test_content_that_does_not(changes: dict[str, Any], said: str) -> None:
    assert any(said in sentence for sentence in find_violations(_content(**changes)))
