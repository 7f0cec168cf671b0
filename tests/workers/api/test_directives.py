"""What people tell workers, over HTTP: one by its id or many by a filter, recorded, and safe to repeat."""

from typing import Any
from uuid import uuid4

import pytest

from app.db.database import Database
from app.kernel.access import Role
from app.kernel.modes import Mode
from app.kernel.states import WorkerState
from app.workers.service import pool, workers
from app.workers.store import pool as store
from tests.support.factories import report
from tests.support.problems import is_problem
from tests.support.service import Service
from tests.support.sql import execute

DONE = {"drain": "drained", "stop": "stopped", "restart": "restarted"}


async def _many(service: Service, verb: str, filter_: Any, **more: Any) -> Any:
    return await service.post(f"/workers/{verb}", {"filter": filter_, **more}, key=Role.OPERATOR)


async def _directives(service: Service) -> dict[str, str | None]:
    return {worker["name"]: worker["directive"] for worker in (await service.get("/workers"))["items"]}


@pytest.mark.parametrize("verb", DONE)
async def test_what_a_filter_selects_is_counted_then_told_and_recorded(service: Service, verb: str) -> None:
    for name in ("ada", "bob", "eve"):
        await service.worker(name, labels={"site": "lab1" if name == "bob" else "lab2"})
    filter_ = {"label": ["site:lab2"]}
    counted = await _many(service, verb, filter_, dry_run=True)
    assert counted == {"matched": 2, DONE[verb]: 0, "remaining": 2, "dry_run": True}
    assert set((await _directives(service)).values()) == {None}
    done = await _many(service, verb, filter_, limit=1, reason="the lab moves")
    assert done == {"matched": 2, DONE[verb]: 1, "remaining": 1, "dry_run": False}
    assert (await _many(service, verb, filter_))["remaining"] == 0
    assert (await _many(service, verb, filter_)) == {"matched": 0, DONE[verb]: 0, "remaining": 0, "dry_run": False}
    assert await _directives(service) == {"ada": verb, "bob": None, "eve": verb}
    second, first = [item for item in (await service.get("/audit"))["items"] if item["action"] == f"workers.{verb}"]
    assert (first["after"], first["reason"]) == ({"ada": verb}, "the lab moves")
    assert (second["before"], second["after"]) == ({"eve": None}, {"eve": verb})
    assert first["by"] == service.keys[Role.OPERATOR].split("_")[1]


async def test_workers_are_selected_by_the_agent_they_are_assigned_to(service: Service, database: Database) -> None:
    for name in ("ada", "bob"):
        await service.worker(name)
    await execute(database, "UPDATE workers SET assigned_agent = 'ranking' WHERE name = 'bob'")
    assert (await _many(service, "drain", {"agent_type": "RankingAgent", "name": ["ada", "bob"]}))["drained"] == 1
    assert await _directives(service) == {"ada": None, "bob": "drain"}


@pytest.mark.parametrize(
    "filter_", [{}, {"all": True, "name": ["ada"]}, {"name": []}, {"label": ["x"]}, {"nme": ["a"]}]
)
async def test_a_filter_must_say_something_and_only_what_it_may(service: Service, filter_: Any) -> None:
    await service.worker("ada")
    answer = await service.ask("POST", "/workers/stop", {"filter": filter_})
    is_problem(answer, 422, "invalid_request")
    assert await _directives(service) == {"ada": None}
    assert (await _many(service, "stop", {"all": True}))["stopped"] == 1


@pytest.mark.parametrize("verb", DONE)
async def test_only_operators_may(service: Service, verb: str) -> None:
    worker = await service.worker("ada")
    # A Supervisor may drain, which loses nothing.
    others = [Role.SUPERVISOR] if verb != "drain" else []
    for key in (*others, Role.READER, Role.POOL, worker.key):
        for path, body in ((f"/workers/{worker.id}/{verb}", {}), (f"/workers/{verb}", {"filter": {"all": True}})):
            is_problem(await service.ask("POST", path, body, key=key), 403, "forbidden")
    assert await _directives(service) == {"ada": None}


async def test_telling_again_is_answered_alike_also_when_it_was_obeyed(service: Service) -> None:
    worker = await service.worker("ada")
    for _ in range(2):
        shown = await service.post(f"/workers/{worker.id}/restart", {"reason": "upgrade"})
        assert (shown["state"], shown["directive"]) == ("draining", "restart")
    await worker.ask(f"/workers/{worker.id}/goodbye", {"reason": "restart"})
    assert (await service.post(f"/workers/{worker.id}/restart"))["state"] == "stopped"
    is_problem(await service.ask("POST", f"/workers/{worker.id}/stop", {}), 409, "worker_gone")
    assert [item["action"] for item in (await service.get("/audit"))["items"]].count("workers.restart") == 1


async def test_the_pool_as_a_whole(service: Service, database: Database) -> None:
    empty = await service.get("/fleet")
    assert empty["workers"] == {"starting": 0, "ready": 0, "busy": 0, "draining": 0}
    assert (empty["total"], empty["reduced_capacity"], empty["resting"]) == (0, False, [])
    assert (empty["min_workers"], empty["max_workers"]) == (10, 1000)
    await service.submitted()
    await (await service.worker("ada")).lease()
    await service.post(f"/workers/{(await service.worker('bob')).id}/drain")
    await service.worker("eve", ready=False)
    for _ in range(3):
        async with database.transaction() as connection:
            await pool.tick(connection, Mode.PRODUCTION, report(1))
            (member,) = await store.members(connection, "local", "here")
            await workers.lose(connection, member.worker_id, WorkerState.LOST, "killed")
    found = await service.get("/fleet")
    assert found["workers"] == {"starting": 1, "ready": 0, "busy": 1, "draining": 1}
    (place,) = found["resting"]
    assert (found["reduced_capacity"], place["host"], place["slot"], place["deaths"]) == (True, "here", 1, 3)


async def test_workers_are_started_by_hand_once_for_each_request(service: Service, database: Database) -> None:
    refused = await service.ask("POST", "/workers/start", {"count": 2}, key=Role.OPERATOR)
    assert is_problem(refused, 409, "start_refused")["reason"] == "no_host"
    async with database.transaction() as connection:
        await pool.tick(connection, Mode.PRODUCTION, report(2))
    wanted = {"count": 2, "reason": "a long run", "request_id": str(uuid4())}
    answers = [await service.ask("POST", "/workers/start", wanted, key=Role.OPERATOR) for _ in range(2)]
    assert [answer.status_code for answer in answers] == [201, 201]
    assert answers[0].json() == answers[1].json()
    started = answers[0].json()["workers"]
    assert [worker["name"] for worker in started] == ["here-3", "here-4"]
    assert (await service.get(f"/workers/{started[0]['worker_id']}"))["state"] == "starting"
    found = await service.get("/fleet")
    host = {"provisioner": "local", "host": "here", "size": 4, "max_size": None, "member_waits": []}
    assert (found["total"], found["hosts"]) == (4, [host])
    (entry,) = [item for item in (await service.get("/audit"))["items"] if item["action"] == "workers.start"]
    assert (entry["reason"], entry["after"]["started"]) == ("a long run", ["here-3", "here-4"])


@pytest.mark.parametrize("body", [{"count": 0}, {"count": 1001}, {"count": 1.5}, {"count": True}, {"request_id": "x"}])
async def test_nonsense_starts_nobody(service: Service, body: Any) -> None:
    is_problem(await service.ask("POST", "/workers/start", body), 422, "invalid_request")
    for key in (Role.READER, Role.POOL):
        is_problem(await service.ask("POST", "/workers/start", {}, key=key), 403, "forbidden")
