"""Workers listed by name, state and label, and reported dead."""

from typing import Any

from app.kernel.access import Role
from tests.support.problems import is_problem
from tests.support.service import Service


async def _names(service: Service, **query: Any) -> list[str]:
    return [worker["name"] for worker in (await service.get("/workers", **query))["items"]]


async def test_by_name_state_and_label(service: Service) -> None:
    first = await service.worker("first", labels={"site": "lab1", "gpu": "yes"})
    await service.worker("second", labels={"site": "lab1"})
    await service.worker("third", ready=False)
    await service.submitted()
    await first.lease()
    assert await _names(service, name=["second", "third", "nobody"]) == ["second", "third"]
    assert await _names(service, state="busy") == ["first"]
    assert await _names(service, state=["busy", "starting"]) == ["first", "third"]
    assert await _names(service, label="site:lab1") == ["first", "second"]
    assert await _names(service, label=["site:lab1", "gpu:yes"]) == ["first"]
    await first.ask(f"/workers/{first.id}/goodbye", {"reason": "done"})
    assert await _names(service, name="first") == []
    assert (
        await _names(service, name="first", state="stopped")
        == await _names(service, name="first", all=True)
        == ["first"]
    )
    page = await service.get("/workers", label="site:lab1", all=True, limit=1)
    assert [worker["name"] for worker in page["items"]] == ["first"]
    assert await _names(service, label="site:lab1", all=True, limit=1, after=page["next"]) == ["second"]
    is_problem(await service.ask("GET", "/workers?state=asleep"), 422, "invalid_request")


async def test_whoever_knows_that_a_worker_is_dead_says_so(service: Service) -> None:
    worker = await service.worker()
    task_id = await service.submitted()
    lease = await worker.lease()
    answer = await service.ask("POST", f"/workers/{worker.id}/lost", {"reason": "its node burnt"}, key=Role.SUPERVISOR)
    assert (answer.status_code, answer.json()["state"]) == (200, "lost")
    assert answer.json()["ended_reason"] == "reported dead: its node burnt"
    task = await service.get(f"/tasks/{task_id}")
    assert (task["state"], task["rescues"], task["failures"]) == ("pending", 1, 0)
    assert (await worker.on_lease(lease, "complete", result={})).status_code == 409
    again = await service.ask("POST", f"/workers/{worker.id}/lost", {"reason": "again"})
    assert again.json()["ended_reason"] == "reported dead: its node burnt"
    (entry,) = (await service.get("/audit", action="worker.lost"))["items"]
    assert entry["reason"] == "its node burnt"


async def test_a_supervisor_manages_the_queue(service: Service) -> None:
    calls: list[tuple[str, Any]] = [
        ("/queues/ranking/pause", {"reason": "x"}),
        ("/queues/ranking/resume", {"reason": "x"}),
        ("/dead-letters/purge", {"filter": {"all": True}}),
        ("/checkpoints", {"reason": "x"}),
        ("/workers/drain", {"filter": {"all": True}}),
    ]
    for path, body in calls:
        assert (await service.ask("POST", path, body, key=Role.SUPERVISOR)).is_success, path
    # Within bounds, which here are those of no host.
    is_problem(await service.ask("POST", "/workers/start", {}, key=Role.SUPERVISOR), 409, "start_refused")
    for path in ("/workers/stop", "/workers/restart"):
        answer = await service.ask("POST", path, {"filter": {"all": True}}, key=Role.SUPERVISOR)
        assert answer.status_code == 403, path
