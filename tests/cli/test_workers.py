"""`convener workers` against the real service."""

from uuid import uuid4

from tests.cli.conftest import CommandLine, Service


async def test_ls_shows_who_is_there(convener: CommandLine, service: Service) -> None:
    name = f"cli-{uuid4().hex[:6]}"
    worker = await service.register(name)
    table = await convener("workers", "ls")
    assert name in table.out
    assert all(len(line) <= 80 for line in table.out.splitlines())
    items = (await convener("workers", "ls", "-o", "json")).json["items"]
    assert worker["worker_id"] in [item["worker_id"] for item in items]
    assert worker["worker_id"] in (await convener("workers", "ls", COLUMNS="160")).out


async def test_drain_by_name_and_stop_by_id(convener: CommandLine, service: Service) -> None:
    name = f"cli-{uuid4().hex[:6]}"
    worker = await service.register(name)
    drained = await convener("workers", "drain", name, "--reason", "reboot")
    assert drained.code == 0
    assert f"{name} ({worker['worker_id']}) is told to drain" in drained.out
    stopped = await convener("workers", "stop", worker["worker_id"], "-o", "json")
    assert stopped.json["items"][0]["directive"] == "stop"


async def test_all_names_must_be_known_before_anything_happens(convener: CommandLine, service: Service) -> None:
    name = f"cli-{uuid4().hex[:6]}"
    await service.register(name)
    done = await convener("workers", "drain", name, "nobody")
    assert done.code == 5
    assert "no living worker is named nobody" in done.err
    items = (await convener("workers", "ls", "-o", "json")).json["items"]
    assert next(item for item in items if item["name"] == name)["directive"] is None
    assert (await convener("workers", "stop", str(uuid4()))).code == 5


async def test_those_that_are_gone_are_shown_on_request(convener: CommandLine, service: Service, goal: str) -> None:
    await convener("tasks", "submit", "--agent", "reflection", "--goal", goal)
    await service.work("reflection")
    gone = {item["name"] for item in (await convener("workers", "ls", "--gone", "-o", "json")).json["items"]}
    live = {item["name"] for item in (await convener("workers", "ls", "-o", "json")).json["items"]}
    assert live < gone
