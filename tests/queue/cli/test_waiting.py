"""Whoever waits for a task learns what for, and may give up: the task stays where it is."""

import asyncio
import json
import os
import signal
import sys
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import httpx
import pytest

from app.kernel.access import Role
from app.queue.cli.waiting import reason_for
from app.terminal.client import Client
from app.terminal.connection import Access
from tests.support.command_line import CommandLine, Service

Json = dict[str, Any]
_TASK: Json = {
    "id": "t",
    "state": "pending",
    "agent_type": "ranking",
    "namespace": "default",
    "goal_id": "kepler",
    "token": 3,
    "held": False,
    "run_at": None,
    "worker_id": "w",
    "worker_name": "host-1",
    "progress": None,
    "attempts": [],
    "depends_on": ["u"],
}
_FREE, _BUSY = {"capabilities": ["ranking"], "state": "ready"}, {"capabilities": ["ranking"], "state": "busy"}
_OTHER = {"capabilities": ["evolution"], "state": "ready"}
_CROWD = [{"id": str(place), "place": place} for place in range(1, 101)]
_PAUSE = {"agent_type": "ranking", "reason": "new prompts"}


def _in(seconds: float) -> str:
    return (datetime.now(UTC) + timedelta(seconds=seconds)).isoformat()


def _ended(outcome: str, message: str | None = None) -> list[Json]:
    return [{"attempt": 1, "token": 2, "outcome": outcome, "error": message and {"message": message}}]


def _answers(task: Json, **others: Any) -> dict[str, Any]:
    queue = [{"tasks": [{"id": "s", "place": 1}, {"id": "t", "place": 2}]}]
    return {
        "/tasks/t": _TASK | task,
        "/workers": {"items": others.get("workers", []), "next": None},
        "/queues": {"paused": others.get("paused", [])},
        "/queues/next": {"agents": others.get("queue", queue)},
        "/goals/kepler": {"reason": "the money is spent", "hold": "budget"},
        "/llm/models": {"items": [{"model": "argo:x", "state": "key_expired"}, {"model": "y", "state": "ok"}]},
    }


@pytest.mark.parametrize(
    ("answers", "code", "words"),
    [
        (lambda: _answers({}), "unserved", "nobody serves ranking: start a worker"),
        (lambda: _answers({}, workers=[_OTHER]), "unserved", "nobody serves ranking"),
        (
            lambda: _answers({}, workers=[_BUSY, _BUSY]),
            "busy",
            "all 2 workers that serve ranking are busy; place 2 in line",
        ),
        (lambda: _answers({}, workers=[_BUSY], queue=[{"tasks": []}]), "busy", "its place in line is not known yet"),
        (lambda: _answers({}, workers=[_BUSY], queue=[{"tasks": _CROWD}]), "busy", "more than 100 tasks are before it"),
        (lambda: _answers({}, workers=[_FREE, _BUSY]), "queued", "place 2 in line"),
        (lambda: _answers({}, paused=[_PAUSE]), "paused", "the queue of ranking is paused: new prompts"),
        (lambda: _answers({"held": True}), "held", "its goal kepler is held: the money is spent"),
        (lambda: _answers({"state": "blocked"}), "blocked", "it depends on 1 task"),
        (lambda: _answers({"run_at": _in(90)}), "delayed", "it is to run in"),
        (
            lambda: _answers({"run_at": _in(9), "attempts": _ended("failed", "KeyError: 'x'\n\x1b[2J")}),
            "retry",
            "attempt 1 failed: KeyError: 'x' \\x1b[2J; next try in",
        ),
        (
            lambda: _answers({"run_at": _in(9), "attempts": _ended("released")}),
            "model_unavailable",
            "the language model argo:x is unavailable: key expired; next try in",
        ),
        (
            lambda: _answers(
                {"state": "executing", "leased_at": _in(-12), "progress": {"percent": 40.0, "message": "half"}}
            ),
            "running",
            "running on worker host-1 since 12 s, progress 40 % (half)",
        ),
    ],
)
def test_what_a_task_waits_for(answers: Callable[[], dict[str, Any]], code: str, words: str) -> None:
    present = answers()
    transport = httpx.MockTransport(lambda request: httpx.Response(200, json=present[request.url.path]))
    client = Client(Access(url="http://convener.test", key="cvn_id_secret"), transport=transport)
    reason = reason_for(client, "t", "argo:x cannot be had (key_expired)")
    assert (reason.code, words in reason.text) == (code, True), reason


def test_a_key_that_may_see_the_task_alone_learns_its_state() -> None:
    def answer(request: httpx.Request) -> httpx.Response:
        if request.url.path == "/tasks/t":
            return httpx.Response(200, json=_TASK)
        return httpx.Response(403, json={"code": "forbidden", "title": "No"})

    client = Client(Access(url="http://convener.test", key="cvn_id_secret"), transport=httpx.MockTransport(answer))
    assert "it is pending" in reason_for(client, "t").text


async def test_the_wait_ends_in_time_and_says_why(convener: CommandLine, goal: str) -> None:
    command = ("tasks", "submit", "--agent", "proximity", "--goal", goal, "--wait", "--timeout", "3")
    done = await convener(*command, COLUMNS="300")
    assert (done.code, "is pending" in done.out) == (9, True)
    assert done.err.count("nobody serves proximity: start a worker") == 2  # while it waits, and at the end
    done = await convener(*command, "-o", "json")
    waiting, failure = map(json.loads, done.err.splitlines())
    assert (waiting["reason"], waiting["task_id"], done.json["state"]) == ("unserved", done.json["id"], "pending")
    assert (failure["exit_code"], "nobody serves" in failure["details"][0]) == (9, True)
    lines = "".join(f'{{"agent_type": "proximity", "goal_id": "{goal}"}}\n' for _ in range(2))
    done = await convener("tasks", "submit", "--file", "-", "--wait", "--timeout", "0.5", "-o", "json", stdin=lines)
    assert (done.code, [task["state"] for task in done.json["tasks"]]) == (9, ["pending", "pending"])
    assert (await convener(*command[:-3], "--timeout", "3")).code == 2
    await convener("tasks", "cancel", "--goal", goal, "--yes")


@pytest.mark.slow
async def test_ctrl_c_ends_the_wait_alone(live_service: Service, tmp_path: Path, goal: str) -> None:
    mine = {"CONVENER_URL": live_service.url, "CONVENER_KEY": live_service.keys[Role.OPERATOR]}
    environment = {**os.environ, **mine, "CONVENER_STATE_DIRECTORY": str(tmp_path)}
    words = ["-m", "app.cli", "tasks", "submit", "--agent", "proximity", "--goal", goal, "--wait", "-o", "json"]
    child = await asyncio.create_subprocess_exec(
        sys.executable, *words, env=environment, stderr=asyncio.subprocess.PIPE
    )
    assert child.stderr is not None
    async with asyncio.timeout(60):
        assert json.loads(await child.stderr.readline())["reason"] == "unserved"
        child.send_signal(signal.SIGINT)
        _, error = await child.communicate()
    assert child.returncode == 130
    remark = json.loads(error)
    assert remark["reason"] == "interrupted"
    assert "convener tasks logs" in remark["waiting"]
