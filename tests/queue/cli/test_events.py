"""`convener events`: what was, and what comes."""

import asyncio
import json
import os
import signal
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from tests.support.command_line import CommandLine


async def _submitted(convener: CommandLine, goal: str) -> str:
    done = await convener("tasks", "submit", "--agent", "meta_review", "--goal", goal)
    assert (done.code, done.err) == (0, "")
    return done.out.strip()


@asynccontextmanager
async def _running(convener: CommandLine, *arguments: str) -> AsyncIterator[asyncio.subprocess.Process]:
    """The command as a process of its own, for as long as the block lasts."""
    piped = asyncio.subprocess.PIPE
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "app.cli", *arguments),
        stdout=piped,
        stderr=piped,
        env={**os.environ, **convener.environment, "PYTHONUNBUFFERED": "1"},
    )
    try:
        yield process
    finally:
        if process.returncode is None:
            process.kill()
        await process.communicate()


async def test_events_of_a_goal(convener: CommandLine, goal: str) -> None:
    ids = [await _submitted(convener, goal) for _ in range(2)]
    await convener("tasks", "cancel", *ids, "--reason", "enough")
    page = (await convener("events", "--goal", goal, "-o", "json")).json
    assert [event["task_id"] for event in page["items"]] == [*ids, *ids]
    only = (await convener("events", "--goal", goal, "--kind", "cancelled", "--kind", "failed", "-o", "json")).json
    assert only["items"] == page["items"][2:]
    after = page["items"][0]["cursor"]
    rest = (await convener("events", "--goal", goal, "--after", after, "--limit", "2", "-o", "json")).json
    assert rest["items"] == page["items"][1:3]
    table = (await convener("events", "--goal", goal, "--limit", "3", COLUMNS="150")).out.splitlines()
    assert table[0].split() == ["AT", "EVENT", "TASK", "AGENT", "GOAL", "DETAIL"]
    assert [line.split()[2] for line in table[1:]] == ["submitted", "submitted", "cancelled"]
    assert "enough" in table[3]


async def test_events_since_a_time(convener: CommandLine, goal: str) -> None:
    task_id = await _submitted(convener, goal)
    for words in (("--since", "1h"), ("--since", "1h", "--follow", "--limit", "1")):
        shown = await convener("events", "--goal", goal, *words)
        assert (shown.code, task_id in shown.out) == (0, True), shown
    assert (await convener("events", "--goal", goal, "--since", "2100-01-01", "-o", "json")).json["items"] == []
    assert (await convener("events", "--since", "1h", "--after", "1-1")).code == 2


async def test_following_shows_each_event_as_it_comes(convener: CommandLine, goal: str) -> None:
    first = await _submitted(convener, goal)
    cursor = (await convener("events", "--goal", goal, "-o", "json")).json["next"]
    wanted = ("events", "--follow", "--after", cursor, "--goal", goal, "--kind", "cancelled")
    async with _running(convener, *wanted, "-o", "json") as lines, _running(convener, *wanted, "--limit", "2") as shown:
        assert lines.stdout is not None
        second = await _submitted(convener, goal)
        for task_id in (first, second):
            await convener("tasks", "cancel", task_id, "--reason", "enough")
            async with asyncio.timeout(30):
                event = json.loads(await lines.stdout.readline())
            assert (event["kind"], event["task_id"]) == ("task.cancelled", task_id)
        async with asyncio.timeout(30):
            out, err = await shown.communicate()
        assert (shown.returncode, err) == (0, b"")
        assert [line.split()[3:] for line in out.decode().splitlines()] == [
            [task_id, "meta_review", goal, "enough"] for task_id in (first, second)
        ]
        lines.send_signal(signal.SIGINT)
        async with asyncio.timeout(30):
            _, err = await lines.communicate()
        assert b"Traceback" not in err
