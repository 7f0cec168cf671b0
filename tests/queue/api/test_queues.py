"""What the service says of its queue, and what operators do to it."""

import asyncio
from typing import Any

import pytest

from app.db.database import Database
from app.kernel.access import Role
from app.kernel.agents import AgentType
from tests.support.problems import is_problem
from tests.support.service import Service, make_keys, serving
from tests.support.sql import execute, until
from tests.support.turns import counted

_PRIORITIES = ["critical", "high", "medium", "low"]


async def test_an_empty_queue(service: Service, database: Database) -> None:
    await counted(database)
    queue = await service.get("/queues")
    assert queue["depth"] == {
        "total": 0,
        "by_priority": dict.fromkeys(_PRIORITIES, 0),
        "by_agent": dict.fromkeys(AgentType, 0),
    }
    assert list(queue["queues"]) == list(AgentType)
    assert all(list(lanes) == _PRIORITIES for lanes in queue["queues"].values())
    assert queue["capacity"]["level"] == "normal"
    assert queue["capacity"]["quotas"]["low"] == {"limit": 5000, "depth": 0, "fullness": 0.0}
    nothing = {"tasks": 0, "p50": None, "p95": None, "p99": None, "longest": None}
    assert queue["waits"] == dict.fromkeys(_PRIORITIES, nothing | {"oldest_waiting": None})
    assert queue["service_times"] == dict.fromkeys(AgentType, nothing)
    assert queue["open_writers"] == []
    assert (queue["paused"], queue["warnings"], queue["dead_letters_last_hour"]) == ([], [], 0)
    assert 0 <= queue["counted_seconds_ago"] < 60


async def test_depths_by_phase(service: Service) -> None:
    worker = await service.worker()
    first = await service.submitted(agent_type="ranking", priority="high")
    assert (await worker.lease())["task_id"] == first
    await service.submitted(agent_type="ranking", priority="high")
    await service.submitted(agent_type="ranking", priority="low", run_at="2100-01-01T00:00:00Z")
    await service.submitted(agent_type="evolution", depends_on=[first])
    queue = await service.get("/queues")
    lanes = queue["queues"]
    empty = {"pending": 0, "delayed": 0, "held": 0, "blocked": 0, "assigned": 0, "executing": 0}
    assert lanes["ranking"]["high"] == empty | {"pending": 1, "executing": 1}
    assert lanes["ranking"]["low"] == empty | {"delayed": 1}
    assert lanes["evolution"]["medium"] == empty | {"blocked": 1}
    assert queue["depth"]["total"] == 3
    assert queue["depth"]["by_priority"] == {"critical": 0, "high": 1, "medium": 1, "low": 1}
    assert (queue["depth"]["by_agent"]["ranking"], queue["depth"]["by_agent"]["generation"]) == (2, 0)


async def test_who_keeps_results_waiting_is_told_everywhere(service: Service, database: Database) -> None:
    """Within 10 s: by the routes that wait for it, by the queue and by the health report."""
    connection = await database.connect()
    pid = connection.get_server_pid()
    try:
        async with connection.transaction():
            await connection.execute("INSERT INTO events (kind) VALUES ('task.submitted')")
            worker = await service.worker()
            await service.submitted(agent_type="ranking")
            await worker.on_lease(await worker.lease(), "complete", result={})

            async def told() -> object:
                return (await service.get("/queues"))["open_writers"]

            await until(told)
            for path in ("/queues", "/events", "/outputs"):
                (writer,) = (await service.get(path))["open_writers"]
                assert (writer["pid"], writer["application"], writer["gid"]) == (pid, "convener", None)
                assert writer["seconds"] >= 3
            assert str(pid) in (await service.get("/queues"))["warnings"][0]

            async def reported() -> bool:
                reasons = (await service.get("/health/report"))["reasons"]
                return any(reason["code"] == "results_delayed" and str(pid) in reason["message"] for reason in reasons)

            await until(reported)
    finally:
        await connection.close()
    assert len((await service.get("/outputs"))["items"]) == 1


async def test_totals_count_at_once_and_since_ever(service: Service, database: Database) -> None:
    """Before the loops have folded anything, and after."""
    worker = await service.worker()
    for _ in range(3):
        await service.submitted(agent_type="ranking", retry={"max_attempts": 2, "delays_seconds": [0]})
    cancelled = await service.submitted(agent_type="ranking")
    await service.post(f"/tasks/{cancelled}/cancel", {})
    await worker.on_lease(await worker.lease(), "complete", result={})
    await worker.on_lease(await worker.lease(), "fail", error={"code": "c", "message": "m", "retryable": False})
    await worker.on_lease(await worker.lease(), "fail", error={"code": "c", "message": "m"})
    expected = {"submitted": 4, "completed": 1, "failed": 1, "cancelled": 1}
    expected |= {"displaced": 0, "retried": 1, "rescued": 0, "requeued": 0}
    assert (await service.get("/queues"))["totals"] == expected
    await counted(database)
    await service.submitted()
    assert (await service.get("/queues"))["totals"] == expected | {"submitted": 5}


async def test_what_comes_next(service: Service) -> None:
    low, first, second = [
        await service.submitted(agent_type="ranking", priority=priority, goal_id="g")
        for priority in ("low", "high", "high")
    ]
    await service.submitted(agent_type="ranking", run_at="2100-01-01T00:00:00Z")
    await service.post("/queues/ranking/pause", {"reason": "a test of the queue"})
    ranking = (await service.get("/queues/next", agent_type="ranking"))["agents"][0]
    assert (ranking["agent_type"], ranking["paused"]) == ("ranking", True)
    assert [(task["place"], task["id"]) for task in ranking["tasks"]] == [(1, first), (2, second), (3, low)]
    assert (ranking["tasks"][0]["goal_id"], ranking["tasks"][0]["priority"]) == ("g", "high")
    everything = (await service.get("/queues/next", limit=1))["agents"]
    assert {agent["agent_type"]: len(agent["tasks"]) for agent in everything} == dict.fromkeys(AgentType, 0) | {
        "ranking": 1
    }
    await service.post("/queues/ranking/resume")
    assert (await (await service.worker()).lease())["task_id"] == first


async def test_what_went_through(service: Service, database: Database) -> None:
    worker = await service.worker()
    for _ in range(4):
        await service.submitted(agent_type="ranking", retry={"max_attempts": 1})
    for verb, said in (
        ("complete", {"result": {}}),
        ("complete", {"result": {}}),
        ("fail", {"error": {"code": "x", "message": "y", "retryable": False}}),
    ):
        assert (await worker.on_lease(await worker.lease(), verb, **said)).is_success
    await counted(database)
    queue = await service.get("/queues")
    rates = queue["throughput"]["last_5_minutes"]
    assert rates == {name: round(count / 300, 3) for name, count in _counts(4, 3, 2, 1).items()}
    assert queue["waits"]["medium"]["tasks"] == 3
    assert 0 <= queue["waits"]["medium"]["p50"] <= queue["waits"]["medium"]["longest"] < 60
    assert queue["waits"]["medium"]["oldest_waiting"] >= 0
    assert queue["waits"]["high"]["oldest_waiting"] is None
    assert queue["service_times"]["ranking"]["tasks"] == 2
    assert queue["dead_letters_last_hour"] == 1


def _counts(*counts: int) -> dict[str, int]:
    return dict(zip(("submitted", "leased", "completed", "failed"), counts, strict=True))


async def test_warnings_are_plain_words(database: Database) -> None:
    async with serving(database.url, await make_keys(database), max_queue_size=10) as service:
        for _ in range(8):
            await service.submitted(agent_type="proximity")
        await execute(database, "UPDATE tasks SET waiting_since = now() - interval '25 min'")
        await service.post("/queues/ranking/pause", {"reason": "upkeep"})
        await service.submitted(agent_type="ranking", priority="critical")
        await counted(database)
        queue = await service.get("/queues")
        assert queue["capacity"]["level"] == "critical"
        assert queue["capacity"]["fullness"] == 0.9
        assert queue["warnings"] == [
            "the queue is filling up: 9 tasks wait and 10 may",
            "the quota of priority medium and below is full: 8 tasks of it wait and 8 may",
            "ranking is paused and 1 task of it waits: upkeep",
            "nobody serves proximity: 8 tasks of it wait, and no live worker can run it",
            "a task of priority medium has been waiting for 25 min",
        ]
        assert (await service.get("/status"))["warnings"] == queue["warnings"]


async def test_a_pause_says_who_and_when(service: Service) -> None:
    operator = service.keys[Role.OPERATOR]
    (paused,) = (await service.post("/queues/MetaReview/pause", {"reason": "upkeep"}, key=operator))["paused"]
    assert (paused["agent_type"], paused["reason"]) == ("meta_review", "upkeep")
    assert paused["paused_by"] == operator.split("_")[1]
    assert (await service.get("/queues"))["paused"] == [paused]
    everything = (await service.post("/queues/pause", {"reason": "all of it"}))["paused"]
    assert {pause["agent_type"] for pause in everything} == set(AgentType)
    assert paused in everything
    left = (await service.post("/queues/meta_review/resume"))["paused"]
    assert {pause["agent_type"] for pause in left} == set(AgentType) - {"meta_review"}
    for _ in range(2):
        assert (await service.post("/queues/resume"))["paused"] == []


async def test_a_worker_that_waits_gets_its_task_after_the_resume(service: Service) -> None:
    worker = await service.worker()
    await service.post("/queues/pause", {})
    await service.submitted()
    assert await worker.lease() is None
    waiting = asyncio.create_task(worker.lease(wait_seconds=30))
    await asyncio.sleep(0.1)
    await service.post("/queues/generation/resume")
    assert (await asyncio.wait_for(waiting, 10))["agent_type"] == "generation"


@pytest.mark.parametrize(
    ("path", "body", "field"),
    [
        ("/queues/cooking/pause", {}, "agent_type"),
        ("/queues/cooking/resume", {}, "agent_type"),
        ("/queues/ranking/pause", {"reason": "x" * 2001}, "reason"),
        ("/queues/pause", {"reason": "a\0b"}, "reason"),
        ("/queues/pause", {"why": "x"}, "why"),
    ],
)
async def test_orders_that_make_no_sense(service: Service, path: str, body: Any, field: str) -> None:
    is_problem(await service.ask("POST", path, body), 422, "invalid_request", field)
    assert (await service.get("/queues"))["paused"] == []
