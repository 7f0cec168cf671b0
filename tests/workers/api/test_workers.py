"""The life of a worker over HTTP: it registers, reports, is directed, and says goodbye."""

import asyncio
from typing import Any
from uuid import UUID, uuid4

import pytest

from app.admin.service.access import create_launch_key, use_to_register
from app.db.database import Database
from app.kernel.access import Role
from app.kernel.modes import Mode
from app.kernel.states import WorkerState
from app.workers.service import pool, workers
from app.workers.store import workers as store
from tests.support.factories import registration as registration_of_store
from tests.support.factories import report
from tests.support.pools import bounds
from tests.support.problems import is_problem
from tests.support.service import Service, Worker, registration
from tests.support.sql import execute, fetch, until_blocked, value


async def test_registering_says_how_to_behave(service: Service) -> None:
    said = registration("ada", labels={"zone": "a"}, version="1.2")
    answer = await service.ask("POST", "/workers", said, key=Role.POOL)
    assert answer.status_code == 201
    registered = answer.json()
    assert (registered["name"], registered["incarnation"]) == ("ada", 1)
    assert registered["key"].startswith("cvn_")
    for name in ("heartbeat_interval_seconds", "lost_after_seconds", "lease_seconds", "acknowledge_within_seconds"):
        assert registered[name] > 0
    worker = await service.get(f"/workers/{registered['worker_id']}")
    assert worker["state"] == "starting"
    assert {name: worker[name] for name in said} == said


async def test_no_lease_before_the_first_health_report(service: Service) -> None:
    await service.submitted()
    worker = await service.worker(ready=False)
    answer = await worker.ask("/lease", {"request_id": str(uuid4())})
    assert (answer.status_code, answer.json()["code"]) == (409, "worker_not_ready")
    assert (await worker.beat())["state"] == "ready"
    assert await worker.lease() is not None


async def test_no_lease_before_a_health_report_that_passes(service: Service) -> None:
    await service.submitted()
    worker = await service.worker(ready=False)
    for refused in ({"not_ready_reason": "the handlers cannot load"}, {"memory_mb": 60 * 1024**2}):
        answer = await worker.beat(**refused)
        reason = answer["not_ready_reason"]
        assert answer["state"] == "starting"
        refusal = await worker.ask("/lease", {"request_id": str(uuid4())})
        problem = refusal.json()
        assert (refusal.status_code, problem["code"], problem["reason"]) == (409, "worker_not_ready", reason)
        assert reason in problem["detail"]
        shown = await service.get(f"/workers/{worker.id}")
        assert (shown["state"], shown["not_ready_reason"]) == ("starting", reason)
    assert "memory" in reason
    kinds = [event["kind"] for event in (await service.get("/events"))["items"]]
    assert kinds.count("worker.not_ready") == 1
    answer = await worker.beat()
    assert (answer["state"], answer["not_ready_reason"]) == ("ready", None)
    assert await worker.lease() is not None
    assert (await service.get(f"/workers/{worker.id}"))["not_ready_reason"] is None


async def test_a_heartbeat_renews_and_is_shown(service: Service, database: Database) -> None:
    await service.submitted()
    worker = await service.worker()
    lease = await worker.lease()
    await execute(database, "UPDATE tasks SET lease_expires_at = now() + interval '1 s'")
    held = {"task_id": lease["task_id"], "token": lease["token"]}
    error = {"at": "2030-01-01T00:00:00Z", "message": "disk is slow"}
    answer = await worker.beat(state="busy", lease=held, cpu_percent=150.5, memory_mb=99, errors=[error])
    assert answer["directives"] == []
    assert answer["lease_expires_at"] > lease["leased_at"]
    shown = await service.get(f"/workers/{worker.id}")
    assert (shown["state"], shown["task_id"], shown["cpu_percent"]) == ("busy", lease["task_id"], 150.5)
    assert shown["recent_errors"][0]["message"] == "disk is slow"


async def test_a_list_shows_the_newest_error_of_each_worker(service: Service) -> None:
    worker, calm = await service.worker(), await service.worker(name="calm")
    errors = [{"at": "2030-01-01T00:00:00Z", "message": f"disk is slow, {n}"} for n in range(50)]
    await worker.beat(state="ready", errors=errors)
    listed = {item["worker_id"]: item["recent_errors"] for item in (await service.get("/workers"))["items"]}
    assert [error["message"] for error in listed[worker.id]] == ["disk is slow, 49"]
    assert not listed[calm.id]
    assert len((await service.get(f"/workers/{worker.id}"))["recent_errors"]) == 50


@pytest.mark.parametrize("measured", [{"cpu_percent": 1e308}, {"memory_mb": 1e308}, {"memory_mb": -1}])
async def test_what_no_machine_has_is_refused(service: Service, measured: dict[str, float]) -> None:
    worker = await service.worker()
    answer = await worker.ask(f"/workers/{worker.id}/heartbeat", {"state": "ready"} | measured)
    assert (answer.status_code, answer.json()["code"]) == (422, "invalid_request")


async def test_one_lease_at_a_time(service: Service) -> None:
    for _ in range(2):
        await service.submitted()
    worker = await service.worker()
    request = str(uuid4())
    lease = await worker.lease(request_id=request)
    again = await worker.lease(request_id=request)
    assert again.pop("expires_at") > lease.pop("expires_at"), "it may begin now as well as then"
    assert again == lease
    answer = await worker.ask("/lease", {"request_id": str(uuid4())})
    assert (answer.status_code, answer.json()["code"]) == (409, "worker_busy")


async def test_only_what_a_worker_can_do(service: Service) -> None:
    await service.submitted(agent_type="evolution")
    worker = await service.worker(capabilities=["ranking"])
    assert await worker.lease() is None
    assert await worker.lease(agent_types=["evolution"]) is None


@pytest.mark.parametrize("kind", ["drain", "stop", "restart"])
async def test_directives_come_with_the_heartbeat(service: Service, kind: str) -> None:
    worker = await service.worker()
    shown = await service.post(f"/workers/{worker.id}/{kind}", {"reason": "upgrade"}, key=Role.OPERATOR)
    assert (shown["state"], shown["directive"]) == ("draining", kind)
    await service.submitted()
    assert await worker.lease() is None, "it was given work although it is to stop"
    for _ in range(2):
        (directive,) = (await worker.beat())["directives"]
        assert directive == {"kind": kind, "reason": "upgrade", "task_id": None, "token": None}


async def test_a_draining_worker_finishes_its_task(service: Service) -> None:
    task_id = await service.submitted()
    worker = await service.worker()
    lease = await worker.lease()
    await service.post(f"/workers/{worker.id}/drain", key=Role.OPERATOR)
    answer = await worker.beat(state="draining", lease={"task_id": task_id, "token": lease["token"]})
    assert [directive["kind"] for directive in answer["directives"]] == ["drain"]
    assert answer["lease_expires_at"] is not None
    assert (await worker.on_lease(lease, "complete", result={})).status_code == 200
    assert (await service.get(f"/tasks/{task_id}"))["state"] == "completed"


async def test_a_heartbeat_tells_of_a_lease_that_is_lost(service: Service) -> None:
    task_id = await service.submitted()
    worker = await service.worker()
    lease = await worker.lease()
    held = {"task_id": task_id, "token": lease["token"]}
    assert (await worker.beat(state="busy", lease=held))["directives"] == []
    await service.post(f"/tasks/{task_id}/cancel")
    answer = await worker.beat(state="busy", lease=held)
    (directive,) = answer["directives"]
    assert {name: directive[name] for name in ("kind", "task_id", "token")} == {"kind": "cancel_task"} | held
    assert answer["lease_expires_at"] is None
    (directive,) = (await worker.beat(state="busy", lease={"task_id": str(uuid4()), "token": 9}))["directives"]
    assert directive["kind"] == "cancel_task"


async def test_goodbye_gives_the_task_back_and_ends_the_worker(service: Service) -> None:
    task_id = await service.submitted()
    worker = await service.worker()
    await worker.lease()
    first, second = [await worker.ask(f"/workers/{worker.id}/goodbye", {"reason": "drained"}) for _ in range(2)]
    assert first.json() == {"worker_id": worker.id, "state": "stopped"}
    # By now its key may be known to be over, which tells it the same.
    assert second.status_code == 200 or second.json()["reason"] == "stopped"
    task = await service.get(f"/tasks/{task_id}")
    assert (task["state"], task["attempt"], task["worker_id"]) == ("pending", 1, None)
    await _is_gone(worker, "stopped")
    refused = await service.ask("POST", f"/workers/{worker.id}/drain", {}, key=Role.OPERATOR)
    assert (refused.status_code, refused.json()["code"]) == (409, "worker_gone")


async def _is_gone(worker: Worker, reason: str) -> None:
    beat = await worker.ask(f"/workers/{worker.id}/heartbeat", {"state": "ready"})
    assert (beat.status_code, beat.json()["code"], beat.json()["reason"]) == (409, "worker_gone", reason)
    lease = await worker.ask("/lease", {"request_id": str(uuid4())})
    assert (lease.status_code, lease.json()["code"]) == (409, "worker_gone")


async def test_a_name_used_again_is_a_new_incarnation_and_ends_the_old(service: Service) -> None:
    task_id = await service.submitted()
    old = await service.worker("ada")
    lease = await old.lease()
    new = await service.worker("ada")
    assert (await service.get(f"/workers/{new.id}"))["incarnation"] == 2
    await _is_gone(old, "superseded")
    late = await old.on_lease(lease, "complete", result={})
    assert late.status_code == 409
    assert (await new.lease(wait_seconds=30))["task_id"] == task_id


async def test_a_lost_worker_hears_that_it_is_lost(service: Service, database: Database) -> None:
    worker = await service.worker()
    async with database.transaction() as connection:
        await workers.lose(connection, UUID(worker.id), WorkerState.LOST, "silent for 20 s")
    await _is_gone(worker, "lost")


async def test_workers_are_listed_in_pages_while_others_come(service: Service) -> None:
    names = [f"w{number:02d}" for number in range(0, 20, 2)]
    for name in names:
        await service.worker(name)
    await service.worker("w04")
    seen: list[Any] = []
    query: dict[str, Any] = {"limit": 3}
    while True:
        page = await service.get("/workers", **query)
        seen += page["items"]
        if page["next"] is None:
            break
        await service.worker(f"w{len(seen):02d}b")
        query["after"] = page["next"]
    ids = [worker["worker_id"] for worker in seen]
    assert len(ids) == len(set(ids))
    assert [worker["name"] for worker in seen if worker["name"] in names] == names
    everybody = (await service.get("/workers", all=True, limit=500))["items"]
    assert [w["incarnation"] for w in everybody if w["name"] == "w04"] == [1, 2]


@pytest.mark.parametrize("name", ["a/1", "a b", "ä", "a\nb", "../etc", "%2F", "a?b=c&d"])
async def test_pages_continue_after_any_name(service: Service, name: str) -> None:
    await service.worker(name)
    await service.worker("￿ last")
    page = await service.get("/workers", limit=1)
    assert page["items"][0]["name"] == name
    following = await service.get("/workers", limit=1, after=page["next"])
    assert following["items"][0]["name"] == "￿ last"


async def test_a_replacement_shows_each_step(service: Service, database: Database) -> None:
    for _ in range(2):
        await _launch(database)
    (row,) = await fetch(database, "SELECT id FROM workers")
    first = await _launched(service, database, row["id"])
    async with database.transaction() as connection:
        await workers.lose(connection, UUID(first.id), WorkerState.LOST, "the process was killed by SIGKILL")
    (open_,) = (await service.get("/replacements"))["items"]
    assert (open_["lost_worker_id"], open_["worker_id"]) == (first.id, None)
    assert (open_["cause"], open_["requested_at"]) == ("the process was killed by SIGKILL", None)
    await _launch(database)
    new_id = await value(database, "SELECT id FROM workers WHERE state = 'starting'")
    second = await _launched(service, database, new_id)
    await service.submitted()
    assert await second.lease() is not None
    # Recorded beside the claim, so a moment later.
    async with asyncio.timeout(30):
        while not (await service.get("/replacements"))["items"][0]["first_lease_at"]:
            await asyncio.sleep(0.05)
    (closed,) = (await service.get("/replacements"))["items"]
    assert closed["worker_id"] == str(new_id)
    steps = [closed[f"{step}_at"] for step in ("detected", "requested", "registered", "first_lease")]
    assert None not in steps
    assert steps == sorted(steps)
    times = await service.get("/replacements/times")
    assert (times["replacements"], times["working"], times["since"]) == (1, 1, closed["detected_at"])
    assert 0 <= times["requested"]["p50"] <= times["registered"]["p50"] <= times["first_lease"]["p99"]
    assert times["started"] is None


async def _launch(database: Database) -> None:
    """The pool of one is filled."""
    async with database.transaction() as connection:
        await pool.tick(connection, Mode.PRODUCTION, report(1))


async def _launch_key(database: Database, worker_id: UUID) -> str:
    """The key that the provisioner gives to the worker that it starts."""
    async with database.transaction() as connection:
        return await create_launch_key(connection, worker_id)


async def _launched(service: Service, database: Database, worker_id: UUID) -> Worker:
    """A worker of the pool that comes up."""
    key = await _launch_key(database, worker_id)
    registered = await service.post("/workers", registration("its own name does not count"), key=key)
    assert (registered["worker_id"], registered["name"]) == (str(worker_id), "here-1")
    worker = Worker(service=service, id=registered["worker_id"], key=registered["key"])
    await worker.beat()
    return worker


async def test_a_launch_registers_once_and_its_key_is_good_for_nothing_else(
    service: Service, database: Database
) -> None:
    await _launch(database)
    worker_id = await value(database, "SELECT id FROM workers")
    key = await _launch_key(database, worker_id)
    assert (await service.ask("GET", "/status", key=key)).status_code == 403
    assert await service.post("/workers", registration(), key=key)
    await _is_refused(service, key)
    assert await value(database, "SELECT count(*) FROM keys WHERE worker_id IS NOT NULL") == 1
    assert await value(database, "SELECT count(*) FROM keys WHERE launches IS NOT NULL") == 0


async def _is_refused(service: Service, key: str) -> None:
    """In the same words, whether there has been such a launch, and whatever has become of it."""
    answer = await service.ask("POST", "/workers", registration(), key=key)
    assert (answer.status_code, answer.json()["detail"]) == (401, "the key is unknown or revoked")


async def test_a_launch_that_is_over_or_was_never_made_registers_nobody(service: Service, database: Database) -> None:
    await _launch(database)
    worker_id = await value(database, "SELECT id FROM workers")
    key = await _launch_key(database, worker_id)
    nobodys = await _launch_key(database, uuid4())
    async with database.transaction() as connection:
        await store.end(connection, worker_id, WorkerState.FAILED, "no first heartbeat")
    for wrong in (key, key[:-1] + "!", "cvn_000000000000_x", nobodys):
        await _is_refused(service, wrong)
    assert await value(database, "SELECT count(*) FROM keys WHERE worker_id IS NOT NULL") == 0


async def test_the_id_of_a_worker_opens_nothing(service: Service, database: Database) -> None:
    await _launch(database)
    worker = await _launched(service, database, await value(database, "SELECT id FROM workers"))
    for key in (Role.POOL, Role.OPERATOR, Role.ADMIN):
        answer = await service.ask("POST", "/workers", registration(launch_token=worker.id), key=key)
        assert answer.status_code == (422 if key is Role.POOL else 403)
    assert await value(database, "SELECT count(*) FROM keys WHERE worker_id IS NOT NULL") == 1
    assert (await worker.beat())["state"] == "ready"


async def test_of_two_that_register_with_one_launch_at_once_one_wins(service: Service, database: Database) -> None:
    await _launch(database)
    key = await _launch_key(database, await value(database, "SELECT id FROM workers"))
    async with database.transaction() as connection:
        launched = await use_to_register(connection, key.split("_")[1])
        said = registration_of_store()
        await workers.register(connection, said, launched)
        rival = asyncio.create_task(service.ask("POST", "/workers", registration(), key=key))
        await until_blocked(database)
    answer = await rival
    assert (answer.status_code, answer.json()["detail"]) == (401, "the key is unknown or revoked")
    assert await value(database, "SELECT count(*) FROM keys WHERE worker_id IS NOT NULL") == 1


async def test_whoever_registers_while_the_key_is_revoked_is_known_afterwards_or_refused(
    service: Service, database: Database
) -> None:
    key = service.keys[Role.POOL]
    async with database.transaction() as connection:
        await use_to_register(connection, key.split("_")[1])
        revocation = asyncio.create_task(service.ask("DELETE", f"/keys/{key.split('_')[1]}"))
        await until_blocked(database)
        await workers.register(connection, registration_of_store("early"), None)
    assert (await revocation).status_code == 204
    assert (await service.ask("POST", "/workers", registration("late"), key=key)).status_code == 401


async def test_a_worker_cannot_register_in_the_place_of_another(service: Service) -> None:
    victim = await service.worker()
    thief = await service.worker()
    name = (await service.get(f"/workers/{victim.id}"))["name"]
    answer = await thief.ask("/workers", registration(name))
    assert (answer.status_code, answer.json()["code"]) == (403, "forbidden")
    assert (await victim.beat())["state"] == "ready"


async def test_nobody_registers_beyond_the_maximum_of_the_pool(service: Service, database: Database) -> None:
    await bounds(database, 2, 3)
    first, *_ = [await service.worker(f"lab-{number}") for number in range(3)]
    refused = await service.ask("POST", "/workers", registration("lab-4"), key=Role.POOL)
    is_problem(refused, 429, "pool_full")
    assert "worker_pool.max_workers" in refused.json()["detail"]
    assert int(refused.headers["retry-after"]) > 0
    again = await service.post("/workers", registration("lab-1"), key=Role.POOL)
    assert again["incarnation"] == 2, "one that restarts takes the place of its former self"
    is_problem(await service.ask("POST", "/workers", registration("lab-4"), key=Role.POOL), 429, "pool_full")
    await first.ask(f"/workers/{first.id}/goodbye", {})
    await service.post("/workers", registration("lab-4"), key=Role.POOL)


async def test_of_many_that_register_at_once_as_many_are_let_in_as_there_is_room(
    service: Service, database: Database
) -> None:
    await bounds(database, 2, 3)
    answers = await asyncio.gather(
        *(service.ask("POST", "/workers", registration(f"lab-{number}"), key=Role.POOL) for number in range(8))
    )
    assert sorted(answer.status_code for answer in answers) == [201] * 3 + [429] * 5
    assert await value(database, "SELECT count(*) FROM workers") == 3
