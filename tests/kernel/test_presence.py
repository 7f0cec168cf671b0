"""When silence says nothing about callers, because they could not reach the API."""

import pytest

from app.kernel.presence import ApiProcess, PresencePolicy, absence_reason
from app.workers.rules.workers import HealthPolicy


def _process(silent: float, present: float, *, was_away: bool = False, is_connected: bool = True) -> ApiProcess:
    return ApiProcess(silent_seconds=silent, present_seconds=present, was_away=was_away, is_connected=is_connected)


@pytest.mark.parametrize(
    ("processes", "reason"),
    [
        ([], None),
        ([_process(0.4, 3600)], None),
        ([_process(17, 3600)], "away for 17 s"),
        ([_process(7200, 3600, is_connected=False)], "away for 7200 s"),
        ([_process(0.4, 3, was_away=True)], "back for 3 s"),
        ([_process(0.4, 3)], "back for 3 s"),
        ([_process(0.4, 7, was_away=True)], None),
        # Of several: one is paused, was paused, was killed, is new, or has been away for too long.
        ([_process(0.4, 3600), _process(17, 3600)], "a process of the API has been away for 17 s"),
        ([_process(0.4, 3600), _process(0.4, 3, was_away=True)], "was away until a moment ago"),
        ([_process(0.4, 3600), _process(17, 3600, is_connected=False)], None),
        ([_process(0.4, 3600), _process(0.4, 3)], None),
        ([_process(0.4, 3600), _process(61, 3600)], None),
    ],
)
def test_the_service_itself_is_asked_first(processes: list[ApiProcess], reason: str | None) -> None:
    answer = absence_reason(processes, PresencePolicy())
    assert answer == reason if reason is None else reason in str(answer)


@pytest.mark.parametrize(
    ("interval", "lost_after", "away_after", "grace"),
    [(5, 15, 5, 6), (1, 4, 1.5, 2), (10, 60, 5, 11), (0.2, 0.5, 1.5, 1.2)],
)
def test_the_grace_goes_by_the_interval_between_heartbeats(
    interval: float, lost_after: float, away_after: float, grace: float
) -> None:
    policy = HealthPolicy(heartbeat_interval_seconds=interval, lost_after_seconds=lost_after).presence
    assert (policy.away_after_seconds, policy.grace_seconds) == (away_after, grace)
