"""Keys over HTTP: they expire, are rotated, enrol workers, and take their workers with them."""

import asyncio
from typing import Any
from uuid import uuid4

import pytest

from app.db.database import Database
from app.kernel.access import Role
from app.queue.broker.broker import Broker
from tests.support.problems import is_problem
from tests.support.service import Service, registration
from tests.support.sql import execute, value


async def _status(service: Service, key: str) -> int:
    return (await service.ask("GET", "/status", key=key)).status_code


async def _make(service: Service, **fields: Any) -> Any:
    return await service.post("/keys", {"role": "reader", "label": "x"} | fields)


async def test_a_key_ends_when_it_was_made_to(service: Service, database: Database) -> None:
    made = await _make(service, expires_in_seconds=3600)
    assert made["expires_at"] is not None
    assert await _status(service, made["key"]) == 200
    await execute(database, "UPDATE keys SET expires_at = now(), rotated_at = now() WHERE id = $1", made["id"])
    await _forget(service)
    is_problem(await service.ask("GET", "/status", key=made["key"]), 401, "unauthenticated")


async def _forget(service: Service) -> None:
    service.app.state.services.database.announcer.announce(["keys"])


@pytest.mark.parametrize("seconds", [0, -1, 10**12, "soon"])
async def test_the_life_of_a_key_has_bounds(service: Service, seconds: Any) -> None:
    body = {"role": "reader", "label": "x", "expires_in_seconds": seconds}
    is_problem(await service.ask("POST", "/keys", body), 422, "invalid_request", "expires_in_seconds")


async def test_a_rotation_leaves_the_former_secret_for_a_while(service: Service) -> None:
    made = await _make(service)
    rotated = await service.post(f"/keys/{made['id']}/rotate", {"overlap_seconds": 60})
    assert (rotated["id"], rotated["role"]) == (made["id"], "reader")
    assert [await _status(service, key) for key in (made["key"], rotated["key"])] == [200, 200]
    last = await service.post(f"/keys/{made['id']}/rotate", {"overlap_seconds": 0, "expires_in_seconds": 900})
    assert last["expires_at"] is not None
    keys = (made["key"], rotated["key"], last["key"])
    assert [await _status(service, key) for key in keys] == [401, 401, 200]
    (listed,) = [key for key in (await service.get("/keys"))["items"] if key["id"] == made["id"]]
    assert listed["rotated_at"] is not None
    unknown = await service.ask("POST", "/keys/unknown/rotate", {})
    is_problem(unknown, 404, "key_not_found")
    assert "there is no such key" not in unknown.json()["detail"], "the title says so"


async def test_answers_with_keys_are_cached_nowhere(service: Service) -> None:
    made = await service.ask("POST", "/keys", {"role": "pool", "label": "x"})
    answers = [
        made,
        await service.ask("POST", f"/keys/{made.json()['id']}/rotate", {}),
        await service.ask("POST", "/keys/enrolments", {"label": "x"}),
        await service.ask("POST", "/workers", registration(), key=Role.POOL),
    ]
    assert [answer.headers["cache-control"] for answer in answers] == ["no-store"] * 4


async def test_an_enrolment_registers_one_worker_and_is_spent(service: Service) -> None:
    token = await service.post("/keys/enrolments", {"label": "node 7"})
    assert (token["role"], token["uses_left"]) == ("pool", 1)
    assert (await service.ask("GET", "/status", key=token["key"])).status_code == 403
    worker = await service.post("/workers", registration("node-7"), key=token["key"])
    beat = await service.ask("POST", f"/workers/{worker['worker_id']}/heartbeat", {"state": "ready"}, key=worker["key"])
    assert beat.status_code == 200
    is_problem(await service.ask("POST", "/workers", registration(), key=token["key"]), 401, "unauthenticated")
    is_problem(await service.ask("POST", f"/keys/{token['id']}/rotate", {}), 404, "key_not_found")


async def test_an_enrolment_that_was_not_used_in_time_is_over(service: Service, database: Database) -> None:
    token = await service.post("/keys/enrolments", {"label": "x", "uses": 5, "expires_in_seconds": 60})
    await service.post("/workers", registration(), key=token["key"])
    await execute(database, "UPDATE keys SET expires_at = now() WHERE id = $1", token["id"])
    is_problem(await service.ask("POST", "/workers", registration(), key=token["key"]), 401, "unauthenticated")


async def test_a_revoked_key_takes_its_workers_along_where_it_is_to(service: Service, database: Database) -> None:
    pool = await _make(service, role="pool")
    others = await service.worker()
    keys = []
    for _ in range(3):
        worker = await service.post("/workers", registration(), key=pool["key"])
        path = f"/workers/{worker['worker_id']}/heartbeat"
        assert (await service.ask("POST", path, {"state": "ready"}, key=worker["key"])).status_code == 200
        keys.append((path, worker["key"]))
    answer = await service.ask("DELETE", f"/keys/{pool['id']}?evict_workers=true")
    assert (answer.status_code, answer.json()) == (200, {"evicted_workers": 3})
    for path, key in keys:
        gone = await service.ask("POST", path, {"state": "ready"}, key=key)
        assert (gone.status_code, gone.json()["code"], gone.json()["reason"]) == (409, "worker_gone", "stopped")
    assert (await others.beat())["state"] == "ready"
    again = await service.ask("DELETE", f"/keys/{pool['id']}?evict_workers=true")
    assert again.json() == {"evicted_workers": 0}
    assert await value(database, "SELECT count(*) FROM audit WHERE action = 'worker.evict'") == 3
    assert await value(database, "SELECT count(*) FROM audit WHERE action = 'key.revoke'") == 1


async def test_without_it_the_workers_of_a_revoked_key_go_on(service: Service) -> None:
    pool = await _make(service, role="pool")
    worker = await service.post("/workers", registration(), key=pool["key"])
    assert (await service.ask("DELETE", f"/keys/{pool['id']}")).status_code == 204
    path = f"/workers/{worker['worker_id']}/heartbeat"
    assert (await service.ask("POST", path, {"state": "ready"}, key=worker["key"])).status_code == 200


@pytest.mark.parametrize("is_joined", [False, True])
async def test_a_worker_ends_with_its_own_key_and_gets_no_task_by_a_call_that_waits(
    service: Service, database: Database, is_joined: bool
) -> None:
    """It got one up to 30 s later, which it could not report any more."""
    worker = await service.worker()
    call: dict[str, Any] = {"request_id": str(uuid4()), "wait_seconds": 30, "acknowledge": True}
    item = {"authorization": f"Bearer {worker.key}", "operation": "lease", "body": call}
    path, body = ("/leases/exchange", {"items": [item]}) if is_joined else ("/lease", call)
    waiting = asyncio.create_task(worker.ask(path, body))
    broker = service.app.state.services[Broker]
    while not broker.waiting_count:
        await asyncio.sleep(0.01)
    key_id = worker.key.split("_")[1]
    for _ in range(2):
        assert (await service.ask("DELETE", f"/keys/{key_id}?reason=leaked")).status_code == 204
    task_id = await service.submitted()
    answer = await waiting
    assert ("worker_gone" in answer.text, task_id in answer.text) == (True, False)
    assert (await service.get(f"/tasks/{task_id}"))["state"] == "pending"
    assert (await service.get(f"/workers/{worker.id}"))["ended_reason"] == "evicted: leaked"
    assert await value(database, "SELECT count(*) FROM audit WHERE action = 'worker.evict'") == 1


async def test_nobody_makes_or_rotates_a_key_that_may_more(service: Service) -> None:
    blind = (await _make(service, role="admin", withheld=["content:read"]))["key"]
    whole = await _make(service)
    for role in ("reader", "admin"):
        refused = await service.ask("POST", "/keys", {"role": role, "label": "x"}, key=blind)
        assert "content:read" in is_problem(refused, 422, "key_refused", "withheld")["detail"]
    is_problem(
        await service.ask("POST", f"/keys/{whole['id']}/rotate", {"overlap_seconds": 0}, key=blind), 403, "forbidden"
    )
    assert await _status(service, whole["key"]) == 200
    like_it = {"role": "reader", "label": "x", "withheld": ["content:read"]}
    made = await service.post("/keys", like_it, key=blind)
    for body in ({"role": "monitor", "label": "x"}, {"role": "pool", "label": "x"}):
        await service.post("/keys", body, key=blind)
    await service.post(f"/keys/{made['id']}/rotate", {}, key=blind)
