"""Rules of restores: the offset of transactions, and tasks without their leases."""

from datetime import UTC, datetime, timedelta
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from app.memory.rules.backups import next_offset, without_lease

# Seconds from 1970 to 2020, and to 2085.
_MOMENTS = st.integers(1_577_836_800, 3_629_059_200).map(lambda seconds: datetime.fromtimestamp(seconds, UTC))


@given(st.integers(0, 10**17), _MOMENTS)
def test_there_is_room_for_what_was_counted_since_the_backup(highest: int, moment: datetime) -> None:
    assert next_offset(highest, moment) - highest >= 10**12
    # Cursors have 18 digits.
    assert next_offset(highest, moment) < 10**18 - 10**16


@given(st.integers(0, 10**13), st.integers(1, 10**6))
def test_a_later_restore_of_the_same_is_beyond_what_the_earlier_has_counted(highest: int, seconds: int) -> None:
    moment = datetime(2026, 12, 1, tzinfo=UTC)
    later = moment + timedelta(seconds=seconds)
    assert next_offset(highest, later) - next_offset(highest, moment) >= seconds * 10**8


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
