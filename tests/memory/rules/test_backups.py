"""Rules of restores: the offset of transactions, and tasks without their leases."""

from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from app.memory.rules.backups import next_offset, without_lease


@given(st.integers(0, 10**17))
def test_there_is_room_for_what_was_counted_since_the_backup(highest: int) -> None:
    assert 10**12 <= next_offset(highest) - highest <= 2 * 10**12
    assert next_offset(next_offset(highest)) > next_offset(highest)


def _task(**changes: Any) -> dict[str, Any]:
    usual = {"id": "a", "state": "executing", "agent_type": "ranking", "priority": 2, "worker_id": "w", "tag": 3.0}
    lease = {"leased_at": "t", "lease_expires_at": "t", "deadline_at": "t", "waiting_since": "t"}
    kept = {"token": 4, "failures": 1, "rescues": 2, "progress": {"percent": 1}, "checkpoint": {"n": 1}}
    return {**usual, **lease, **kept, **changes}


def test_a_leased_task_goes_back_with_all_that_it_has_achieved() -> None:
    task = without_lease(_task(), "now")
    assert (task["state"], task["worker_id"], task["waiting_since"], task["tag"]) == ("pending", None, "now", 3.0)
    assert (task["leased_at"], task["lease_expires_at"], task["deadline_at"]) == (None, None, None)
    for name in ("token", "failures", "rescues", "progress", "checkpoint"):
        assert task[name] == _task()[name]


def test_others_stay_as_they_are() -> None:
    for state in ("blocked", "pending"):
        task = _task(state=state, worker_id=None)
        assert without_lease(task, "now") == task
