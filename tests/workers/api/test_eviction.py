"""Workers that are not trusted any more, and names that others want."""

import pytest

from app.db.database import Database
from app.kernel.access import Role
from app.workers.service.eviction import Evictor
from tests.support.problems import is_problem
from tests.support.service import Service, Worker, registration
from tests.support.sql import execute, fetch, value


async def _evict(service: Service, worker: Worker) -> object:
    return await service.post(f"/workers/{worker.id}/evict", {"reason": "it lies"}, key=Role.OPERATOR)


async def _is_out(worker: Worker) -> None:
    beat = await worker.ask(f"/workers/{worker.id}/heartbeat", {"state": "ready"})
    assert (beat.status_code, beat.json()["code"], beat.json()["reason"]) == (409, "worker_gone", "stopped")


async def test_an_evicted_worker_has_no_key_no_lease_and_no_permit(service: Service, database: Database) -> None:
    task_id = await service.submitted()
    worker = await service.worker("rogue")
    lease = await worker.lease()
    evicted = await _evict(service, worker)
    assert isinstance(evicted, dict)
    assert (evicted["state"], evicted["ended_reason"]) == ("lost", "evicted: it lies")
    assert (await worker.on_lease(lease, "complete", result={})).status_code == 409
    await _is_out(worker)
    task = await service.get(f"/tasks/{task_id}")
    assert (task["state"], task["rescues"], task["failures"]) == ("pending", 1, 0)
    assert await value(database, "SELECT revoked_at IS NOT NULL FROM keys WHERE worker_id = $1::text::uuid", worker.id)
    (entry,) = await fetch(database, "SELECT action, reason, before FROM audit WHERE action = 'worker.evict'")
    assert (entry["reason"], "rogue" in str(entry["before"])) == ("it lies", True)
    (event,) = (await service.get("/events", kind="worker.evicted"))["items"]
    assert (event["worker_id"], event["detail"]["name"]) == (worker.id, "rogue")


@pytest.mark.parametrize("how", ["drain", "goodbye", "silence"])
async def test_workers_in_any_state_are_evicted_and_once(service: Service, database: Database, how: str) -> None:
    worker = await service.worker()
    if how == "drain":
        await service.post(f"/workers/{worker.id}/drain", {})
    elif how == "goodbye":
        await worker.ask(f"/workers/{worker.id}/goodbye", {})
    else:
        await execute(database, "UPDATE workers SET last_seen_at = now() - interval '1 h'")
    for _ in range(2):
        await _evict(service, worker)
    assert (await worker.ask(f"/workers/{worker.id}/heartbeat", {"state": "ready"})).status_code == 409
    assert await value(database, "SELECT count(*) FROM audit WHERE action = 'worker.evict'") == 1


async def test_an_eviction_names_a_worker_that_there_is(service: Service) -> None:
    path = "/workers/00000000-0000-0000-0000-000000000000/evict"
    is_problem(await service.ask("POST", path, {}, key=Role.OPERATOR), 404, "worker_not_found")


async def test_more_workers_than_one_transaction_takes_are_evicted(
    service: Service, database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("app.workers.service.eviction._BATCH", 2)
    for _ in range(5):
        await service.worker()
    key_id = service.keys[Role.POOL].split("_")[1]
    assert await Evictor().evict_registered_by(database, key_id, "me") == 5
    assert await Evictor().evict_registered_by(database, key_id, "me") == 0


async def _register(service: Service, name: str, key: Role | str = Role.POOL) -> int:
    return (await service.ask("POST", "/workers", registration(name), key=key)).status_code


async def test_a_stolen_key_takes_no_name_of_another_keys_live_worker(service: Service) -> None:
    worker = await service.worker("ada")
    other = await service.post("/keys", {"role": "pool", "label": "another lab"})
    token = await service.post("/keys/enrolments", {"label": "x"})
    for key in (other["key"], token["key"]):
        is_problem(await service.ask("POST", "/workers", registration("ada"), key=key), 409, "name_taken")
    assert (await worker.beat())["state"] == "ready"
    # What was refused has used nothing up.
    assert await _register(service, "bob", token["key"]) == 201


async def test_who_restarts_with_its_key_takes_its_name_back_at_once(service: Service, database: Database) -> None:
    task_id = await service.submitted()
    former = await service.worker("ada")
    await former.lease()
    assert await _register(service, "ada") == 201
    beat = await former.ask(f"/workers/{former.id}/heartbeat", {"state": "ready"})
    assert (beat.json()["code"], beat.json()["reason"]) == ("worker_gone", "superseded")
    assert (await service.get(f"/tasks/{task_id}"))["state"] == "pending"
    assert await value(database, "SELECT revoked_at IS NOT NULL FROM keys WHERE worker_id = $1::text::uuid", former.id)
    (event,) = (await service.get("/events", kind="worker.superseded"))["items"]
    assert event["worker_id"] == former.id
    (entry,) = (await service.get("/audit", action="worker.supersede"))["items"]
    assert (entry["by"], entry["before"][0]["worker_id"]) == (service.keys[Role.POOL].split("_")[1], former.id)


async def test_a_name_whose_bearer_is_silent_is_free_for_any_key(service: Service, database: Database) -> None:
    await service.worker("ada")
    other = await service.post("/keys", {"role": "pool", "label": "another lab"})
    await execute(database, "UPDATE workers SET last_seen_at = now() - interval '9 s'")
    assert await _register(service, "ada", other["key"]) == 409
    await execute(database, "UPDATE workers SET last_seen_at = now() - interval '11 s'")
    assert await _register(service, "ada", other["key"]) == 201


async def test_a_worker_of_a_provisioner_gives_way_to_nobody(service: Service, database: Database) -> None:
    worker = await service.worker("here-1")
    await execute(database, "UPDATE workers SET provisioner = 'local', slot = 1")
    assert await _register(service, "here-1") == 409
    assert (await worker.beat())["state"] == "ready"


async def _push(worker: Worker) -> int:
    sample = {"name": "depth", "kind": "gauge", "value": 1}
    body = {"batch_id": "8f14e45f-ceea-467f-ab8a-1d2e3f4a5b6c", "samples": [sample]}
    return (await worker.ask("/metrics/samples", body)).status_code


async def test_only_a_worker_that_serves_pushes_metrics(service: Service) -> None:
    await service.submitted()
    starting, idle, busy = await service.worker(ready=False), await service.worker(), await service.worker()
    lease = await busy.lease()
    for worker in (idle, busy):
        await service.post(f"/workers/{worker.id}/drain", {})
    assert [await _push(worker) for worker in (starting, idle, busy)] == [409, 409, 201]
    assert (await busy.on_lease(lease, "complete", result={})).status_code == 200
    assert await _push(busy) == 409
