"""`convener decisions`: listed, explained, replayed and supposed."""

import pytest

from app.db.database import Database
from tests.support.command_line import CommandLine, Service
from tests.support.factories import submitted
from tests.support.pools import crew, decided, passed
from tests.support.sql import execute, value


@pytest.fixture(scope="module")
async def decision(live_service: Service) -> int:
    """A decision to grow, and one before it that changed nothing; nothing of them is left to others."""
    database = Database(live_service.database_url)
    try:
        await crew(database, 10, cpu_percent=85.0)
        await decided(database)
        tasks = await submitted(database, 300, goal_id="decisions")
        await passed(database, 5.0)
        await decided(database)
        await execute(database, "DELETE FROM tasks WHERE id = ANY ($1)", tasks)
        await execute(database, "UPDATE workers SET state = 'stopped', ended_at = now() WHERE provisioner = 'local'")
        await execute(database, "DELETE FROM hosts")
        return int(await value(database, "SELECT max(id) FROM decisions"))
    finally:
        await database.close()


async def test_the_list_for_people_and_programs(convener: CommandLine, decision: int) -> None:
    shown = await convener("decisions", "ls")
    assert shown.code == 0, shown.err
    line = next(line for line in shown.out.splitlines() if line.startswith(f"{decision} "))
    assert "scale_up" in line
    listed = (await convener("decisions", "ls", "--changes", "-o", "json")).json
    assert decision in [item["id"] for item in listed["items"]]


async def test_a_decision_is_explained_in_words(convener: CommandLine, decision: int) -> None:
    shown = await convener("decisions", "explain", str(decision))
    assert shown.code == 0, shown.err
    words = " ".join(shown.out.split())
    assert "to start each within 24 s takes" in words
    assert "to stay at 10: some tasks would wait for longer than 24 s" in words
    assert "at most +100% in one step: 20 instead of" in words
    last = (await convener("decisions", "explain", "-o", "json")).json
    assert last["id"] == decision
    missing = await convener("decisions", "explain", "999999")
    assert (missing.code, missing.out) == (5, "")


async def test_a_replay_ends_with_1_where_something_differs(
    live_service: Service, convener: CommandLine, decision: int
) -> None:
    alone = await convener("decisions", "replay", str(decision))
    assert (alone.code, "identical to the byte" in alone.out) == (0, True)
    every = await convener("decisions", "replay", "--all", "-o", "json")
    assert (every.code, every.json["different"]) == (0, [])
    assert every.json["replayed"] >= 2
    database = Database(live_service.database_url)
    change = "UPDATE decisions SET output = replace(output::text, $1, $2)::json WHERE id = $3"
    try:
        await execute(database, change, '"start":10', '"start":11', decision)
        for arguments in ([str(decision)], ["--all"]):
            broken = await convener("decisions", "replay", *arguments)
            assert broken.code == 1
            assert f"{decision} start: 11 -> 10" in broken.out
    finally:
        await execute(database, change, '"start":11', '"start":10', decision)
        await database.close()


async def test_what_if_shows_both(convener: CommandLine, decision: int) -> None:
    shown = await convener("decisions", "what-if", "worker_pool.max_workers=15", "--decision", str(decision))
    assert shown.code == 0, shown.err
    line = next(line for line in shown.out.splitlines() if line.startswith("target"))
    assert line.split()[-2:] == ["20", "15"]
    told = (await convener("decisions", "what-if", "--mode", "trusted_tester", "-o", "json")).json
    assert told["supposed"]["target_workers"] == 12
    wrong = await convener("decisions", "what-if", "worker_pool.max_workers")
    assert wrong.code == 2
