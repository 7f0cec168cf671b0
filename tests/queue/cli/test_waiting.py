"""Whoever waits for a task learns what for, and may give up: the task stays where it is."""

import asyncio
import json
import os
import signal
import sys
from pathlib import Path
from typing import Any

import httpx
import pytest

from app.kernel.access import Role
from app.queue.cli.waiting import reason_for
from app.terminal.client import Client
from app.terminal.connection import Access
from tests.support.command_line import CommandLine, Service

_MEND = {"text": "end it", "command": "convener queues resume ranking", "call": None}


def _cause(code: str, text: str, *mends: dict[str, Any]) -> dict[str, Any]:
    return {"code": code, "text": text, "since": "s", "until": None, "mends": list(mends)}


@pytest.mark.parametrize(
    ("cause", "blocker", "text"),
    [
        (_cause("paused", "it is paused", _MEND), None, "it is paused; `convener queues resume ranking`"),
        (_cause("handed_back", "it was handed back"), None, "it was handed back: argo:x cannot be had \\x1b[2J"),
        (_cause("blocked", "it is blocked"), {"cause": _cause("busy", "all are busy")}, "it is blocked; all are busy"),
    ],
)
def test_what_a_task_waits_for(cause: dict[str, Any], blocker: dict[str, Any] | None, text: str) -> None:
    answer = {"cause": cause, "blocker": blocker}
    transport = httpx.MockTransport(lambda request: httpx.Response(200, json=answer))
    client = Client(Access(url="http://convener.test", key="cvn_id_secret"), transport=transport)
    reason = reason_for(client, "t", "argo:x cannot be had\n\x1b[2J")
    assert (reason.code, reason.text, reason.subject) == (cause["code"], text, "s None")


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
