"""`convener queues` against the real service."""

import json
import time

import pytest

from app.kernel.access import Role
from tests.support.command_line import CommandLine, Service


async def test_the_board_shows_depth_and_capacity(convener: CommandLine, goal: str) -> None:
    await convener("tasks", "submit", "--agent", "generation", "--goal", goal, "--priority", "high")
    done = await convener("queues", "status")
    assert (done.code, done.err) == (0, "")
    assert all(len(line) <= 80 for line in done.out.splitlines() if not line.startswith("Warning"))
    high = next(line for line in done.out.splitlines() if line.startswith("high"))
    assert int(high.split()[1]) >= 1
    # Tasks of lower priorities are no tasks of this one, but take up its quota.
    await convener("tasks", "submit", "--agent", "generation", "--goal", goal, "--priority", "low")
    depth = (await convener("queues", "status", "-o", "json")).json["depth"]
    rows = {line.split()[0]: line.split() for line in (await convener("queues", "status")).out.splitlines() if line}
    own = {name: f"{number:,}" for name, number in depth["by_priority"].items()}
    assert {name: rows[name][1] for name in own} == own
    assert rows["critical"][2:4] == [f"{depth['total']:,}", "/"]
    generation = next(line for line in done.out.splitlines() if line.startswith("generation"))
    assert int(generation.split()[1]) >= 1
    assert "of 10,000" in done.out
    answer = (await convener("queues", "status", "-o", "json")).json
    assert answer["queues"]["generation"]["high"]["pending"] >= 1


async def test_watch_writes_an_object_a_line(convener: CommandLine, monkeypatch: pytest.MonkeyPatch) -> None:
    looks = iter(range(2))

    def sleep(_: float) -> None:
        if next(looks) == 1:
            raise KeyboardInterrupt

    monkeypatch.setattr(time, "sleep", sleep)
    done = await convener("queues", "status", "--watch", "-o", "json")
    assert ["depth" in json.loads(line) for line in done.out.splitlines()] == [True] * 2
    assert done.code == 130


async def test_pause_and_resume(convener: CommandLine) -> None:
    try:
        done = await convener("queues", "pause", "ranking", "MetaReview", "--reason", "upkeep")
        assert (done.code, done.out) == (0, "paused: meta_review, ranking\n")
        assert "s ago by key" in (await convener("queues", "status")).out
        done = await convener("queues", "resume", "ranking", "-o", "json")
        assert [(pause["agent_type"], pause["reason"]) for pause in done.json["paused"]] == [("meta_review", "upkeep")]
        assert len((await convener("queues", "pause", "--all", "-o", "json")).json["paused"]) == 6
    finally:
        done = await convener("queues", "resume", "--all")
    assert (done.code, done.out) == (0, "nothing is paused\n")


async def test_a_pause_shows_in_the_status(convener: CommandLine, goal: str) -> None:
    await convener("tasks", "submit", "--agent", "generation", "--goal", goal)
    try:
        await convener("queues", "pause", "generation", "--reason", "[bold]upkeep\x1b[2J")
        for command in (["status"], ["queues", "status"]):
            out = (await convener(*command)).out
            warning = next(line for line in out.splitlines() if line.startswith("Warning generation is paused"))
            assert "[bold]upkeep" in out
            assert "\x1b" not in warning
    finally:
        await convener("queues", "resume", "generation")


async def test_nothing_is_paused_by_mistake(convener: CommandLine, live_service: Service) -> None:
    for arguments in (["pause"], ["resume"], ["pause", "ranking", "--all"], ["pause", "cooking"]):
        done = await convener("queues", *arguments)
        assert (done.code, done.out) == (2, ""), arguments
    assert (await convener("queues", "pause", "--all", CONVENER_KEY=live_service.keys[Role.READER])).code == 4
    assert (await convener("queues", "status", "-o", "json")).json["paused"] == []


async def test_weights(convener: CommandLine, goal: str) -> None:
    assert (await convener("queues", "weight", goal)).out == f"{goal} has the weight 1\n"
    assert (await convener("queues", "weight", goal, "2.5", "-o", "json")).json == {"goal_id": goal, "weight": 2.5}
    assert (await convener("queues", "weight", goal)).out == f"{goal} has the weight 2.5\n"
    assert (await convener("queues", "weight", goal, "0")).code == 2
