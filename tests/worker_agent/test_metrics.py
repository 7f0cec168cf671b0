"""Metrics of handlers: from the call in the handler to the batch on the wire, which counts once."""

import json
from collections.abc import Iterator
from functools import partial
from threading import Thread
from typing import Any

import pytest

from tests.worker_agent.conftest import StartWorker
from tests.worker_agent.fake_control_plane import LOST, FakeControlPlane, problem, served
from tests.worker_agent.waiting import until
from worker_agent import Task
from worker_agent.handler_messages import HandlerMessages
from worker_agent.local_errors import LocalErrors
from worker_agent.metrics import MetricsPusher
from worker_agent.transport import Transport

Json = dict[str, Any]


def _samples(plane: FakeControlPlane) -> list[Json]:
    return [sample for call in plane.of("samples") for sample in call.body["samples"]]


def test_what_a_handler_measures_is_pushed_with_its_labels(
    plane: FakeControlPlane, url: str, start_worker: StartWorker
) -> None:
    plane.submit({"do": "measure", "times": 3}, goal_id="kepler")
    worker = start_worker(url)
    plane.wait_for("complete")
    until(lambda: len(_samples(plane)) == 4)
    worker.signal()
    assert worker.exit_code() == 0
    gauge = {"name": "depth", "kind": "gauge", "agent": "generation"}
    assert _samples(plane)[:3] == [gauge | {"value": float(n)} for n in range(3)]
    assert _samples(plane)[3] == {
        "name": "hypotheses_written",
        "kind": "counter",
        "value": 3.0,
        "agent": "generation",
        "goal": "kepler",
    }
    assert {call.key for call in plane.of("samples")} == {"cvn_worker1_verysecret"}
    assert {call.path for call in plane.of("samples")} == {"/metrics/samples"}


def test_a_worker_that_measures_nothing_pushes_nothing(
    plane: FakeControlPlane, url: str, start_worker: StartWorker
) -> None:
    plane.submit({"do": "echo"})
    worker = start_worker(url)
    plane.wait_for("complete")
    worker.signal()
    assert worker.exit_code() == 0
    assert plane.of("samples") == []


class _Pushing:
    """Measurements that are pushed often, and what went wrong."""

    def __init__(self, url: str) -> None:
        self.key: str | None = "key"
        self.errors = LocalErrors()
        connect = partial(Transport, url)
        self.measurements = MetricsPusher(connect, key=lambda: self.key, errors=self.errors, interval_seconds=0.02)

    def add(self, *values: float) -> None:
        for value in values:
            self.measurements.add({"name": "depth", "kind": "gauge", "value": value})


@pytest.fixture
def pushing(url: str) -> Iterator[_Pushing]:
    pushing = _Pushing(url)
    yield pushing
    pushing.measurements.stop()


def test_a_batch_whose_answer_was_lost_is_sent_again_under_its_id(plane: FakeControlPlane, pushing: _Pushing) -> None:
    plane.script["samples"].extend([LOST, problem(503, "shutting_down")])
    pushing.add(1.0)
    calls = plane.wait_for("samples", 3)
    assert len({json.dumps(call.body, sort_keys=True) for call in calls}) == 1
    pushing.add(2.0)
    assert plane.wait_for("samples", 4)[3].body["batch_id"] != calls[0].body["batch_id"]


def test_what_is_refused_is_dropped_and_told(plane: FakeControlPlane, pushing: _Pushing) -> None:
    plane.script["samples"].append(problem(422, "too_many_series"))
    pushing.add(1.0)
    plane.wait_for("samples")
    pushing.add(2.0)
    assert [sample["value"] for sample in plane.wait_for("samples", 2)[1].body["samples"]] == [2.0]
    assert "too_many_series" in pushing.errors.take()[0]["message"]


def test_a_batch_that_an_old_key_was_refused_for_goes_with_the_next_one(
    plane: FakeControlPlane, pushing: _Pushing
) -> None:
    plane.script["samples"].append(problem(401, "unauthenticated"))
    pushing.add(1.0)
    (refused,) = plane.wait_for("samples")
    pushing.add(2.0)
    pushing.key = "the next key"
    first, second = plane.wait_for("samples", 3)[1:]
    assert (first.key, first.body) == ("the next key", refused.body)
    assert [sample["value"] for sample in second.body["samples"]] == [2.0]
    assert pushing.errors.take() == []


def test_batches_are_not_larger_than_is_taken_and_nothing_grows_without_bound(
    plane: FakeControlPlane, pushing: _Pushing
) -> None:
    pushing.key = None
    pushing.add(*map(float, range(6000)))
    pushing.key = "key"
    until(lambda: len(_samples(plane)) == 5000)
    assert [sample["value"] for sample in _samples(plane)][:1] == [1000.0]
    assert max(len(call.body["samples"]) for call in plane.of("samples")) == 1000
    assert "1000 measurements were dropped" in pushing.errors.take()[0]["message"]


def test_what_is_left_at_the_end_is_pushed(plane: FakeControlPlane, url: str) -> None:
    pushing = _Pushing(url)
    pushing.measurements = MetricsPusher(
        partial(Transport, url), key=lambda: "key", errors=pushing.errors, interval_seconds=3600
    )
    pushing.add(1.0, 2.0)
    pushing.measurements.stop()
    assert len(_samples(plane)) == 2


def test_nobody_is_there_any_more() -> None:
    plane = FakeControlPlane()
    with served(plane) as url:
        pass
    pushing = _Pushing(url)
    pushing.add(1.0)
    pushing.measurements.stop()
    assert plane.of("samples") == []


def test_a_task_says_what_is_no_metric() -> None:
    reports: list[Json] = []
    task = Task(agent_type="ranking", payload={}, report=reports.append)
    for name in ("", "Depth", "1st", "_a", "a b", "a-b", "tiefe_ä", "a" * 101):
        with pytest.raises(ValueError, match="a metric is named"):
            task.measure(name, 1)
    for value in (float("nan"), float("inf"), 1e13):
        with pytest.raises(ValueError, match="is no value"):
            task.measure("depth", value)
    with pytest.raises(ValueError, match="is no value"):
        task.measure("depth", -1, counter=True)
    assert reports == []
    task.measure("depth_2", -1.5, by_goal=True)
    assert reports == [{"measured": "depth_2", "value": -1.5, "counter": False, "by_goal": True}]


@pytest.mark.parametrize(
    "line",
    [
        b'{"measured": "No", "value": 1}',
        b'{"measured": 5, "value": 1}',
        b'{"measured": "a"}',
        b'{"measured": "a", "value": "many"}',
        b'{"measured": "a", "value": 1e300}',
        b'{"measured": "a", "value": -1, "counter": true}',
    ],
)
def test_a_program_that_measures_nonsense_is_not_passed_on(line: bytes) -> None:
    taken: list[Json] = []
    messages = HandlerMessages(taken.append)
    messages.receive(line)
    assert (taken, messages.unreadable_count) == ([], 1)
    messages.receive(b'{"measured": "a", "value": 2}')
    assert taken == [{"name": "a", "kind": "gauge", "value": 2.0, "by_goal": False}]


def test_measurements_wait_where_no_thread_can_be_started(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(_: Thread) -> None:
        raise RuntimeError("can't start new thread")

    pusher = MetricsPusher(lambda: Transport("http://127.0.0.1:1"), key=lambda: None, errors=LocalErrors())
    monkeypatch.setattr(Thread, "start", refuse)
    pusher.add({"name": "depth", "kind": "gauge", "value": 1.0})
    pusher.stop()
