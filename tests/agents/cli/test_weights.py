"""`convener weights` and `convener agents` against the real service."""

from collections.abc import AsyncIterator

import pytest

from app.db.database import Database
from app.kernel.agents import AgentType
from app.terminal import output
from tests.support.agent_results import add_results, fold, let_minute_pass, tick
from tests.support.command_line import CommandLine, Service
from tests.support.sql import execute


@pytest.fixture
async def database(live_service: Service) -> AsyncIterator[Database]:
    database = Database(live_service.database_url)
    yield database
    await database.close()


async def test_weights_for_people_and_programs(convener: CommandLine, database: Database) -> None:
    await tick(database)
    done = await convener("weights", "set", "reflection=0.3", "--reason", "reviews lag behind")
    assert (done.code, done.err) == (0, "")
    assert "reviews lag behind" in done.out
    shown = await convener("weights", "get", COLUMNS="140")
    (line,) = [line for line in shown.out.splitlines() if line.startswith("reflection")]
    assert line.split()[:4] == ["reflection", "0.2250", "0.3000", "0.1500"]
    assert "ordered; target 0.3, at most 50% in one step" in line
    body = (await convener("weights", "get", "-o", "json")).json
    assert body["weights"]["reflection_agent"] == pytest.approx(0.225)
    await let_minute_pass(database)
    during = await convener("weights", "override", "ranking=0.5", "--for", "30min", "-o", "json")
    assert during.json["override"]["weights"]["ranking_agent"] == pytest.approx(0.5)
    assert "Override" in (await convener("weights", "get")).out
    ended = await convener("weights", "release", "--reason", "it is over", "-o", "json")
    assert (ended.json["override"], ended.json["reason"]) == (None, "it is over")
    history = await convener("weights", "history", COLUMNS="200")
    assert [line.split()[-1] for line in history.out.splitlines()[1:2]] == ["over"]
    assert "reflection 0.15 to 0.225" in history.out


@pytest.mark.parametrize(
    ("arguments", "why"),
    [
        (["set", "painter=0.3"], "unknown agent type"),
        (["set", "ranking"], "AGENT=WEIGHT"),
        (["set", "ranking=much"], "AGENT=WEIGHT"),
        (["set", "ranking=nan"], "from 0 to 1"),
        (["set", "ranking=1e400"], "from 0 to 1"),
        (["set", "ranking=0.3", "ranking_agent=0.5"], "name each agent once"),
        (["override", "ranking=0.3", "--for", "soon"], "30min"),
    ],
)
async def test_wrong_words_are_told_before_anything_is_sent(
    convener: CommandLine, arguments: list[str], why: str
) -> None:
    done = await convener("weights", *arguments)
    assert (done.code, done.out) == (2, "")
    assert why in " ".join(done.err.replace("│", " ").split())


async def test_what_the_service_refuses_is_told(convener: CommandLine) -> None:
    done = await convener("weights", "set", "ranking=0.9", "reflection=0.9")
    assert done.out == ""
    assert "leaves nothing for the agents that are not named" in done.err


async def test_agents_for_people_and_programs(convener: CommandLine, database: Database) -> None:
    # What other tests have done in this database does not count.
    await fold(database)
    for table in ("agent_results", "agent_minutes"):
        await execute(database, f"DELETE FROM {table}")
    await add_results(database, AgentType.PROXIMITY, 0.75, 30, seconds=2.0)
    await fold(database)
    listed = await convener("agents", "ls", COLUMNS="120")
    (line,) = [line for line in listed.out.splitlines() if line.startswith("proximity")]
    assert "30 of 30" in line
    assert "0.75" in line
    shown = await convener("agents", "get", "find_similar_hypotheses")
    assert "30 of the last 30 results succeeded, 30 were judged" in shown.out
    results, quality = (line for line in shown.out.splitlines() if line.startswith(("results", "quality")))
    assert "█" in results
    assert "▆" in quality
    body = (await convener("agents", "get", "proximity", "--per", "hour", "-o", "json")).json
    assert (body["evidence"]["results"], sum(span["results"] for span in body["trend"])) == (30, 30)
    assert len((await convener("agents", "ls", "-o", "json")).json["items"]) == 6
    assert (await convener("agents", "get", "painter")).code == 2
    assert (await convener("agents", "get", "ranking", "--per", "year")).code == 2


def test_a_line_of_numbers() -> None:
    assert output.sparkline([0, None, 0.5, 1, 2], high=1.0) == "▁ ▅██"
    assert output.sparkline([1, 2, 4]) == "▃▅█"
    assert output.sparkline([]) == ""
    assert output.sparkline([0, 0]) == "▁▁"
