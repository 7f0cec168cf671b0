"""`convener tasks logs` against the real service."""

import asyncio
import json
from typing import Any
from uuid import uuid4

from tests.support.command_line import CommandLine, Service

_OUTPUT: list[dict[str, Any]] = [
    {"stream": "stdout", "start": 0, "text": "one\tword\x1b[2J\r\n"},
    {"stream": "stderr", "start": 0, "text": "INFO agent: logged\n"},
    {"stream": "stdout", "start": 1000, "text": "no end"},
]
_SHOWN = "one\tword\\x1b[2J\\r\nINFO agent: logged\nno end\n"


async def _submitted(convener: CommandLine) -> str:
    return (await convener("tasks", "submit", "--agent", "evolution")).out.strip()


async def test_what_was_written_is_shown_without_what_steers_terminals(
    convener: CommandLine, live_service: Service
) -> None:
    task_id = await _submitted(convener)
    await live_service.work("evolution", output=_OUTPUT)
    shown = await convener("tasks", "logs", task_id)
    assert (shown.code, shown.out) == (0, _SHOWN)
    assert shown.err == "986 bytes of stdout were not kept\n"
    assert (await convener("tasks", "logs", task_id, "--stream", "stderr")).out == "INFO agent: logged\n"
    for form in ("table", "json"):
        missing = await convener("tasks", "logs", task_id, "--attempt", "2", "-o", form)
        assert (missing.code, missing.out) == (5, "")
        assert f"there is no attempt 2 of {task_id}; the latest is 1" in missing.err
    pieces = [json.loads(line) for line in (await convener("tasks", "logs", task_id, "-o", "json")).out.splitlines()]
    assert [piece["text"] for piece in pieces] == [piece["text"] for piece in _OUTPUT]


async def test_a_follower_sees_all_and_ends_with_the_task(convener: CommandLine, live_service: Service) -> None:
    task_id = await _submitted(convener)
    following = asyncio.create_task(convener("tasks", "logs", task_id, "-f"))
    await asyncio.sleep(0.3)
    await live_service.work("evolution", output=_OUTPUT)
    async with asyncio.timeout(60):
        shown = await following
    assert (shown.code, shown.out) == (0, _SHOWN)


async def test_there_is_no_output_of_what_does_not_exist(convener: CommandLine) -> None:
    missing = await convener("tasks", "logs", str(uuid4()))
    assert (missing.code, missing.out) == (5, "")
