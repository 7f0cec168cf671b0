"""`convener workers` against the real service."""

import json
from datetime import UTC, datetime
from uuid import UUID, uuid4

import httpx
from rich.console import Console

from app.db.database import Database
from app.kernel.modes import Mode
from app.workers.cli.pool import board
from app.workers.service import pool
from tests.support.command_line import CommandLine, Json, Service
from tests.support.factories import report
from tests.support.sql import execute


async def test_ls_shows_who_is_there(convener: CommandLine, live_service: Service) -> None:
    name = f"cli-{uuid4().hex[:6]}"
    worker = await live_service.register(name)
    table = await convener("workers", "ls")
    assert name in table.out
    assert all(len(line) <= 80 for line in table.out.splitlines())
    items = (await convener("workers", "ls", "-o", "json")).json["items"]
    assert worker["worker_id"] in [item["worker_id"] for item in items]
    assert worker["worker_id"] in (await convener("workers", "ls", COLUMNS="160")).out


async def test_whatever_mentions_a_dead_worker_shows_its_last_error_and_its_log(
    convener: CommandLine, live_service: Service, goal: str
) -> None:
    worker = await live_service.register(f"dead-{uuid4().hex[:6]}")
    task = (
        await convener("tasks", "submit", "--agent", "ranking", "--goal", goal, "--priority", "critical")
    ).out.strip()
    async with httpx.AsyncClient(base_url=live_service.url, trust_env=False) as http:
        own = {"Authorization": f"Bearer {worker['key']}"}
        lease = (await http.post("/lease", json={"request_id": str(uuid4()), "acknowledge": True}, headers=own)).json()
    assert lease["task_id"] == task
    database = Database(live_service.database_url)
    handle = {"pid": 1, "created": 1.0, "log": f"/var/lib/convener/{worker['name']}.log"}
    await execute(
        database, "UPDATE workers SET handle = $1 WHERE id = $2", json.dumps(handle), UUID(worker["worker_id"])
    )
    await pool.report_exit(
        database, UUID(worker["worker_id"]), "the process exited with code 2", error="ImportError: y"
    )
    line = f"exited with code 2; last error: ImportError: y; log: {handle['log']} on test"
    for command in (["workers", "ls", "--gone"], ["tasks", "get", task]):
        assert line in (await convener(*command, COLUMNS="200")).err
    shown = (await convener("workers", "get", worker["worker_id"], COLUMNS="200")).out
    assert "ImportError: y" in shown
    assert str(handle["log"]) in shown
    item = (await convener("workers", "get", worker["worker_id"], "-o", "json")).json
    assert (item["recent_errors"][-1]["message"], item["log_file"]) == ("ImportError: y", handle["log"])
    foreign = await live_service.register(f"foreign-{uuid4().hex[:6]}")
    await pool.report_exit(database, UUID(foreign["worker_id"]), "gone")
    assert "with whoever has started process 1 on test" in (await convener("workers", "get", foreign["worker_id"])).out
    await database.close()
    await convener("tasks", "cancel", task)


async def test_who_is_not_ready_is_shown_with_the_reason(convener: CommandLine, live_service: Service) -> None:
    reason = "the handlers cannot load [red]"
    worker = await live_service.register(f"cli-{uuid4().hex[:6]}", not_ready_reason=reason)
    assert f"{worker['name']} is not ready: {reason}" in (await convener("workers", "ls", COLUMNS="200")).err
    assert reason in (await convener("workers", "get", worker["name"])).out


async def test_drain_by_name_and_stop_by_id(convener: CommandLine, live_service: Service) -> None:
    name = f"cli-{uuid4().hex[:6]}"
    worker = await live_service.register(name)
    drained = await convener("workers", "drain", name, "--reason", "reboot")
    assert drained.code == 0
    assert f"{name} ({worker['worker_id']}) is told to drain" in drained.out
    stopped = await convener("workers", "stop", worker["worker_id"], "-o", "json")
    assert stopped.json["items"][0]["directive"] == "stop"


async def test_evict_by_name_and_once_more_by_id(convener: CommandLine, live_service: Service) -> None:
    worker = await live_service.register(f"evicted-{uuid4().hex[:8]}")
    evicted = await convener("workers", "evict", worker["name"], "--reason", "it lies")
    assert (evicted.code, evicted.out) == (0, f"evicted {worker['name']} ({worker['worker_id']})\n")
    again = await convener("workers", "evict", worker["worker_id"], "-o", "json")
    assert again.json["items"][0]["ended_reason"] == "evicted: it lies"


async def test_all_names_must_be_known_before_anything_happens(convener: CommandLine, live_service: Service) -> None:
    name = f"cli-{uuid4().hex[:6]}"
    await live_service.register(name)
    done = await convener("workers", "drain", name, "nobody")
    assert done.code == 5
    assert "no living worker is named nobody" in done.err
    items = (await convener("workers", "ls", "-o", "json")).json["items"]
    assert next(item for item in items if item["name"] == name)["directive"] is None
    assert (await convener("workers", "stop", str(uuid4()))).code == 5


async def test_those_that_are_gone_are_shown_on_request(
    convener: CommandLine, live_service: Service, goal: str
) -> None:
    await convener("tasks", "submit", "--agent", "reflection", "--goal", goal)
    await live_service.work("reflection")
    gone = {item["name"] for item in (await convener("workers", "ls", "--gone", "-o", "json")).json["items"]}
    live = {item["name"] for item in (await convener("workers", "ls", "-o", "json")).json["items"]}
    assert live < gone


async def test_a_filter_is_counted_and_confirmed_before_anybody_is_told(
    convener: CommandLine, live_service: Service
) -> None:
    site = f"site={uuid4().hex[:6]}"
    workers = [await live_service.register(f"cli-{uuid4().hex[:6]}", labels=[site.replace("=", ":")]) for _ in range(2)]
    dry = await convener("workers", "restart", "--label", site, "--dry-run")
    assert "2 workers would be restarted" in dry.out
    refused = await convener("workers", "restart", "--label", site, stdin="n\n")
    assert (refused.code, "restart 2 workers?" in refused.err) == (1, True)
    assert (await convener("workers", "restart", "--label", site, "--yes", "-o", "json")).json["restarted"] == 2
    items = (await convener("workers", "ls", "-o", "json")).json["items"]
    ids = {worker["worker_id"] for worker in workers}
    assert {item["directive"] for item in items if item["worker_id"] in ids} == {"restart"}


async def test_names_go_alone_and_something_must_be_said(convener: CommandLine) -> None:
    for arguments in (("ada", "--all"), ("ada", "--label", "a=b"), (), ("--all", "--agent", "ranking")):
        assert (await convener("workers", "stop", *arguments)).code == 2


async def test_the_fleet_is_shown(convener: CommandLine, live_service: Service) -> None:
    await live_service.register(f"cli-{uuid4().hex[:6]}")
    shown = await convener("workers", "fleet")
    assert "Workers" in shown.out
    assert "10 to 1,000" in shown.out
    assert (await convener("workers", "fleet", "-o", "json")).json["total"] >= 1


def test_places_that_rest_are_shown_with_the_time_of_their_next_start() -> None:
    places = [{"host": "lab-1", "slot": 3, "deaths": 5, "until": "2030-01-01T12:00:08Z"}]
    found: Json = {
        "min_workers": 2,
        "max_workers": 12,
        "total": 3,
        "hosts": [],
        "workers": {"ready": 2, "busy": 1, "starting": 0},
    }
    console = Console(width=80)
    with console.capture() as captured:
        console.print(
            board(
                found | {"reduced_capacity": True, "reduced_reason": "1 place rests", "resting": places},
                datetime(2030, 1, 1, 12, tzinfo=UTC),
            )
        )
    text = captured.get()
    assert "3: 2 ready, 1 busy" in text
    assert "reduced capacity: 1 place rests" in text
    assert text.splitlines()[-1].split() == ["lab-1", "3", "5", "in", "8", "s"]


async def test_replacements_are_summed_up(convener: CommandLine, live_service: Service) -> None:
    database = Database(live_service.database_url)
    await execute(
        database,
        """INSERT INTO replacements
            (lost_worker_id, slot, worker_name, cause, detected_at, requested_at, first_lease_at)
        SELECT gen_random_uuid(), 1, 'lab-1', 'killed', now(), now() + interval '0.25 s', now() + interval '1.5 s'""",
    )
    await database.close()
    shown = await convener("workers", "replacements", COLUMNS="120")
    assert shown.out.splitlines()[-2].split() == ["p50", "+0.25", "s", "-", "-", "+1.50", "s"]
    assert (await convener("workers", "replacements", "-o", "json")).json["times"]["first_lease"]["p99"] == 1.5


async def test_get_shows_what_a_worker_is_assigned_to_and_may_use(convener: CommandLine, live_service: Service) -> None:
    name = f"cli-{uuid4().hex[:6]}"
    worker = await live_service.register(name, labels=["site:lab1"])
    assigned = """UPDATE workers SET assigned_agent = 'ranking', assigned_memory_gb = 1.5, assigned_cpu_cores = 0.5,
        assigned_compute_seconds = 1200 WHERE name = $1"""
    database = Database(live_service.database_url)
    await execute(database, assigned, name)
    await database.close()
    await convener("workers", "drain", name, "--reason", "reboot")
    lines = (await convener("workers", "get", name)).out.splitlines()
    shown = {line.split("  ")[0]: line.split("  ")[-1].strip() for line in lines}
    assert shown["Name"] == f"{name}, incarnation 1"
    assert shown["Told to"] == "drain: reboot"
    assert shown["Assigned"] == "ranking"
    assert shown["A task gets"] == "1.5 GB, 0.5 cores, 1200 s where a task usually has 600 s"
    assert (shown["It has"], shown["Labels"]) == ("1 GB, 1 cores", "site=lab1")
    assert (await convener("workers", "get", worker["worker_id"], "-o", "json")).json["assigned_cpu_cores"] == 0.5
    assert (await convener("workers", "get", "nobody")).code == 5


async def test_a_start_that_is_refused_says_why_and_what_to_do(convener: CommandLine) -> None:
    refused = await convener("workers", "start", "2")
    assert refused.code != 0
    assert "no host starts workers" in refused.err
    assert (await convener("workers", "start", "0")).code == 2


async def test_started_workers_are_named(convener: CommandLine, live_service: Service) -> None:
    database = Database(live_service.database_url)
    host = f"host{uuid4().hex[:6]}"
    async with database.transaction() as connection:
        await pool.tick(connection, Mode.PRODUCTION, report(1, host=host))
    shown = await convener("workers", "start", "2", "--reason", "long run")
    assert shown.out.strip() == f"started 2: {host}-2, {host}-3"
    assert f"{host} is to keep 3" in (await convener("workers", "fleet")).out
    await execute(database, "DELETE FROM hosts WHERE host = $1", host)
    await execute(database, "DELETE FROM workers WHERE host = $1", host)
    await database.close()
