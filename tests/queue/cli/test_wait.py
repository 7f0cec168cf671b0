"""Waiting by events goes on where an outage began, and does not go on for ever."""

import time
from collections.abc import Callable

import httpx
import pytest

from app.queue.cli import wait
from app.terminal.client import Client, Unreachable
from app.terminal.connection import Access
from app.terminal.failures import ExitCode, Failure


def client(answer: Callable[[httpx.Request], httpx.Response]) -> Client:
    return Client(Access(url="http://convener.test", key="cvn_id_secret"), transport=httpx.MockTransport(answer))


def event(task_id: str, kind: str) -> dict[str, str]:
    return {"task_id": task_id, "kind": kind}


def test_an_outage_is_waited_out_and_no_event_is_read_twice(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(time, "sleep", lambda _: None)
    pages = {
        "1-1": [event("a", "task.executing"), event("other", "task.completed"), event("a", "task.completed")],
        "1-2": [event("b", "task.retrying"), event("b", "task.failed"), event("d", "task.displaced")],
    }
    asked: list[str] = []

    def answer(request: httpx.Request) -> httpx.Response:
        if request.url.path != "/events":  # where this machine is slow, it looks why they have not finished
            return httpx.Response(404, json={})
        after = request.url.params["after"]
        asked.append(after)
        if asked.count(after) == 1:
            raise httpx.ConnectError("refused")
        if asked.count(after) == 2:
            return httpx.Response(502, text="<html>")  # a proxy before a service that starts again
        assert request.url.params["goal_id"] == "g"
        return httpx.Response(200, json={"items": pages[after], "next": "1-2" if after == "1-1" else "1-3"})

    known = {"a": "pending", "b": "executing", "c": "cancelled", "d": "pending"}
    ended = wait.until_finished(client(answer), "1-1", known, goal="g")
    assert ended == {"a": "completed", "b": "failed", "c": "cancelled", "d": "failed"}
    assert asked == ["1-1"] * 3 + ["1-2"] * 3


def test_an_outage_that_does_not_end(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = iter(range(0, 1000, 7))
    monkeypatch.setattr(time, "sleep", lambda _: None)
    monkeypatch.setattr(time, "monotonic", lambda: float(next(clock)))

    def answer(_: httpx.Request) -> httpx.Response:
        raise httpx.ConnectError("refused")

    with pytest.raises(Unreachable):
        wait._read_patiently(client(answer), "1-1", None, 1.0)


def test_what_is_finished_already_needs_no_waiting() -> None:
    def answer(_: httpx.Request) -> httpx.Response:
        raise AssertionError("nothing is to be asked")

    assert wait.until_finished(client(answer), "1-1", {"a": "failed"}, goal=None) == {"a": "failed"}


def test_a_task_that_a_restore_has_taken_away_is_not_waited_for(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """It was, without end: no event tells of its end."""
    monkeypatch.setattr(wait, "_FIRST_LOOK_SECONDS", 0.0)

    def answer(request: httpx.Request) -> httpx.Response:
        assert request.url.path == "/tasks/a/why"
        return httpx.Response(404, json={"code": "task_not_found"})

    with pytest.raises(Failure, match="the task a is no more") as caught:
        wait.until_finished(client(answer), "1-1", {"a": "pending"}, goal=None)
    assert caught.value.code is ExitCode.NOT_FOUND
    assert "goes on" not in capsys.readouterr().err


def test_a_wait_that_an_outage_ends_says_that_the_task_goes_on(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """It told to try again, and who submitted again had it twice."""
    monkeypatch.setattr(wait, "_MAX_OUTAGE_SECONDS", -1.0)

    def answer(_: httpx.Request) -> httpx.Response:
        raise httpx.ConnectError("refused")

    with pytest.raises(Unreachable):
        wait.until_finished(client(answer), "1-1", {"a": "pending"}, goal=None)
    assert "goes on" in capsys.readouterr().err


def test_an_interrupted_wait_says_that_the_task_goes_on(capsys: pytest.CaptureFixture[str]) -> None:
    def answer(_: httpx.Request) -> httpx.Response:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        wait.until_finished(client(answer), "1-1", {"a": "pending"}, goal=None)
    assert "goes on" in capsys.readouterr().err
