"""The life of a task over HTTP: submitted, listed, read, cancelled."""

import json
from typing import Any
from uuid import uuid4

import pytest

from app.db.database import Database
from app.kernel.access import Role
from app.queue.store import counters
from tests.support.problems import is_problem
from tests.support.service import Service
from tests.support.sql import execute, value


async def test_a_task_runs_from_submit_to_result(service: Service) -> None:
    given = {
        "agent_type": "ranking",
        "goal_id": "kepler",
        "priority": "high",
        "payload": {"pairs": [[1, 2]], "text": "ü 🪐", "big": 2**70, "small": 1e-9},
        "labels": {"team": "blue"},
        "timeout_seconds": 77,
        "trace_context": "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01",
    }
    task = await service.post("/tasks", given, key=Role.SUPERVISOR)
    identity = {"agent_type": "ranking", "namespace": "default", "goal_id": "kepler", "priority": "high"}
    assert task == {"id": task["id"], "state": "pending", "created": True, **identity}
    stored = await service.get(f"/tasks/{task['id']}")
    shown = {name: value for name, value in given.items() if name != "trace_context"}
    assert {name: stored[name] for name in shown} == shown
    assert (stored["state"], stored["attempt"]) == ("pending", 1)
    worker = await service.worker()
    lease = await worker.lease(acknowledge=False)
    same = ("agent_type", "goal_id", "priority", "payload", "labels", "timeout_seconds", "trace_context")
    assert {name: lease[name] for name in same} == {name: given[name] for name in same}
    assert (lease["task_id"], lease["attempt"], lease["checkpoint"]) == (task["id"], 1, None)
    assert (await service.get(f"/tasks/{task['id']}"))["state"] == "assigned"
    assert (await worker.on_lease(lease, "start")).json()["state"] == "executing"
    await worker.on_lease(lease, "progress", percent=40, message="on it", checkpoint={"step": 4})
    running = await service.get(f"/tasks/{task['id']}")
    assert (running["state"], running["worker_id"], running["token"]) == ("executing", worker.id, lease["token"])
    assert running["progress"] == {"percent": 40, "message": "on it"}
    assert running["checkpoint"] == {"step": 4}
    usage = {"wall_seconds": 1.5, "cpu_seconds": 1, "max_memory_mb": 20}
    done = await worker.on_lease(lease, "complete", result={"elo": 1234.5}, usage=usage, quality=0.8)
    assert done.json() == {"task_id": task["id"], "state": "completed", "lease": None}
    over = await service.get(f"/tasks/{task['id']}")
    assert (over["state"], over["result"], over["usage"], over["attempt"]) == ("completed", {"elo": 1234.5}, usage, 1)
    assert (over["payload"], over["quality"]) == (given["payload"], 0.8)
    assert over["finished_at"] is not None
    assert over["attempts"] == []


async def test_a_failed_attempt_leaves_its_checkpoint_and_its_story(service: Service) -> None:
    task_id = await service.submitted(retry={"max_attempts": 2, "delays_seconds": [0]})
    worker = await service.worker()
    first = await worker.lease()
    await worker.on_lease(first, "progress", percent=10, checkpoint={"step": 1})
    error = {"code": "llm_timeout", "message": "no answer", "retryable": True, "detail": {"model": "m"}}
    failed = (await worker.on_lease(first, "fail", error=error)).json()
    assert failed["state"] == "pending"
    # Another worker is preferred, so the first would have to wait.
    worker = await service.worker()
    second = await worker.lease(wait_seconds=30)
    assert (second["attempt"], second["checkpoint"]) == (2, {"step": 1})
    assert second["token"] > first["token"]
    assert (await worker.on_lease(second, "fail", error=error)).json() == {
        "task_id": task_id,
        "state": "failed",
        "run_at": None,
    }
    task = await service.get(f"/tasks/{task_id}")
    assert (task["state"], task["attempt"], task["failures"]) == ("failed", 2, 2)
    assert [attempt["outcome"] for attempt in task["attempts"]] == ["failed", "failed"]
    assert task["error"]["code"] == "llm_timeout"
    assert task["error"]["detail"] == {"model": "m"}


async def test_a_task_given_back_burns_no_attempt(service: Service) -> None:
    await service.submitted()
    worker = await service.worker()
    lease = await worker.lease()
    assert (await worker.on_lease(lease, "release", reason="draining")).json()["state"] == "pending"
    again = await worker.lease()
    assert (again["task_id"], again["attempt"]) == (lease["task_id"], 1)


async def test_every_call_on_a_lease_may_be_repeated(service: Service) -> None:
    worker = await service.worker()
    calls: dict[str, dict[str, Any]] = {
        "release": {},
        "fail": {"error": {"code": "c", "message": "m", "retryable": False}},
        "complete": {"result": {"a": 1}},
    }
    for verb, fields in calls.items():
        await service.submitted()
        lease = await worker.lease(acknowledge=False)
        assert (await worker.on_lease(lease, "start")).json()["state"] == "executing"
        assert (await worker.on_lease(lease, "start")).status_code == 200
        first = await worker.on_lease(lease, verb, **fields)
        second = await worker.on_lease(lease, verb, **fields)
        assert (first.status_code, second.status_code) == (200, 200), verb
        assert first.json() == second.json(), verb
        if verb == "release":
            await service.post(f"/tasks/{lease['task_id']}/cancel")


async def test_another_outcome_for_a_finished_task_is_refused(service: Service) -> None:
    task_id = await service.submitted()
    worker = await service.worker()
    lease = await worker.lease()
    told: dict[str, Any] = {"result": {"a": 1}, "quality": 0.5}
    assert (await worker.on_lease(lease, "complete", **told)).status_code == 200
    for change in ({"result": {"a": 2}}, {"quality": 0.9}, {"quality": None}):
        other = await worker.on_lease(lease, "complete", **told | change)
        assert (other.status_code, other.json()["code"]) == (409, "lease_ended"), change
    measured_anew = {"usage": {"wall_seconds": 1, "cpu_seconds": 1, "max_memory_mb": 1}}
    assert (await worker.on_lease(lease, "complete", **told | measured_anew)).status_code == 200
    assert (await service.get(f"/tasks/{task_id}"))["result"] == {"a": 1}


@pytest.mark.parametrize(
    ("name", "agent"),
    [
        ("generation", "generation"),
        ("generation_agent", "generation"),
        ("Generation", "generation"),
        ("meta-review", "meta_review"),
        ("MetaReview", "meta_review"),
        ("MetaReviewAgent", "meta_review"),
        ("generate_hypothesis", "generation"),
        ("rank_hypotheses", "ranking"),
        ("find_similar_hypotheses", "proximity"),
    ],
)
async def test_agents_go_by_many_names_but_are_shown_by_one(service: Service, name: str, agent: str) -> None:
    task_id = await service.submitted(agent_type=name)
    assert (await service.get(f"/tasks/{task_id}"))["agent_type"] == agent
    assert [task["id"] for task in (await service.get("/tasks", agent_type=name))["items"]] == [task_id]
    worker = await service.worker(capabilities=[name])
    assert (await worker.lease(agent_types=[name]))["agent_type"] == agent


@pytest.mark.parametrize(("number", "name"), [(1, "low"), (2, "medium"), (3, "high"), ("critical", "critical")])
async def test_priorities_may_be_numbers(service: Service, number: object, name: str) -> None:
    task_id = await service.submitted(priority=number)
    assert (await service.get(f"/tasks/{task_id}"))["priority"] == name


async def test_urgent_tasks_are_leased_first(service: Service) -> None:
    for priority in ("low", 2, "critical", 3):
        await service.submitted(priority=priority)
    worker = await service.worker()
    order = []
    for _ in range(4):
        lease = await worker.lease()
        order.append(lease["priority"])
        await worker.on_lease(lease, "complete", result={})
    assert order == ["critical", "high", "medium", "low"]


async def test_completing_may_lease_the_next_task(service: Service) -> None:
    first, second = await service.submitted(), await service.submitted()
    worker = await service.worker()
    lease = await worker.lease()
    wanted = {"request_id": str(uuid4()), "acknowledge": True}
    done = (await worker.on_lease(lease, "complete", result={}, next=wanted)).json()
    assert (lease["task_id"], done["lease"]["task_id"]) == (first, second)
    again = (await worker.on_lease(lease, "complete", result={}, next=wanted)).json()
    assert again["lease"]["token"] == done["lease"]["token"]
    last = (
        await worker.on_lease(done["lease"], "complete", result={}, next=wanted | {"request_id": str(uuid4())})
    ).json()
    assert last == {"task_id": second, "state": "completed", "lease": None}


async def test_cancelling(service: Service) -> None:
    waiting, running = await service.submitted(priority="low"), await service.submitted()
    worker = await service.worker()
    lease = await worker.lease()
    assert lease["task_id"] == running
    for task_id in (waiting, running):
        for _ in range(2):
            task = await service.post(f"/tasks/{task_id}/cancel", {"reason": "no more"}, key=Role.SUPERVISOR)
            assert (task["state"], task["error"]["message"]) == ("cancelled", "no more")
    answer = await worker.on_lease(lease, "complete", result={})
    assert (answer.status_code, answer.json()["code"]) == (409, "task_cancelled")
    assert await worker.lease() is None


async def test_what_has_finished_cannot_be_cancelled(service: Service) -> None:
    task_id = await service.submitted()
    worker = await service.worker()
    await worker.on_lease(await worker.lease(), "complete", result={})
    answer = await service.ask("POST", f"/tasks/{task_id}/cancel", {})
    assert (answer.status_code, answer.json()["code"]) == (409, "task_finished")
    assert (await service.get(f"/tasks/{task_id}"))["state"] == "completed"


async def test_a_list_is_filtered_and_shows_no_payload(service: Service) -> None:
    mine = await service.submitted(goal_id="mine", agent_type="ranking")
    await service.submitted(goal_id="yours", agent_type="ranking")
    finished = await service.submitted(goal_id="mine", agent_type="evolution")
    await service.post(f"/tasks/{finished}/cancel")
    listed = (await service.get("/tasks", goal_id="mine"))["items"]
    assert [task["id"] for task in listed] == [finished, mine]
    assert not {"payload", "result", "checkpoint"} & set(listed[0])
    for query, ids in (
        ({"state": "cancelled"}, [finished]),
        ({"state": "pending", "goal_id": "mine"}, [mine]),
        ({"agent_type": "Evolution"}, [finished]),
        ({"state": "completed"}, []),
    ):
        page = await service.get("/tasks", **query)
        assert ([task["id"] for task in page["items"]], page["next"]) == (ids, None), query


async def test_pages_are_complete_while_tasks_come_and_finish(service: Service) -> None:
    known = [await service.submitted(goal_id="pages") for _ in range(12)]
    worker = await service.worker()
    seen: list[str] = []
    after: dict[str, str] = {}
    while True:
        page = await service.get("/tasks", goal_id="pages", limit=5, **after)
        seen += [task["id"] for task in page["items"]]
        await service.submitted(goal_id="pages")
        await worker.on_lease(await worker.lease(), "complete", result={})
        if page["next"] is None:
            break
        after = {"after": page["next"]}
    assert len(seen) == len(set(seen))
    assert seen == known[::-1]


async def test_a_task_with_a_time_to_run_waits_for_it(service: Service) -> None:
    await service.submitted(run_at="2100-01-01T00:00:00+02:00")
    worker = await service.worker()
    assert await worker.lease() is None
    (task,) = (await service.get("/tasks"))["items"]
    assert task["run_at"].startswith("2099-12-31T22:00:00")


async def test_a_waiting_task_changes_its_place(service: Service, database: Database) -> None:
    first, second = [await service.submitted(agent_type="ranking") for _ in range(2)]
    answer = await service.ask("PATCH", f"/tasks/{second}", {"priority": "critical", "reason": "the referee waits"})
    changed = answer.json()
    assert (answer.status_code, changed["priority"], changed["submitted_priority"]) == (200, "critical", "critical")
    deadline = "2100-01-01T00:00:00Z"
    for _ in range(2):
        changed = (await service.ask("PATCH", f"/tasks/{second}", {"deadline": deadline})).json()
        assert (changed["priority"], changed["deadline"][:10]) == ("critical", deadline[:10])
    assert (await service.ask("PATCH", f"/tasks/{second}", {"deadline": None})).json()["deadline"] is None
    kinds = [event["kind"] for event in (await service.get("/events"))["items"] if event["task_id"] == second]
    assert kinds == ["task.submitted", "task.changed", "task.changed", "task.changed"]
    worker = await service.worker()
    lease = await worker.lease()
    assert (lease["task_id"], lease["priority"]) == (second, "critical")
    is_problem(await service.ask("PATCH", f"/tasks/{second}", {"priority": "low"}), 409, "task_running")
    await worker.on_lease(lease, "complete", result={})
    is_problem(await service.ask("PATCH", f"/tasks/{second}", {"priority": "low"}), 409, "task_finished")
    is_problem(await service.ask("PATCH", f"/tasks/{uuid4()}", {"priority": "low"}), 404, "task_not_found")
    assert (await service.ask("PATCH", f"/tasks/{first}", {"reason": "none"})).status_code == 422
    await execute(database, "UPDATE tasks SET waiting_since = now() - interval '1 h'")
    await service.ask("PATCH", f"/tasks/{first}", {"priority": "low"})
    # Or ageing, which has looked at all low ones of so long ago, would pass it over for ever.
    assert await value(database, "SELECT now() - waiting_since < interval '1 min' FROM tasks")
    assert (await service.get("/queues"))["depth"]["by_priority"]["low"] == 1
    async with database.transaction() as connection:
        assert await counters.differences(connection) == []


async def test_a_lease_says_when_its_task_was_submitted(service: Service) -> None:
    task_id = await service.submitted()
    lease = await (await service.worker()).lease()
    assert lease["created_at"] == (await service.get(f"/tasks/{task_id}"))["created_at"]


async def test_a_payload_comes_back_as_it_was_written(service: Service, database: Database) -> None:
    """In the lease, in the task, in history and after a requeue: keys in their order, and numbers as they are."""
    payload = '{"zeta": 1e+300, "alpha": {"b": 1.5E-7, "a": [1.0, 2]}, "n": -0.0, "m": 10000000000000000000000}'
    body = f'{{"agent_type": "ranking", "payload": {payload}}}'
    headers = {"Content-Type": "application/json"}
    task_id = (await service.ask("POST", "/tasks", content=body, headers=headers)).json()["id"]
    stored = await value(database, "SELECT payload_text FROM tasks")
    assert list(json.loads(stored)) == ["zeta", "alpha", "n", "m"]
    worker = await service.worker()

    async def check_lease() -> Any:
        answer = await worker.ask("/lease", {"request_id": str(uuid4()), "acknowledge": True})
        assert json.dumps(answer.json()["payload"]) == json.dumps(json.loads(payload))
        return answer.json()

    async def check_task() -> None:
        answer = await service.ask("GET", f"/tasks/{task_id}")
        assert json.dumps(answer.json()["payload"]) == json.dumps(json.loads(payload))

    await check_task()
    lease = await check_lease()
    await worker.on_lease(lease, "fail", error={"code": "c", "message": "m", "retryable": False})
    await check_task()
    await service.post(f"/dead-letters/{task_id}/requeue", {})
    await worker.on_lease(await check_lease(), "complete", result={})
    await check_task()


async def test_names_of_workers_stand_beside_their_ids_also_when_they_are_gone(service: Service) -> None:
    worker = await service.worker("lab-7")
    done = await service.submitted(agent_type="ranking", priority="high")
    given_up = await service.submitted(agent_type="ranking", retry={"max_attempts": 2, "delays_seconds": [0]})
    await worker.on_lease(await worker.lease(), "complete", result={})
    error = {"code": "c", "message": "m"}
    await worker.on_lease(await worker.lease(), "fail", error=error)
    await worker.on_lease(await worker.lease(wait_seconds=20), "fail", error=error | {"retryable": False})
    await service.post(f"/workers/{worker.id}/goodbye", {}, key=worker.key)

    def named(thing: Any) -> bool:
        return bool((thing["worker_id"], thing["worker_name"]) == (worker.id, "lab-7"))

    task = await service.get(f"/tasks/{given_up}")
    letter = await service.get(f"/dead-letters/{given_up}")
    events = (await service.get("/events", kind=["task.assigned", "task.retrying", "task.failed"]))["items"]
    assert [named(thing) for thing in (task, letter, await service.get(f"/tasks/{done}"))] == [True] * 3
    assert [named(attempt) for attempt in task["attempts"] + letter["attempts"]] == [True] * 4
    assert [named(item) for item in (await service.get("/tasks"))["items"]] == [True] * 2
    assert [named(item) for item in (await service.get("/dead-letters"))["items"]] == [True]
    assert [named(item) for item in (await service.get("/outputs"))["items"]] == [True]
    assert [named(event) for event in events] == [True] * 5
    own = (await service.get("/events", namespace="default", kind=["task.failed"]))["items"]
    assert [named(event) for event in own] == [True]
    waiting = await service.get(f"/tasks/{await service.submitted()}")
    assert (waiting["worker_id"], waiting["worker_name"]) == (None, None)
