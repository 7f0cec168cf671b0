"""`convener tasks export-trace` against the real service, and what the simulation makes of it."""

import csv
import gzip
import json
from datetime import datetime
from pathlib import Path
from uuid import uuid4

from tests.support.command_line import CommandLine, Service


async def _history(convener: CommandLine, live_service: Service, goal: str) -> list[str]:
    """Two tasks that completed, the second after the first, and one that failed."""
    first = (await convener("tasks", "submit", "--agent", "ranking", "--goal", goal)).out.strip()
    second = str(uuid4())
    batch = json.dumps([{"id": second, "agent_type": "evolution", "goal_id": goal, "depends_on": [first]}])
    assert (await convener("tasks", "submit", "--file", "-", stdin=batch)).code == 0
    await _completed(convener, live_service, "ranking", first)
    await _completed(convener, live_service, "evolution", second)
    await convener("tasks", "submit", "--agent", "ranking", "--goal", goal, "--priority", "critical")
    await live_service.work("ranking", error="broken")
    return [first, second]


async def _completed(convener: CommandLine, live_service: Service, agent: str, task_id: str) -> None:
    """Work until this task is done: others may have left some of theirs behind."""
    while (await convener("tasks", "get", task_id, "-o", "json")).json["state"] != "completed":
        await live_service.work(agent)


async def test_a_history_is_exported_and_simulated(
    convener: CommandLine, live_service: Service, goal: str, tmp_path: Path
) -> None:
    ids = await _history(convener, live_service, goal)
    first, second = [(await convener("tasks", "get", each, "-o", "json")).json for each in ids]
    file = tmp_path / "mine.csv.gz"
    done = await convener("tasks", "export-trace", str(file), "--goal", goal)
    assert (done.code, done.out.split()[:3]) == (0, ["wrote", "2", "tasks"])
    rows = {row["agent_type"]: row for row in csv.DictReader(gzip.decompress(file.read_bytes()).decode().splitlines())}
    assert datetime.fromisoformat(rows["ranking"]["arrival"]) == datetime.fromisoformat(first["created_at"])
    # It could run once what it waited for was done.
    assert datetime.fromisoformat(rows["evolution"]["arrival"]) == datetime.fromisoformat(first["finished_at"])
    ran = datetime.fromisoformat(second["finished_at"]) - datetime.fromisoformat(second["leased_at"])
    assert abs(float(rows["evolution"]["service_seconds"]) - ran.total_seconds()) < 0.0011
    simulated = await convener("simulate", str(file), "--min", "1", "-o", "json")
    assert (simulated.code, simulated.err) == (0, "")
    (run,) = simulated.json["runs"]
    assert (run["tasks"], run["breaches"]) == (2, 0)


async def test_a_file_is_never_overwritten_or_left_empty(convener: CommandLine, goal: str, tmp_path: Path) -> None:
    file = tmp_path / "mine.csv"
    nothing = await convener("tasks", "export-trace", str(file), "--goal", goal)
    assert (nothing.code, file.exists()) == (5, False)
    assert "no completed task" in nothing.err
    file.write_text("precious")
    taken = await convener("tasks", "export-trace", str(file))
    assert (taken.code, file.read_text()) == (2, "precious")
    assert "exists" in taken.err
