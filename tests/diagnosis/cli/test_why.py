"""`convener why` against the real service."""

import json

from tests.support.command_line import CommandLine


async def test_why_a_task_waits(convener: CommandLine, goal: str) -> None:
    task_id = (await convener("tasks", "submit", "--agent", "proximity", "--goal", goal)).out.strip()
    answer = (await convener("why", task_id, "-o", "json")).json
    assert (answer["task_id"], answer["cause"]["code"], answer["start"]) == (task_id, "unserved", None)
    shown = (await convener("why", task_id, COLUMNS="200")).out
    assert "nobody serves proximity: start a worker whose handlers do" in shown
    assert "convener worker --handlers MODULE" in shown
    whole = (await convener("tasks", "get", task_id, COLUMNS="300")).out
    assert "nobody serves proximity" in whole
    line = json.dumps({"agent_type": "proximity", "depends_on": [task_id]})
    blocked = (await convener("tasks", "submit", "--file", "-", "-o", "json", stdin=line)).json["tasks"][0]["id"]
    shown = (await convener("why", blocked, COLUMNS="200")).out
    assert f"it is blocked by task {task_id}" in shown
    assert f"convener why {task_id}" in shown
    await convener("tasks", "cancel", task_id)
    assert (await convener("why", blocked, "-o", "json")).json["cause"]["code"] == "cancelled"
    assert (await convener("why", "00000000-0000-4000-8000-000000000000")).code == 5
