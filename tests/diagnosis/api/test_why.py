"""`GET /tasks/{id}/why`: what a task waits for over HTTP, and who is told how much."""

from app.db.database import Database
from app.kernel.access import Role
from tests.support.service import Service
from tests.support.sql import execute


async def test_each_change_of_the_world_changes_the_cause(service: Service) -> None:
    first = await service.submitted(agent_type="ranking")
    second = await service.submitted(agent_type="ranking", depends_on=[first])
    assert (await service.get(f"/tasks/{first}/why"))["cause"]["code"] == "unserved"
    worker = await service.worker(capabilities=["ranking"])
    assert (await service.get(f"/tasks/{first}/why"))["cause"]["code"] == "next"
    await service.post("/queues/ranking/pause", {"reason": "new prompts"})
    why = await service.get(f"/tasks/{first}/why")
    assert (why["cause"]["code"], why["place"]) == ("paused", None)
    assert why["cause"]["mends"][0]["command"] == "convener queues resume ranking"
    why = await service.get(f"/tasks/{second}/why")
    assert (why["cause"]["code"], [later["code"] for later in why["then"]]) == ("blocked", ["paused"])
    assert (why["blocker"]["task_id"], why["blocker"]["cause"]["code"]) == (first, "paused")
    await service.post("/queues/ranking/resume")
    await worker.lease()
    third = await service.submitted(agent_type="ranking")
    last = await service.submitted(agent_type="ranking", priority="high")
    why = await service.get(f"/tasks/{third}/why")
    assert (why["cause"]["code"], why["place"]) == ("busy", {"ahead": 1, "higher_priority": 1, "exact": True})
    assert (await service.get(f"/tasks/{last}/why"))["place"]["ahead"] == 0
    assert (await service.get(f"/tasks/{first}/why"))["cause"]["code"] == "running"
    await service.post(f"/tasks/{first}/cancel")
    assert (await service.get(f"/tasks/{second}/why"))["cause"]["code"] == "cancelled"


async def test_a_key_of_a_namespace_learns_nothing_of_others(service: Service, database: Database) -> None:
    key = (await service.post("/keys", {"role": "supervisor", "label": "lab", "namespace": "lab-a"}))["key"]
    mine = (await service.post("/tasks", {"agent_type": "ranking"}, key=key))["id"]
    other = await service.submitted(agent_type="ranking")
    assert (await service.ask("GET", f"/tasks/{other}/why", key=key)).status_code == 404
    gone = await service.worker("secret-host-1", capabilities=["ranking"])
    lose = "UPDATE workers SET state = 'lost', ended_at = now(), ended_reason = 'x' WHERE id = $1"
    await execute(database, lose, gone.id)
    await service.post("/queues/ranking/pause", {"reason": "secret words"})
    answer = await service.ask("GET", f"/tasks/{mine}/why", key=key)
    assert [answer.json()["cause"]["code"], answer.json()["then"][0]["code"]] == ["paused", "unserved"]
    assert "secret" not in answer.text
    shown = await service.ask("GET", f"/tasks/{mine}/why", key=Role.OPERATOR)
    assert "secret words" in shown.text
    assert "secret-host-1" in shown.text


async def test_a_task_that_was_never_there(service: Service) -> None:
    answer = await service.ask("GET", "/tasks/00000000-0000-4000-8000-000000000000/why")
    assert (answer.status_code, answer.json()["code"]) == (404, "task_not_found")
