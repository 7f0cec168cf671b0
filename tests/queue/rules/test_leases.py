"""When a sweep takes nothing back."""

from app.queue.rules.tasks import SweepPolicy, SweepSnapshot, hold_back_reason


def _snapshot(expired: int, live: int, *, since: float = 1.0, held: float | None = None) -> SweepSnapshot:
    return SweepSnapshot(expired_count=expired, live_count=live, seconds_since_last_sweep=since, held_back_seconds=held)


def test_a_few_expired_leases_are_taken_back_at_once() -> None:
    assert hold_back_reason(_snapshot(1, 1), SweepPolicy()) is None
    assert hold_back_reason(_snapshot(3, 3), SweepPolicy()) is None
    assert hold_back_reason(_snapshot(50, 100), SweepPolicy()) is None


def test_more_than_half_at_once_wait_for_one_heartbeat_of_everybody_and_no_longer() -> None:
    assert "51 of 100" in (hold_back_reason(_snapshot(51, 100), SweepPolicy()) or "")
    assert "51 of 100" in (hold_back_reason(_snapshot(51, 100, held=4), SweepPolicy()) or "")
    assert "1 of 100" in (hold_back_reason(_snapshot(1, 100, held=4), SweepPolicy()) or "")
    assert hold_back_reason(_snapshot(51, 100, held=6), SweepPolicy()) is None
    assert hold_back_reason(_snapshot(0, 100, held=4), SweepPolicy()) is None


def test_after_a_pause_of_our_own_workers_get_time_to_renew() -> None:
    assert "no sweep ran for 60 s" in (hold_back_reason(_snapshot(1, 100, since=60), SweepPolicy()) or "")
    assert hold_back_reason(_snapshot(0, 100, since=60), SweepPolicy()) is None
