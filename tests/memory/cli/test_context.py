"""`convener context` and `convener outputs` against the real service."""

import json
from pathlib import Path

from tests.support.command_line import CommandLine, Service


async def test_an_entry_from_its_making_to_its_end(convener: CommandLine, goal: str, tmp_path: Path) -> None:
    made = await convener("context", "put", goal, "best", '{"elo": 1200}', "--new")
    assert (made.code, made.out) == (0, f"{goal}/best is at version 1\n")
    assert json.loads((await convener("context", "get", goal, "best")).out) == {"elo": 1200}
    file = tmp_path / "value.json"
    file.write_text('{"elo": 1250}')
    assert (await convener("context", "put", goal, "best", f"@{file}", "-o", "json")).json["version"] == 2
    piped = await convener("context", "put", goal, "best", "-", "--if-version", "2", stdin="[null]")
    assert "version 3" in piped.out
    entry = (await convener("context", "get", goal, "best", "-o", "json")).json
    assert (entry["version"], entry["value"]) == (3, [None])
    former = await convener("context", "get", goal, "best", "--version", "1")
    assert json.loads(former.out) == {"elo": 1200}
    gone = await convener("context", "rm", goal, "best")
    assert gone.out == f"{goal}/best was deleted by version 4\n"
    shown = (await convener("context", "history", goal, "best")).out
    assert "deleted" in shown
    assert '{"elo": 1250}' in shown
    missing = await convener("context", "get", goal, "best")
    assert (missing.code, missing.out) == (5, "")
    assert "convener context ls" in missing.err
    assert (await convener("context", "put", goal, "best", "null", "-o", "json")).json["version"] == 5


async def test_somebody_elses_change_is_not_undone(convener: CommandLine, goal: str) -> None:
    await convener("context", "put", goal, "k", "1")
    await convener("context", "put", goal, "k", "2")
    for arguments in (("--if-version", "1"), ("--new",)):
        stale = await convener("context", "put", goal, "k", "3", *arguments)
        assert (stale.code, stale.out) == (1, "")
        assert "412 version_stale" in stale.err
    assert (await convener("context", "rm", goal, "k", "--if-version", "1")).code == 1
    assert (await convener("context", "get", goal, "k")).out == "2\n"


async def test_the_entries_of_a_namespace(convener: CommandLine, goal: str) -> None:
    for name in ("a", "b", "c"):
        await convener("context", "put", goal, name, f'"value of {name}"')
    table = (await convener("context", "ls", goal)).out
    assert [line.split()[0] for line in table.splitlines()] == ["KEY", "a", "b", "c"]
    assert "value of b" in (await convener("context", "ls", goal, "--values")).out
    page = await convener("context", "ls", goal, "--limit", "2", "-o", "json")
    assert [item["key"] for item in page.json["items"]] == ["a", "b"]
    rest = await convener("context", "ls", goal, "--after", page.json["next"], "--values", "-o", "json")
    assert [item["value"] for item in rest.json["items"]] == ["value of c"]
    assert [item["key"] for item in (await convener("context", "ls", goal, "--all", "-o", "json")).json["items"]] == [
        *"abc"
    ]


async def test_wrong_usage(convener: CommandLine, goal: str) -> None:
    for arguments in (("{",), ("@/nowhere",), ("1", "--new", "--if-version", "1"), ("1", "--if-version", "0")):
        assert (await convener("context", "put", goal, "k", *arguments)).code == 2
    assert (await convener("context", "put", goal, "a/b", "1")).code == 2
    assert (await convener("context", "rm", goal, "none")).code == 5


async def test_outputs_are_followed_by_a_token(convener: CommandLine, live_service: Service, goal: str) -> None:
    ids = []
    for _ in range(3):
        done = await convener("tasks", "submit", "--agent", "proximity", "--goal", goal, "--payload", '{"n": 1}')
        ids.append(done.out.strip())
        await live_service.work("proximity")
    first = (await convener("outputs", "--goal", goal, "--limit", "2", "-o", "json")).json
    assert [item["task_id"] for item in first["items"]] == ids[:2]
    assert first["items"][0]["result"] == {"echo": {"n": 1}}
    second = (await convener("outputs", "--goal", goal, "--after", first["next"], "-o", "json")).json
    assert [item["task_id"] for item in second["items"]] == ids[2:]
    assert not second["more"]
    everything = await convener("outputs", "--agent", "proximity", "--goal", goal, "--all", COLUMNS="160")
    assert [line.split()[0] for line in everything.out.splitlines()[1:]] == ids
    assert "--after o" in everything.err
    wrong = await convener("outputs", "--after", "yesterday")
    assert (wrong.code, wrong.out) == (1, "")
    assert "continuation token" in wrong.err
