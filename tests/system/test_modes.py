"""One suite for all three modes, each on a machine of its own: the same promises, other manners."""

import asyncio
from collections import Counter
from collections.abc import AsyncIterator
from itertools import pairwise
from pathlib import Path
from typing import Any
from uuid import uuid4

import httpx
import psutil
import pytest

from app.kernel.agents import AgentType
from app.kernel.modes import Mode
from tests.system.conftest import Up

pytestmark = pytest.mark.slow

# Production begins with ten workers by itself, which is more than is needed to see this.
_BOUNDS = {Mode.DEVELOPMENT: (2, 3), Mode.PRODUCTION: (2, 6), Mode.TRUSTED_TESTER: (5, 7)}
_REASON = {"reason": "conformance"}
_ENDED = ("completed", "failed", "cancelled")


class Machine:
    """A running system in one mode, and who talks to it."""

    def __init__(self, up: Up, mode: Mode, client: httpx.AsyncClient) -> None:
        self.up = up
        self.mode = mode
        self.client = client
        self.least, self.most = _BOUNDS[mode]

    async def get(self, path: str, **query: Any) -> Any:
        answer = await self.client.get(path, params=query)
        assert answer.status_code == 200, answer.text
        return answer.json()

    async def post(self, path: str, body: Any) -> Any:
        answer = await self.client.post(path, json=body)
        assert answer.is_success, answer.text
        return answer.json()

    async def change(self, method: str, path: str, body: Any, **query: str) -> None:
        """Change what is there; anew where the service has changed it in the same moment."""
        for _ in range(10):
            version = (await self.client.get(path)).headers["etag"]
            headers = {"If-Match": version}
            answer = await self.client.request(method, path, json=body, params=query, headers=headers)
            if answer.status_code != 412:
                break
        assert answer.is_success, answer.text

    async def submit(self, count: int, **fields: Any) -> list[str]:
        """Ids of so many new tasks of all agent types."""
        agents = list(AgentType)
        tasks = [
            {"id": str(uuid4()), "agent_type": agents[n % len(agents)], "payload": {}, **fields} for n in range(count)
        ]
        await self.post("/tasks/batch", {"tasks": tasks})
        return [str(task["id"]) for task in tasks]

    async def ended(self, ids: list[str]) -> list[Any]:
        """The tasks, once all of them have ended."""
        found = []
        async with asyncio.timeout(120):
            for task_id in ids:
                while (task := await self.get(f"/tasks/{task_id}"))["state"] not in _ENDED:
                    await asyncio.sleep(0.2)
                found.append(task)
        return found

    async def workers(self) -> list[Any]:
        """The live workers, once there are as few as there may be at least, and all can work."""
        async with asyncio.timeout(60):
            while True:
                found: list[Any] = (await self.get("/workers"))["items"]
                able = [worker for worker in found if worker["state"] in ("ready", "busy")]
                if len(able) == len(found) >= self.least:
                    return found
                await asyncio.sleep(0.1)


@pytest.fixture(scope="module", params=list(Mode))
async def machine(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Machine]:
    """`convener up` in this mode."""
    mode: Mode = request.param
    least, most = _BOUNDS[mode]
    state: Path = tmp_path_factory.mktemp(mode.value) / "state"
    up = Up(state, CONVENER_POOL_SIZE=str(least))
    bounds = ("--min-workers", str(least), "--max-workers", str(most))
    await up.start("--mode", mode.value, *bounds)
    async with httpx.AsyncClient(base_url=up.url, headers=up.bearer("operator"), trust_env=False, timeout=30) as client:
        yield Machine(up, mode, client)
    if up.child is not None and up.child.poll() is None:
        assert up.stop() == 0
    for left in up.processes():
        left.kill()


async def test_it_is_in_its_mode_within_its_bounds(machine: Machine) -> None:
    config = await machine.get("/config")
    pool = config["worker_pool"]
    assert (config["mode"], pool["min_workers"], pool["max_workers"]) == (machine.mode, machine.least, machine.most)
    assert machine.least <= len(await machine.workers()) <= machine.most


async def test_every_task_is_completed_once(machine: Machine) -> None:
    ids = await machine.submit(30, goal_id="once")
    assert {task["state"] for task in await machine.ended(ids)} == {"completed"}
    completed: Counter[str] = Counter()
    query: dict[str, str] = {}
    while (page := await machine.get("/events", goal_id="once", limit=500, **query))["items"]:
        completed.update(event["task_id"] for event in page["items"] if event["kind"] == "task.completed")
        query = {"after": page["next"]}
    assert completed == Counter(dict.fromkeys(ids, 1))


async def test_a_failure_is_tried_again_and_then_a_dead_letter(machine: Machine) -> None:
    retry = {"max_attempts": 2, "delays_seconds": [0]}
    (failing,) = await machine.ended(await machine.submit(1, payload={"fail": "on purpose"}, retry=retry))
    assert (failing["state"], failing["failures"]) == ("failed", 2)
    letters = [letter["id"] for letter in (await machine.get("/dead-letters"))["items"]]
    assert failing["id"] in letters


async def test_a_worker_that_is_killed_is_replaced_and_its_task_done(machine: Machine) -> None:
    before = await machine.workers()
    ids = await machine.submit(2 * len(before), payload={"sleep_seconds": 1.0})
    victim = before[0]
    psutil.Process(victim["pid"]).kill()
    tasks = await machine.ended(ids)
    assert {(task["state"], task["failures"]) for task in tasks} == {("completed", 0)}
    assert victim["worker_id"] not in {worker["worker_id"] for worker in await machine.workers()}
    lost = [record["lost_worker_id"] for record in (await machine.get("/replacements"))["items"]]
    assert lost.count(victim["worker_id"]) == 1


async def test_a_running_task_is_cancelled(machine: Machine) -> None:
    (task_id,) = await machine.submit(1, payload={"sleep_seconds": 60})
    async with asyncio.timeout(30):
        while (await machine.get(f"/tasks/{task_id}"))["state"] != "executing":
            await asyncio.sleep(0.1)
    await machine.post(f"/tasks/{task_id}/cancel", _REASON)
    assert (await machine.get(f"/tasks/{task_id}"))["state"] == "cancelled"
    await machine.ended(await machine.submit(1))


async def test_a_paused_type_waits_and_the_others_go_on(machine: Machine) -> None:
    await machine.post("/queues/ranking/pause", _REASON)
    (paused,) = await machine.submit(1, agent_type="ranking")
    await machine.ended(await machine.submit(3, agent_type="generation"))
    assert (await machine.get(f"/tasks/{paused}"))["state"] == "pending"
    await machine.post("/queues/ranking/resume", _REASON)
    assert (await machine.ended([paused]))[0]["state"] == "completed"


async def test_a_burst_never_takes_the_pool_out_of_its_bounds(machine: Machine) -> None:
    ids = await machine.submit(120, payload={"sleep_seconds": 0.5})
    sizes: set[int] = set()
    watching = asyncio.create_task(machine.ended(ids))
    while not watching.done():
        sizes.add(len((await machine.get("/workers"))["items"]))
        await asyncio.sleep(0.2)
    assert {task["state"] for task in watching.result()} == {"completed"}
    assert machine.least - 1 <= min(sizes), "a worker that is being replaced is missing for a moment"
    assert max(sizes) <= machine.most
    decisions = (await machine.get("/scaling/decisions", limit=500))["items"]
    kinds = {decision["decision_type"] for decision in decisions}
    if machine.mode is Mode.DEVELOPMENT:
        # Refilling the pool after a worker was lost is no growth.
        assert max(sizes) == machine.least
    else:
        assert max(sizes) > machine.least
        assert "scale_up" in kinds
    grown = [d for d in decisions if d["current_workers"] >= machine.least]
    most = 1.25 if machine.mode is Mode.TRUSTED_TESTER else 2.0
    for decision in grown:
        step = max(decision["current_workers"] + 1, most * decision["current_workers"])
        assert decision["target_workers"] <= step, decision


async def test_every_decision_can_be_made_again(machine: Machine) -> None:
    after: int | None = 0
    while after is not None:
        answer = await machine.post("/scaling/decisions/replay", {"after": after, "limit": 100})
        assert answer["different"] == []
        after = answer["next"]


async def test_weights_keep_sum_floor_and_step(machine: Machine) -> None:
    wanted = {"generation_agent": 0.9, **{f"{agent}_agent": 0.02 for agent in list(AgentType)[1:]}}
    await machine.change("PUT", "/weights", {"weights": wanted, **_REASON})
    found = await machine.get("/weights")
    assert (found["heading"], found["target"]["generation_agent"]) == ("ordered", pytest.approx(0.9))
    versions = [entry["weights"] for entry in reversed((await machine.get("/weights/history"))["items"])]
    for weights in versions:
        assert sum(weights.values()) == pytest.approx(1)
        assert min(weights.values()) >= 0.02 - 1e-9
    for before, after in pairwise(versions):
        assert all(abs(after[name] - before[name]) <= 0.5 * before[name] + 1e-9 for name in before)


async def test_permits_never_exceed_what_the_configuration_says(machine: Machine) -> None:
    await machine.change("PATCH", "/config", {"resource_limits": {"max_concurrent_llm_calls": 1}}, **_REASON)
    key = machine.up.bearer("supervisor")
    await machine.change("PUT", "/llm/models/m", {}, **_REASON)

    async def acquire() -> httpx.Response:
        body = {"request_id": str(uuid4()), "model": "m", "agent_type": "ranking", "estimated_tokens": 1}
        return await machine.client.post("/llm/permits", json=body, headers=key)

    answers = await asyncio.gather(*(acquire() for _ in range(8)))
    granted = [answer.json() for answer in answers if answer.status_code == 201]
    assert Counter(answer.status_code for answer in answers) == {201: 1, 429: 7}
    settled = {"token": granted[0]["token"], "outcome": "success"}
    path = f"/llm/permits/{granted[0]['permit_id']}/settle"
    assert (await machine.client.post(path, json=settled, headers=key)).is_success
    assert (await machine.get("/llm/permits"))["items"] == []


async def test_health_and_metrics_have_the_specified_shape(machine: Machine) -> None:
    report = await machine.get("/health/report")
    assert report["overall_health"] in ("healthy", "degraded", "critical")
    assert set(report["worker_pool_health"]) >= {"total_workers", "healthy_workers", "utilization_percentage"}
    assert set(report["queue_health"]) >= {"total_pending_tasks", "oldest_task_age_seconds", "bottleneck_agent"}
    assert (report["queue_health"]["oldest_task_age_seconds"], report["queue_health"]["bottleneck_agent"]) == (0, None)
    runtime = await machine.get("/metrics/runtime")
    assert set(runtime["queue_depth"]) == {f"{agent}_tasks" for agent in AgentType}
    # It may be the first test of this machine, and the figures are of a moment before.
    await machine.workers()
    async with asyncio.timeout(60):
        while (await machine.get("/metrics/runtime"))["worker_status"]["idle_workers"] < machine.least:
            await asyncio.sleep(0.1)


async def test_a_stale_change_of_the_configuration_is_refused(machine: Machine) -> None:
    patch = {"test_time_compute": {"max_iterations": 50}}
    answer = await machine.client.patch("/config", json=patch, params=_REASON)
    assert (answer.status_code, answer.json()["code"]) == (428, "precondition_required")
    answer = await machine.client.patch("/config", json=patch, params=_REASON, headers={"If-Match": '"1"'})
    assert (answer.status_code, answer.json()["code"]) == (412, "version_stale")


async def test_the_audit_is_whole_and_has_reads_where_the_mode_wants_them(machine: Machine) -> None:
    admin = machine.up.bearer("admin")
    assert (await machine.client.get("/config", headers=admin)).is_success
    entries = (await machine.client.get("/audit", params={"limit": 500}, headers=admin)).json()["items"]
    actions = {entry["action"] for entry in entries}
    assert ("config.read" in actions) == (machine.mode is Mode.TRUSTED_TESTER), actions
    verified = await machine.client.post("/audit/verify", json={}, headers=admin)
    assert verified.is_success, verified.text
