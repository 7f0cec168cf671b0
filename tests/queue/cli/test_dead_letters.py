"""`convener dead-letters` and cancelling by a filter: counted first, done only when it is confirmed."""

from uuid import uuid4

import pytest

from app.kernel.access import Role
from tests.support.command_line import CommandLine, Service


async def _submitted(convener: CommandLine, goal: str, *more: str) -> str:
    done = await convener("tasks", "submit", "--agent", "meta_review", "--goal", goal, *more)
    assert (done.code, done.err) == (0, "")
    return done.out.strip()


async def _failed(convener: CommandLine, live_service: Service, goal: str, count: int = 1) -> list[str]:
    ids = []
    for _ in range(count):
        ids.append(await _submitted(convener, goal))
        await live_service.work("meta_review", error="no [bold]parents")
    return ids


async def _states(convener: CommandLine, goal: str) -> list[str]:
    page = (await convener("tasks", "ls", "--goal", goal, "--all", "-o", "json")).json
    return [task["state"] for task in page["items"]]


async def test_from_the_list_to_a_second_chance(convener: CommandLine, live_service: Service, goal: str) -> None:
    first, second = await _failed(convener, live_service, goal, 2)
    listed = await convener("dead-letters", "ls", "--goal", goal)
    assert [line.split()[0] for line in listed.out.splitlines()[1:]] == [second, first]
    assert "test: no [bold]parents" in listed.out
    page = (await convener("dead-letters", "ls", "--goal", goal, "--code", "test", "--limit", "1", "-o", "json")).json
    assert [letter["id"] for letter in page["items"]] == [second]
    assert page["next"] is not None
    assert (await convener("dead-letters", "ls", "--goal", goal, "--code", "other", "-o", "json")).json["items"] == []
    shown = await convener("dead-letters", "get", first)
    assert "no [bold]parents" in shown.out
    assert (await convener("dead-letters", "get", first, "-o", "json")).json["id"] == first
    done = await convener("dead-letters", "requeue", first, "--reason", "mended")
    assert (done.code, done.out) == (0, f"{first} is pending\n")
    assert sorted(await _states(convener, goal)) == ["failed", "pending"]
    await convener("tasks", "cancel", first)


@pytest.mark.parametrize("command", ["dead-letters", "tasks"])
async def test_a_second_chance_may_be_more_urgent(
    convener: CommandLine, live_service: Service, goal: str, command: str
) -> None:
    first, second = await _failed(convener, live_service, goal, 2)
    done = await convener(command, "requeue", first, "--priority", "critical")
    assert (done.code, done.out) == (0, f"{first} is pending\n")
    done = await convener(command, "requeue", "--goal", goal, "--priority", "high", "--yes")
    assert done.code == 0
    tasks = [(await convener("tasks", "get", task, "-o", "json")).json for task in (first, second)]
    assert [task["priority"] for task in tasks] == ["critical", "high"]
    await convener("tasks", "cancel", first, second)


async def test_a_filter_counts_and_asks(convener: CommandLine, live_service: Service, goal: str) -> None:
    await _failed(convener, live_service, goal, 2)
    command = ("dead-letters", "requeue", "--goal", goal, "--failed-after", "1h")
    tried = await convener(*command, "--dry-run")
    assert (tried.code, tried.out) == (0, "2 dead letters would be requeued\n")
    refused = await convener(*command, stdin="n\n")
    assert (refused.code, "requeued" in refused.out) == (1, False)
    assert "requeue 2 dead letters? [y/N]" in refused.err
    silent = await convener(*command, stdin="")
    assert (silent.code, "nobody has answered" in silent.err, "add --yes" in silent.err) == (1, True, True)
    assert await _states(convener, goal) == ["failed", "failed"]
    done = await convener(*command, "--limit", "1", stdin="y\n")
    assert (done.code, done.out.splitlines()[-1]) == (0, "requeued 1 dead letter")
    done = await convener(*command, "--yes", "-o", "json")
    assert done.json == {"matched": 1, "requeued": 1, "dry_run": False}
    assert await _states(convener, goal) == ["pending", "pending"]
    assert (await convener("tasks", "cancel", "--goal", goal, "--yes")).out == "cancelled 2 tasks\n"
    nothing = await convener(*command)
    assert (nothing.code, nothing.out) == (0, "requeued 0 dead letters\n")


async def test_purging(convener: CommandLine, live_service: Service, goal: str) -> None:
    (task_id,) = await _failed(convener, live_service, goal)
    command = ("dead-letters", "purge", "--goal", goal, "--code", "test")
    denied = await convener(*command, "--yes", CONVENER_KEY=live_service.keys[Role.READER])
    assert denied.code == 4
    kept = await convener(*command, "--failed-before", "2000-01-01", "--yes")
    assert kept.out == "purged 0 dead letters\n"
    done = await convener(*command, stdin="y\n")
    assert done.out.splitlines()[-1] == "purged 1 dead letter"
    assert "forget for good 1 dead letter?" in done.err
    assert (await convener("tasks", "get", task_id)).code == 5
    told = (await convener("events", "--goal", goal, "--kind", "purged", "-o", "json")).json
    assert [event["task_id"] for event in told["items"]] == [task_id]


async def test_what_is_no_dead_letter(convener: CommandLine, goal: str) -> None:
    task_id = await _submitted(convener, goal)
    done = await convener("dead-letters", "get", task_id)
    assert done.code == 5
    assert "only failed tasks are dead letters" in done.err
    assert (await convener("dead-letters", "requeue", str(uuid4()))).code == 5
    await convener("tasks", "cancel", task_id)
    assert (await convener("dead-letters", "requeue", task_id)).code == 1


@pytest.mark.parametrize(
    "arguments",
    [
        ("dead-letters", "requeue"),
        ("dead-letters", "purge"),
        ("dead-letters", "purge", "--all", "--goal", "a"),
        ("dead-letters", "requeue", str(uuid4()), "--goal", "a"),
        ("dead-letters", "requeue", str(uuid4()), "--dry-run"),
        ("dead-letters", "ls", "--failed-after", "yesterday"),
        ("dead-letters", "ls", "--failed-after", "9999999999d"),
        ("dead-letters", "ls", "--label", "blue"),
        ("dead-letters", "ls", "--label", "team:blue"),
        ("tasks", "ls", "--label", "team:site=blue"),
        ("tasks", "cancel"),
        ("tasks", "cancel", str(uuid4()), "--state", "pending"),
        ("tasks", "cancel", "--all", "--priority", "low"),
        ("events", "--kind", "eaten"),
    ],
)
async def test_wrong_usage_asks_the_service_nothing(convener: CommandLine, arguments: tuple[str, ...]) -> None:
    done = await convener(*arguments, CONVENER_URL="http://127.0.0.1:1")
    assert (done.code, done.out) == (2, "")


async def test_cancelling_by_a_filter(convener: CommandLine, live_service: Service, goal: str) -> None:
    first = await _submitted(convener, goal, "--priority", "low")
    await _submitted(convener, goal, "--priority", "high")
    file = f'{{"agent_type": "ranking", "goal_id": "{goal}-other", "depends_on": ["{first}"]}}'
    await convener("tasks", "submit", "--file", "-", stdin=file)
    command = ("tasks", "cancel", "--goal", goal, "--priority", "low", "--state", "pending")
    assert (await convener(*command, "--dry-run", "-o", "json")).json["matched"] == 1
    refused = await convener(*command, stdin="\n")
    assert refused.code == 1
    assert "cancel 1 task? [y/N]" in refused.err
    done = await convener(*command, "--yes", "--reason", "wrong data")
    assert done.out == "cancelled 1 task, and 1 that waited for them\n"
    assert sorted(await _states(convener, goal)) == ["cancelled", "pending"]
    assert (await convener("tasks", "get", first, "-o", "json")).json["error"]["message"] == "wrong data"
    assert (await convener("tasks", "cancel", "--goal", goal, "--created-before", "1d", "--yes")).out.startswith(
        "cancelled 0"
    )
    await convener("tasks", "cancel", "--goal", goal, "--yes")


async def test_new_filters_of_the_list(convener: CommandLine, live_service: Service, goal: str) -> None:
    await _failed(convener, live_service, goal)
    file = f'{{"agent_type": "ranking", "goal_id": "{goal}", "labels": {{"team": "blue", "run": "7"}}}}'
    await convener("tasks", "submit", "--file", "-", stdin=file)

    async def found(*filters: str) -> list[str]:
        page = (await convener("tasks", "ls", "--goal", goal, *filters, "-o", "json")).json
        return [task["state"] for task in page["items"]]

    assert await found("--label", "team=blue", "--label", "run=7") == ["pending"]
    assert await found("--label", "team=red") == []
    assert await found("--state", "failed", "--state", "pending") == ["pending", "failed"]
    assert await found("--code", "test") == ["failed"]
    assert await found("--finished-after", "1h") == ["failed"]
    assert await found("--created-before", "1h") == []
    assert await found("--priority", "medium", "--created-after", "1h") == ["pending", "failed"]
    await convener("tasks", "cancel", "--goal", goal, "--yes")
