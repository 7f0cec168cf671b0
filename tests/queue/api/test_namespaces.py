"""Supervisors of two namespaces share the service, with equal names for their own things."""

import asyncio
from dataclasses import dataclass
from typing import Any
from uuid import uuid4, uuid5

import pytest

from app.db.database import Database
from app.kernel.access import Role
from app.queue.rules.admission import CapacityPolicy
from app.queue.service.admission import Admission
from tests.support.service import Service
from tests.support.sql import fetch


@dataclass(frozen=True, slots=True, kw_only=True)
class Lab:
    """The supervisor of a namespace."""

    service: Service
    key: str

    async def ask(self, method: str, path: str, body: Any = None) -> tuple[int, Any]:
        """Status and body of the answer."""
        answer = await self.service.ask(method, path, body, key=self.key)
        return answer.status_code, answer.json()

    async def submit(self, **fields: Any) -> tuple[int, Any]:
        """Submit a task."""
        return await self.ask("POST", "/tasks", {"agent_type": "generation"} | fields)

    async def ids(self) -> list[str]:
        """Ids of all tasks that it sees."""
        return [task["id"] for task in (await self.ask("GET", "/tasks?limit=500"))[1]["items"]]


async def _lab(service: Service, namespace: str) -> Lab:
    made = await service.post("/keys", {"role": "supervisor", "label": "test", "namespace": namespace})
    return Lab(service=service, key=made["key"])


@pytest.fixture
async def labs(service: Service) -> tuple[Lab, Lab]:
    return await _lab(service, "lab-a"), await _lab(service, "lab-b")


async def test_one_namespace_is_the_whole_service_until_there_is_another(service: Service) -> None:
    await service.submitted()
    for path in ("/tasks", "/status", "/workers", "/config", "/weights"):
        assert (await service.ask("GET", path, key=Role.SUPERVISOR)).status_code == 200, path
    other = await _lab(service, "lab-a")
    assert await other.ids() == []
    assert (await service.ask("GET", "/status", key=Role.SUPERVISOR)).status_code == 403
    task = (await service.ask("GET", "/tasks", key=Role.SUPERVISOR)).json()["items"][0]
    assert task["namespace"] == "default"


async def test_a_supervisor_of_default_plants_nothing_elsewhere(service: Service) -> None:
    answer = await service.ask("POST", "/tasks?namespace=lab-a", {"agent_type": "ranking"}, key=Role.SUPERVISOR)
    assert answer.status_code == 403


async def test_equal_names_are_different_things(labs: tuple[Lab, Lab]) -> None:
    ours, theirs = labs
    for number, lab in enumerate(labs, start=1):
        body = {"id": "g1", "objective": f"objective {number}", "weight": number}
        assert (await lab.ask("POST", "/goals", body))[0] == 201
        await lab.ask("PUT", "/goals/other/weight", {"weight": number})
        status, task = await lab.submit(goal_id="g1", idempotency_key="k", payload={"n": number})
        assert (status, task["goal_id"]) == (201, "g1")
    await ours.ask("POST", "/goals/g1/stop", {"reason": "x"})
    assert (await ours.ask("GET", "/goals/g1"))[1]["state"] == "stopped"
    status, goal = await theirs.ask("GET", "/goals/g1")
    assert (goal["state"], goal["objective"], goal["namespace"]) == ("running", "objective 2", "lab-b")
    assert (await theirs.ask("GET", "/goals/other/weight"))[1] == {"goal_id": "other", "weight": 2}
    assert (await ours.submit(goal_id="g1"))[0] == 409
    assert (await theirs.submit(goal_id="g1"))[0] == 201


async def test_an_id_of_another_namespace_is_neither_seen_nor_changed(labs: tuple[Lab, Lab]) -> None:
    ours, theirs = labs
    body: dict[str, Any] = {"id": str(uuid4()), "payload": {"secret": 1}}
    assert (await ours.submit(**body))[0] == 201
    status, problem = await theirs.submit(**body)
    assert (status, problem["code"]) == (409, "task_conflict")
    assert "secret" not in str(problem)
    for method, path in (("GET", ""), ("POST", "/cancel")):
        assert (await theirs.ask(method, f"/tasks/{body['id']}{path}", {} if path else None))[0] == 404
    assert (await ours.ask("GET", f"/tasks/{body['id']}"))[1]["state"] == "pending"
    status, problem = await theirs.submit(depends_on=[body["id"]])
    assert (status, problem["code"]) == (422, "dependency_missing")
    assert await theirs.ids() == []


async def test_nobody_takes_the_id_that_another_namespace_derives_from_its_key(
    labs: tuple[Lab, Lab], service: Service
) -> None:
    ours, theirs = labs
    _, used = await ours.submit(idempotency_key="kepler-1")
    answer = await service.ask("POST", "/tasks", {"agent_type": "ranking", "idempotency_key": "kepler-1"})
    for attempt in (used["id"], answer.json()["id"]):
        # The same refusal whether the key has been used or not.
        assert (await theirs.submit(id=attempt))[1]["code"] == "task_id_refused"
    answer = await service.ask("POST", "/tasks", {"agent_type": "ranking", "id": used["id"]}, key=Role.SUPERVISOR)
    assert (answer.status_code, answer.json()["code"]) == (422, "task_id_refused")


async def test_what_is_for_all_is_for_all_of_ones_own(labs: tuple[Lab, Lab], service: Service) -> None:
    ours, theirs = labs
    for lab in labs:
        for _ in range(3):
            await lab.submit()
    _, outcome = await ours.ask("POST", "/tasks/cancel", {"filter": {"all": True}})
    assert (outcome["matched"], outcome["cancelled"]) == (3, 3)
    states = {task["state"] for task in (await theirs.ask("GET", "/tasks"))[1]["items"]}
    assert states == {"pending"}
    assert len((await service.get("/tasks"))["items"]) == 6
    assert len((await service.get("/tasks", namespace="lab-b"))["items"]) == 3


async def test_a_cursor_of_another_namespace_shows_only_ones_own(labs: tuple[Lab, Lab]) -> None:
    ours, theirs = labs
    await ours.submit(goal_id="g1")
    await theirs.submit(goal_id="g1")
    cursor = (await ours.ask("GET", "/events?limit=1"))[1]["items"][0]["cursor"]
    await ours.submit(goal_id="g1")
    seen = (await theirs.ask("GET", f"/events?after={cursor}"))[1]
    assert {event["namespace"] for event in seen["items"]} == {"lab-b"}
    again = (await theirs.ask("GET", f"/events?after={seen['next']}"))[1]
    assert again["items"] == []
    position = (await ours.ask("GET", "/tasks?limit=1"))[1]["next"]
    assert len((await theirs.ask("GET", f"/tasks?after={position}"))[1]["items"]) <= 1


async def test_a_window_of_foreign_events_is_passed(labs: tuple[Lab, Lab], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("app.queue.store.events._WINDOW", 5)
    ours, theirs = labs
    for _ in range(12):
        await ours.submit()
    await theirs.submit()
    cursor, events = "0-0", list[Any]()
    for _ in range(10):
        page = (await theirs.ask("GET", f"/events?after={cursor}"))[1]
        cursor, events = page["next"], events + page["items"]
    assert [event["kind"] for event in events] == ["task.submitted"]


async def test_a_stream_brings_only_ones_own(labs: tuple[Lab, Lab]) -> None:
    ours, theirs = labs
    # From one cursor on: a call that says `now` itself may come after the task on a busy machine.
    now = (await theirs.ask("GET", "/events?after=now"))[1]["next"]
    waiting = asyncio.create_task(theirs.ask("GET", f"/events?after={now}&wait_seconds=20"))
    await asyncio.sleep(0.2)
    await ours.submit(goal_id="secret")
    await asyncio.sleep(0.2)
    assert not waiting.done()
    await theirs.submit(goal_id="mine")
    _, page = await waiting
    assert [event["goal_id"] for event in page["items"]] == ["mine"]


async def test_who_waits_for_all_is_confined_with_the_first_other_namespace(service: Service) -> None:
    free = Lab(service=service, key=service.keys[Role.SUPERVISOR])
    waiting = asyncio.create_task(free.ask("GET", "/events?after=now&wait_seconds=5"))
    await asyncio.sleep(0.2)
    ours = await _lab(service, "lab-a")
    await ours.submit(goal_id="secret")
    status, page = await waiting
    assert (status, page["items"]) == (200, [])


async def test_the_counters_tell_the_namespaces_apart(labs: tuple[Lab, Lab], database: Database) -> None:
    for number, lab in enumerate(labs, start=1):
        for _ in range(number):
            await lab.submit()
    rows = await fetch(database, "SELECT phase, sum(tasks) FROM queue_changes GROUP BY 1 ORDER BY 1")
    assert [tuple(row) for row in rows] == [("@lab-a/pending", 1), ("@lab-b/pending", 2)]


async def test_a_namespace_leaves_room_for_others(labs: tuple[Lab, Lab], service: Service) -> None:
    admission = service.app.state.services[Admission]
    admission.policy = CapacityPolicy(max_queue_size=100, quotas={})
    ours, theirs = labs
    for _ in range(8):
        assert (await ours.ask("POST", "/tasks/batch", {"tasks": [{"agent_type": "ranking"}] * 10}))[0] == 201
    status, problem = await ours.submit()
    assert (status, problem["code"]) == (429, "queue_full")
    assert "80 tasks of the namespace lab-a wait already and 80 may" in problem["detail"]
    assert (await theirs.ask("POST", "/tasks/batch", {"tasks": [{"agent_type": "ranking"}] * 20}))[0] == 201
    status, problem = await theirs.submit()
    assert status == 429
    assert "80" not in problem["detail"], "what others have waiting is theirs"


async def test_a_share_of_the_queue_can_be_configured(labs: tuple[Lab, Lab], service: Service) -> None:
    patch = {"namespaces": {"lab-a": {"max_tasks_share": 0.1, "weight": 2}}, "queue": {"max_size": 100}}
    version = (await service.ask("GET", "/config")).headers["etag"]
    answer = await service.ask("PATCH", "/config", patch, headers={"If-Match": version})
    assert answer.status_code == 200, answer.text
    assert answer.json()["namespaces"] == {"lab-a": {"weight": 2.0, "max_tasks_share": 0.1}}
    ours, _ = labs
    assert (await ours.ask("POST", "/tasks/batch", {"tasks": [{"agent_type": "ranking"}] * 11}))[0] == 429
    assert (await ours.ask("POST", "/tasks/batch", {"tasks": [{"agent_type": "ranking"}] * 10}))[0] == 201


@pytest.mark.parametrize("wrong", [{"Lab": {}}, {"a/b": {}}, {"": {}}, {"lab-a": {"weight": 0}}, {"lab-a": {"x": 1}}])
async def test_a_configuration_that_cannot_be(service: Service, wrong: dict[str, Any]) -> None:
    version = (await service.ask("GET", "/config")).headers["etag"]
    answer = await service.ask("PATCH", "/config", {"namespaces": wrong}, headers={"If-Match": version})
    assert answer.status_code == 422


async def test_each_sees_what_it_has_waiting(labs: tuple[Lab, Lab], service: Service) -> None:
    ours, theirs = labs
    await ours.submit(priority="high")
    for _ in range(2):
        await theirs.submit()
    (own,) = (await ours.ask("GET", "/namespaces"))[1]["items"]
    assert (own["namespace"], own["queued"], own["max_queued"]) == ("lab-a", 1, 8000)
    assert (own["by_priority"], own["by_agent"], own["by_phase"]) == ({"high": 1}, {"generation": 1}, {"pending": 1})
    everybody = (await service.get("/namespaces"))["items"]
    assert [(item["namespace"], item["queued"]) for item in everybody] == [("default", 0), ("lab-a", 1), ("lab-b", 2)]
    assert (await service.get("/queues"))["depth"]["total"] == 3


async def test_an_agent_as_such_is_judged_by_the_whole_service(labs: tuple[Lab, Lab]) -> None:
    ours, _ = labs
    body = {"request_id": str(uuid4()), "items": [{"agent_type": "ranking", "quality": 1}]}
    assert (await ours.ask("POST", "/metrics/performance", body))[0] == 403


async def test_judgements_of_two_namespaces_are_told_apart(labs: tuple[Lab, Lab], service: Service) -> None:
    ours, _ = labs
    worker = await service.worker()

    default = Lab(service=service, key=service.keys[Role.SUPERVISOR])
    request_id = uuid4()
    # Under the first one the request of the other lab would be stored, if that could be chosen.
    for lab, chosen_id, quality in ((default, uuid5(request_id, "lab-a"), 0.1), (ours, request_id, 0.2)):
        _, task = await lab.submit()
        await worker.on_lease(await worker.lease(), "complete", result={})
        body = {"request_id": str(chosen_id), "items": [{"task_id": task["id"], "quality": quality}]}
        assert (await lab.ask("POST", "/metrics/performance", body))[0] == 202
