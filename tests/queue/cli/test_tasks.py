"""`convener tasks` against the real service."""

import asyncio
import json
import re
from datetime import UTC, datetime, timedelta
from pathlib import Path
from uuid import uuid4

import pytest

from app.kernel.access import Role
from tests.support.command_line import CommandLine, Json, Service


async def _submitted(convener: CommandLine, goal: str, *more: str) -> str:
    done = await convener("tasks", "submit", "--agent", "ranking", "--goal", goal, *more)
    assert (done.code, done.err) == (0, "")
    return done.out.strip()


async def test_submit_prints_the_id_that_get_takes(convener: CommandLine, goal: str) -> None:
    task_id = await _submitted(convener, goal, "--priority", "high", "--payload", '{"topic": "[bold]orbits"}')
    task = (await convener("tasks", "get", task_id, "-o", "json")).json
    assert (task["id"], task["priority"], task["goal_id"]) == (task_id, "high", goal)
    shown = await convener("tasks", "get", task_id)
    assert task_id in shown.out
    assert "[bold]orbits" in shown.out
    assert re.search(r"Created +\d+ s ago\n", shown.out)


async def test_agents_may_be_called_by_their_other_names(convener: CommandLine, goal: str) -> None:
    done = await convener("tasks", "submit", "--agent", "rank_hypotheses", "--goal", goal, "-o", "json")
    assert done.json["agent_type"] == "ranking"
    wrong = await convener("tasks", "submit", "--agent", "poetry")
    assert wrong.code == 2
    assert "generation" in wrong.err


async def test_payload_from_a_file_and_from_stdin(convener: CommandLine, goal: str, tmp_path: Path) -> None:
    file = tmp_path / "payload.json"
    file.write_text('{"from": "file"}')
    from_file = await _submitted(convener, goal, "--payload", f"@{file}")
    arguments = ("tasks", "submit", "--agent", "ranking", "--goal", goal, "--payload", "-", "-o", "json")
    assert (await convener(*arguments, stdin='{"from": "stdin"}')).json["payload"] == {"from": "stdin"}
    assert (await convener("tasks", "get", from_file, "-o", "json")).json["payload"] == {"from": "file"}


async def test_a_payload_that_is_no_object_is_wrong_usage(convener: CommandLine) -> None:
    for payload in ("[1]", "{", "@/nowhere"):
        done = await convener("tasks", "submit", "--agent", "ranking", "--payload", payload)
        assert (done.code, done.out, "[Errno" in done.err) == (2, "", False)


async def test_the_same_id_with_another_body_is_refused(convener: CommandLine, goal: str) -> None:
    task_id = str(uuid4())
    assert await _submitted(convener, goal, "--id", task_id) == task_id
    assert await _submitted(convener, goal, "--id", task_id) == task_id
    other = await convener("tasks", "submit", "--agent", "evolution", "--id", task_id)
    assert other.code == 1
    assert "409 task_conflict" in other.err
    assert "What to do:" in other.err


async def test_what_the_service_finds_wrong_is_named_by_field(convener: CommandLine) -> None:
    done = await convener("tasks", "submit", "--agent", "ranking", "--goal", "x" * 201)
    assert done.code == 1
    assert "goal_id: " in done.err
    assert "422 invalid_request" in done.err


async def test_a_file_of_one_task(convener: CommandLine, goal: str, tmp_path: Path) -> None:
    file = tmp_path / "tasks.json"
    file.write_text('[{"agent_type": "proximity"}]')
    done = await convener("tasks", "submit", "--file", str(file), "--goal", goal)
    assert (done.code, done.out) == (0, "submitted 1 task, 1 of them new: 1 pending\n")


async def test_a_batch_larger_than_one_call(convener: CommandLine, goal: str, tmp_path: Path) -> None:
    file = tmp_path / "tasks.jsonl"
    file.write_text("".join(f'{{"agent_type": "proximity", "payload": {{"n": {n}}}}}\n' for n in range(1201)))
    done = await convener("tasks", "submit", "--file", str(file), "--goal", goal)
    assert done.code == 0
    assert "submitted 1,201 tasks, 1,201 of them new: 1,201 pending" in done.out
    page = (await convener("tasks", "ls", "--goal", goal, "--all", "-o", "json")).json
    assert len({task["id"] for task in page["items"]}) == 1201
    assert page["next"] is None


async def test_a_batch_that_is_refused_halfway_says_where_to_go_on(
    convener: CommandLine, goal: str, tmp_path: Path
) -> None:
    file = tmp_path / "tasks.json"
    one: Json = {"agent_type": "proximity"}
    tasks = [one] * 1000 + [one | {"timeout_seconds": 0}]
    file.write_text(json.dumps(tasks))
    done = await convener("tasks", "submit", "--file", str(file), "--goal", goal)
    assert done.code == 1
    assert "tasks.0.timeout_seconds" in done.err
    assert "1000 tasks of the file were submitted" in done.err
    assert "--skip 1000" in done.err
    tasks[-1]["timeout_seconds"] = 1
    file.write_text(json.dumps(tasks))
    done = await convener("tasks", "submit", "--file", str(file), "--goal", goal, "--skip", "1000", "-o", "json")
    assert [task["created"] for task in done.json["tasks"]] == [True]


async def test_files_of_every_shape(convener: CommandLine, goal: str) -> None:
    one = {"agent_type": "proximity"}
    shapes = {json.dumps(one): 1, json.dumps([one, one]): 2, json.dumps({"tasks": [one]}): 1, "[]": 0, "": 0}
    for text, count in shapes.items():
        done = await convener("tasks", "submit", "--file", "-", "--goal", goal, "-o", "json", stdin=text)
        assert len(done.json["tasks"]) == count
    line = '{"agent_type": "proximity", "payload": {"text": "one\u2028two\x85three"}}'
    done = await convener("tasks", "submit", "--file", "-", "--goal", goal, "-o", "json", stdin=f"{line}\r\n{line}\n")
    assert len(done.json["tasks"]) == 2
    for text in ("[1]", "{}\nnonsense", "3"):
        done = await convener("tasks", "submit", "--file", "-", stdin=text)
        assert (done.code, done.out) == (2, "")
    both = await convener("tasks", "submit", "--file", "-", "--payload", "{}", stdin="[]")
    assert both.code == 2


async def test_tasks_of_a_file_may_have_keys(convener: CommandLine, goal: str) -> None:
    file = json.dumps({"agent_type": "proximity", "idempotency_key": f"{goal}/1"})
    done = [await convener("tasks", "submit", "--file", "-", "--goal", goal, "-o", "json", stdin=file) for _ in (1, 2)]
    assert [[task["created"] for task in each.json["tasks"]] for each in done] == [[True], [False]]


async def test_what_is_commonly_set_on_a_task_has_options(convener: CommandLine, goal: str) -> None:
    first, second = [await _submitted(convener, goal, "--label", f"place={place}") for place in (1, 2)]
    before = datetime.now(UTC)
    task_id = await _submitted(
        convener,
        goal,
        *("--label", "run=7", "--label", "formula=a=b", "--depends-on", first, "--depends-on", second.replace("-", "")),
        *("--run-at", "2h", "--attempt-timeout", "30min", "--max-attempts", "5"),
    )
    task = (await convener("tasks", "get", task_id, "-o", "json")).json
    assert task["labels"] == {"run": "7", "formula": "a=b"}
    found = await convener("tasks", "ls", "--goal", goal, "--label", "run=7", "--label", "formula=a=b", "-o", "json")
    assert [item["id"] for item in found.json["items"]] == [task_id]
    assert "formula=a=b" in (await convener("tasks", "get", task_id)).out
    assert sorted(task["depends_on"]) == sorted([first, second])
    assert (task["timeout_seconds"], task["max_attempts"]) == (1800, 5)
    assert before <= datetime.fromisoformat(task["run_at"]) - timedelta(hours=2) <= datetime.now(UTC)
    at = await _submitted(convener, goal, "--run-at", "2100-01-31T12:00+01:00")
    run_at = (await convener("tasks", "get", at, "-o", "json")).json["run_at"]
    assert datetime.fromisoformat(run_at) == datetime(2100, 1, 31, 11, tzinfo=UTC)


async def test_a_deadline_as_a_span_is_from_now_on(convener: CommandLine, goal: str) -> None:
    """It was one that had passed two hours ago."""
    task_id, before = await _submitted(convener, goal), datetime.now(UTC)
    assert (await convener("tasks", "change", task_id, "--deadline", "2h")).code == 0
    deadline = (await convener("tasks", "get", task_id, "-o", "json")).json["deadline"]
    assert before <= datetime.fromisoformat(deadline) - timedelta(hours=2) <= datetime.now(UTC)


async def test_a_start_time_can_be_repeated_with_an_id_and_a_span_cannot(convener: CommandLine, goal: str) -> None:
    timed, spanned = str(uuid4()), str(uuid4())
    for _ in range(2):
        assert await _submitted(convener, goal, "--id", timed, "--run-at", "2100-01-31T12:00Z") == timed
    command = ("tasks", "submit", "--agent", "ranking", "--goal", goal, "--id", spanned, "--run-at", "2h")
    first, again = [await convener(*command) for _ in range(2)]
    assert (first.code, again.code, "409 task_conflict" in again.err) == (0, 1, True)


async def test_a_dependency_may_be_named_by_its_first_digits(convener: CommandLine, goal: str) -> None:
    first = await _submitted(convener, goal, "--id", str(uuid4()))
    for more, stdin in ((("--agent", "ranking"), ""), (("--file", "-"), '{"agent_type": "ranking"}')):
        command = ("tasks", "submit", "--goal", goal, "--depends-on", first[:13], "-o", "json", *more)
        done = (await convener(*command, stdin=stdin)).json
        task_id = done["tasks"][0]["id"] if "tasks" in done else done["id"]
        assert (await convener("tasks", "get", task_id, "-o", "json")).json["depends_on"] == [first]
    unknown = await convener("tasks", "submit", "--agent", "ranking", "--depends-on", uuid4().hex[:13])
    assert (unknown.code, unknown.out) == (5, "")


async def test_options_fill_whole_fields_that_the_tasks_of_a_file_lack(convener: CommandLine, goal: str) -> None:
    own = {"labels": {"run": "1"}, "run_at": None, "timeout_seconds": 60, "retry": {"max_attempts": 2}}
    tasks = [{"agent_type": "ranking"}, {"agent_type": "ranking"} | own]
    options = ("--label", "team=blue", "--run-at", "1d", "--attempt-timeout", "90s", "--max-attempts", "4")
    command = ("tasks", "submit", "--file", "-", "--goal", goal, *options, "-o", "json")
    done = (await convener(*command, stdin=json.dumps(tasks))).json["tasks"]
    bare, full = [(await convener("tasks", "get", task["id"], "-o", "json")).json for task in done]
    assert (bare["labels"], bare["timeout_seconds"], bare["max_attempts"]) == ({"team": "blue"}, 90, 4)
    assert (full["labels"], full["timeout_seconds"], full["max_attempts"]) == ({"run": "1"}, 60, 2)
    assert (bare["run_at"] is None, full["run_at"]) == (False, None)


@pytest.mark.parametrize(
    ("option", "value", "words"),
    [
        ("--label", "blue", "--label is written NAME=VALUE"),
        ("--label", "=blue", "--label is written NAME=VALUE"),
        ("--depends-on", "first", "first is neither an id nor the first 4 or more digits of one"),
        ("--run-at", "tomorrow", "tomorrow is neither a time like 2026-01-31T12:00 nor a span like 30min, 2h or 3d"),
        ("--run-at", "9999999999d", "neither a time"),
        ("--attempt-timeout", "90", "90 is not a time like 90s"),
        ("--max-attempts", "many", "must be a whole number"),
    ],
)
async def test_an_option_that_cannot_be_read_asks_the_service_nothing(
    convener: CommandLine, option: str, value: str, words: str
) -> None:
    command = ("tasks", "submit", "--agent", "ranking", option, value)
    done = await convener(*command, CONVENER_URL="http://127.0.0.1:1")
    assert (done.code, done.out) == (2, "")
    assert words in " ".join(done.err.replace("│", " ").split())


async def test_the_bounds_of_options_are_those_of_the_service(convener: CommandLine) -> None:
    options = ("--attempt-timeout", "0s", "--max-attempts", "0", "--label", "run=")
    done = await convener("tasks", "submit", "--agent", "ranking", *options)
    assert (done.code, done.out) == (1, "")
    assert all(name in done.err for name in ("timeout_seconds: ", "retry.max_attempts: ", "labels.run: "))


async def test_ls_filters_and_goes_on(convener: CommandLine, goal: str) -> None:
    ids = [await _submitted(convener, goal) for _ in range(3)]
    first = (await convener("tasks", "ls", "--goal", goal, "--limit", "2", "-o", "json")).json
    rest = (await convener("tasks", "ls", "--goal", goal, "--after", first["next"], "-o", "json")).json
    assert [task["id"] for task in [*first["items"], *rest["items"]]] == ids[::-1]
    table = await convener("tasks", "ls", "--goal", goal, "--limit", "2", "--state", "pending", "--agent", "ranking")
    assert ids[2] in table.out
    assert ids[0] not in table.out
    assert "--all" in table.err
    assert all(len(line) <= 80 for line in table.out.splitlines())
    assert (await convener("tasks", "ls", "--goal", goal, "--state", "failed", "-o", "json")).json["items"] == []


async def test_wait_shows_the_result(convener: CommandLine, live_service: Service, goal: str) -> None:
    arguments = ("tasks", "submit", "--agent", "evolution", "--goal", goal, "--payload", '{"n": 7}', "--wait")
    done, _ = await asyncio.gather(convener(*arguments), live_service.work("evolution"))
    assert done.code == 0
    assert done.json == {"echo": {"n": 7}}


async def test_wait_for_a_task_that_fails(convener: CommandLine, live_service: Service, goal: str) -> None:
    arguments = ("tasks", "submit", "--agent", "evolution", "--goal", goal, "--wait", "-o", "json")
    done, _ = await asyncio.gather(convener(*arguments), live_service.work("evolution", error="no parents"))
    assert done.code == 6
    assert done.json["state"] == "failed"
    assert "test: no parents" in done.err
    assert f"convener tasks get {done.json['id']}" in done.err
    shown = await convener("tasks", "get", done.json["id"])
    assert "no parents" in shown.out


async def test_wait_for_a_batch(convener: CommandLine, live_service: Service, goal: str) -> None:
    two = json.dumps([{"agent_type": "evolution"}] * 2)
    waiting = asyncio.create_task(convener("tasks", "submit", "--file", "-", "--goal", goal, "--wait", stdin=two))
    await live_service.work("evolution")
    await live_service.work("evolution", error="tired")
    done = await waiting
    assert done.code == 6
    assert "submitted 2 tasks, 2 of them new: 1 completed, 1 failed" in done.out


async def test_wait_for_a_task_that_was_submitted_and_finished_before(
    convener: CommandLine, live_service: Service, goal: str
) -> None:
    task = ("tasks", "submit", "--agent", "evolution", "--goal", goal, "--id", str(uuid4()))
    await convener(*task)
    await live_service.work("evolution")
    done = await convener(*task, "--wait")
    assert (done.code, done.json) == (0, {"echo": {}})


async def test_cancel_several_and_tell_which_were_not(convener: CommandLine, goal: str) -> None:
    first, unknown, second = await _submitted(convener, goal), str(uuid4()), await _submitted(convener, goal)
    done = await convener("tasks", "cancel", first, unknown, second, "--reason", "wrong data")
    assert done.code == 5
    assert done.out.splitlines() == [f"cancelled {first}", f"cancelled {second}"]
    assert f"{unknown} was not cancelled" in done.err
    again = await convener("tasks", "cancel", first, "-o", "json")
    assert again.json["items"][0]["error"]["message"] == "wrong data"


async def test_get_what_is_not_there(convener: CommandLine) -> None:
    done = await convener("tasks", "get", str(uuid4()))
    assert (done.code, done.out) == (5, "")
    assert "404 task_not_found" in done.err
    assert (await convener("tasks", "get", "nonsense")).code == 2


async def test_a_reader_may_not_submit(convener: CommandLine, live_service: Service) -> None:
    done = await convener("tasks", "submit", "--agent", "ranking", CONVENER_KEY=live_service.keys[Role.READER])
    assert done.code == 4
    assert "403 forbidden" in done.err
    assert live_service.keys[Role.READER] not in done.err
