"""An outage of the control plane is told of once it lasts, once a minute, and when it is over."""

import pytest

from worker_agent.local_errors import LocalErrors
from worker_agent.outage import Outage
from worker_agent.transport import ApiUnavailable

REFUSED = ConnectionError("refused")


class Subject:
    """An outage by a clock that stands still until it is moved, and what is told of it."""

    def __init__(self, caplog: pytest.LogCaptureFixture) -> None:
        self.now = 0.0
        self.errors = LocalErrors()
        self.outage = Outage(self.errors, lambda: self.now)
        self._caplog = caplog

    def fail(self, seconds: float, *callers: str, error: Exception = REFUSED) -> None:
        """Both callers, or these, try again every half second, in vain."""
        for _ in range(round(seconds * 2)):
            for caller in callers or ("calls", "heartbeat"):
                self.outage.note_failure(caller, error)
            self.now += 0.5

    def lines(self) -> list[str]:
        """The lines since the last look."""
        messages = self._caplog.messages[:]
        self._caplog.clear()
        return messages


@pytest.fixture
def subject(caplog: pytest.LogCaptureFixture) -> Subject:
    return Subject(caplog)


def test_a_short_one_leaves_no_word(subject: Subject) -> None:
    subject.fail(4.5)
    for caller in ("calls", "heartbeat"):
        subject.outage.note_answer(caller)
    subject.fail(4.5)
    assert (subject.lines(), subject.errors.take()) == ([], [])


def test_a_long_one_has_a_line_a_minute_and_one_at_its_end(subject: Subject) -> None:
    subject.fail(130)
    assert subject.lines() == [f"the control plane has been away for {n} s, trying again" for n in (5, 65, 125)]
    assert len(subject.errors.take()) == 3
    subject.outage.note_answer("heartbeat")
    assert subject.lines() == [], "calls still fail"
    subject.outage.note_answer("calls")
    assert subject.lines() == ["the control plane serves again after 130 s"]
    subject.outage.note_answer("calls")
    assert subject.lines() == []


def test_one_that_asks_to_wait_is_not_away(subject: Subject) -> None:
    full = ApiUnavailable("429 pool_full: the configuration allows 6 workers", 10.0, status=429)
    subject.fail(6, error=full)
    assert subject.lines() == ["the control plane has asked to wait for 5 s, trying again"]
    assert subject.errors.take()[0]["message"].endswith("429 pool_full: the configuration allows 6 workers")


def test_whoever_waits_for_an_answer_does_not_fail(subject: Subject) -> None:
    subject.fail(6)
    subject.now += 14
    subject.outage.note_answer("heartbeat")
    assert len(subject.lines()) == 1
    subject.now += 5
    subject.outage.note_answer("heartbeat")
    assert subject.lines() == ["the control plane serves again after 25 s"]


def test_calls_that_fail_beside_heartbeats_are_told_of(subject: Subject) -> None:
    for _ in range(5):
        subject.fail(2, "calls")
        subject.outage.note_answer("heartbeat")
    assert subject.lines() == ["the control plane has been away for 5 s, trying again"]
