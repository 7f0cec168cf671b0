"""`convener goals`: a goal from its creation to its stop, as people and programs see it."""

import xml.etree.ElementTree
from pathlib import Path

import pytest

from app.goals.cli import chart as chart_cli
from tests.support.command_line import CommandLine


async def _create_goal(convener: CommandLine, goal: str, *more: str) -> None:
    done = await convener("goals", "create", "--id", goal, "--objective", "to [bold]know", *more)
    assert (done.code, done.out) == (0, f"{goal}\n"), done.err


async def _report(convener: CommandLine, goal: str, number: int, quality: float) -> str:
    done = await convener("goals", "report", goal, "--iteration", str(number), "--quality", str(quality))
    assert done.code == 0, done.err
    return done.out


async def test_from_creation_to_the_stop(convener: CommandLine, goal: str, tmp_path: Path) -> None:
    await _create_goal(convener, goal, "--max-iterations", "4", "--time-limit", "2h", "--compute-budget", "30min")
    await _create_goal(convener, goal, "--max-iterations", "4", "--time-limit", "2h", "--compute-budget", "30min")
    assert (await _report(convener, goal, 1, 1200)).startswith("continue: the first iteration")
    assert (await _report(convener, goal, 2, 1270)).startswith("continue: improved by 0.0994")
    assert (await _report(convener, goal, 3, 1270)).startswith("continue: no improvement")
    assert await _report(convener, goal, 4, 1310.5) == "stop: the limit of 4 iterations (4 so far) is used up\n"
    picture = tmp_path / "goal.svg"
    shown = await convener("goals", "get", goal, "--svg", str(picture))
    assert shown.code == 0, shown.err
    for text in ("to [bold]know", "stopped", "1,800", "7,200", "stop: the limit of 4", "●", "iterations"):
        assert text in shown.out
    drawn = picture.read_text()
    assert xml.etree.ElementTree.fromstring(drawn).tag.endswith("svg")
    assert drawn.count("<circle") == 4
    found = (await convener("goals", "get", goal, "-o", "json")).json
    assert [row["quality"] for row in found["history"]] == [1200, 1270, 1270, 1310.5]
    assert found["state"] == "stopped"


async def test_goals_are_paused_resumed_extended_and_stopped(convener: CommandLine, goal: str) -> None:
    await _create_goal(convener, goal)
    assert (await convener("goals", "pause", goal, "--reason", "lunch")).out == f"{goal} is paused\n"
    listed = (await convener("goals", "ls", "--state", "paused", "-o", "json")).json
    assert goal in [one["id"] for one in listed["items"]]
    assert (await convener("goals", "resume", goal)).out == f"{goal} is running\n"
    assert (await convener("goals", "extend", goal, "--max-iterations", "60")).out == f"{goal} is running\n"
    shown = (await convener("goals", "get", goal, "-o", "json")).json
    assert shown["constraints"] == {"max_iterations": 60}
    assert (await convener("goals", "extend", goal)).code == 2
    assert (await convener("goals", "stop", goal, "--reason", "answered")).out == f"{goal} is stopped\n"
    table = (await convener("goals", "ls", "--state", "stopped", "--all")).out
    assert any(line.startswith(goal) and "to [bold]know" in line for line in table.splitlines())
    refused = await convener("goals", "resume", goal)
    assert refused.code == 1
    assert "answered" in refused.err
    assert "What to do: create another goal" in refused.err


async def test_what_is_refused_is_told(convener: CommandLine, goal: str) -> None:
    assert (await convener("goals", "get", goal)).code == 5
    await _create_goal(convener, goal)
    wrong = await convener("goals", "report", goal, "--iteration", "2", "--quality", "1")
    assert "iteration 1 is the next one to report" in wrong.err
    other = await convener("goals", "create", "--id", goal, "--objective", "another")
    assert "What to do: choose another id" in other.err
    assert "exists already with another body" in other.err
    assert (await convener("goals", "create", "--objective", "x", "--time-limit", "soon")).code == 2


def _row(iteration: int, quality: float | None, compute: float = 0.0, top: float | None = None) -> dict[str, object]:
    return {"iteration": iteration, "quality": quality, "compute_seconds": compute, "top_quality": top}


def test_a_chart_goes_by_compute_where_there_was_any() -> None:
    rows = [_row(n, 1200.0 + 100 * n, compute=30.0 * n, top=1100.0) for n in range(1, 4)]
    chart = chart_cli.draw_text(chart_cli.curves(rows)).splitlines()
    assert chart[0].startswith("    1,500 │")
    assert chart[0].rstrip().endswith("●")
    assert chart[-3].startswith("    1,100 │○")
    assert chart[-1].split() == ["30", "90", "s", "of", "compute"]


@pytest.mark.parametrize("qualities", [[], [None], [0.0], [5.0, 5.0], [-1e12, 1e12], [None, 3.0, None]])
def test_a_curve_may_be_short_or_strange(qualities: list[float | None]) -> None:
    rows = [_row(number, quality) for number, quality in enumerate(qualities, 1)]
    chart = chart_cli.draw_text(chart_cli.curves(rows))
    measured = [quality for quality in qualities if quality is not None]
    assert chart.count("●") == len(measured) if measured else chart == ""
    goal = {"id": "<&>", "objective": '"', "state": "running", "iterations": len(rows), "reason": None}
    xml.etree.ElementTree.fromstring(chart_cli.draw_svg(goal, rows))
