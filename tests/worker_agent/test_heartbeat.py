"""The thread that sends heartbeats, and when it sends the next one."""

import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from queue import SimpleQueue

import pytest

from tests.worker_agent.fake_control_plane import Answer, Call, FakeControlPlane
from tests.worker_agent.machines import registration
from tests.worker_agent.waiting import PATIENCE
from worker_agent import events as ev
from worker_agent.heartbeat import DaemonStatus, HeartbeatSender
from worker_agent.local_errors import LocalErrors
from worker_agent.outage import Outage
from worker_agent.transport import Transport

Begin = Callable[[float], SimpleQueue[ev.Event]]


@pytest.fixture
def begin(url: str) -> Iterator[Begin]:
    """Starts to send, at an interval; what it posts comes into the queue."""
    senders: list[HeartbeatSender] = []

    def start(interval: float) -> SimpleQueue[ev.Event]:
        events: SimpleQueue[ev.Event] = SimpleQueue()
        place = replace(registration(), heartbeat_interval_seconds=interval)
        errors = LocalErrors()
        status = DaemonStatus(registration_number=1, registration=place)
        sender = HeartbeatSender(
            Transport(url), status=lambda: status, post=events.put, errors=errors, outage=Outage(errors)
        )
        senders.append(sender)
        sender.start()
        return events

    yield start
    for sender in senders:
        sender.stop()


@pytest.mark.parametrize("status", [429, 503])
def test_whoever_names_a_time_is_asked_then_or_after_an_interval(
    plane: FakeControlPlane, begin: Begin, status: int
) -> None:
    plane.script["heartbeat"] += [Answer(status=status, headers=(("retry-after", "30"),))] * 3
    begin(0.5)
    first, second, third = plane.wait_for("heartbeat", 3)
    assert second.at - first.at >= 0.45
    assert third.at - second.at >= 0.45


def test_answers_that_come_late_are_waited_for_longer(plane: FakeControlPlane, begin: Begin) -> None:
    """A control plane that takes 1.2 s to answer counted the worker as ready, which never heard of it."""
    usual = plane._heartbeat

    def answer_late(call: Call) -> Answer:
        time.sleep(1.2)
        return usual(call)

    plane._heartbeat = answer_late  # type: ignore[method-assign]
    events = begin(0.2)
    for _ in range(2):
        assert isinstance(events.get(timeout=PATIENCE), ev.HeartbeatAnswered)
    assert len(plane.of("heartbeat")) <= 4, "the limit came down again at once"
