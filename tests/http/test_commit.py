"""A commit that fails is an error of the request: nobody is told that something is stored which is not."""

import asyncio
from collections.abc import AsyncIterator
from typing import Any
from uuid import uuid4

import httpx
import pytest

from app.db.database import Database
from app.kernel.access import Role
from tests.support.service import Service, make_keys, serving
from tests.support.sql import execute, value

_REFUSE = """
CREATE FUNCTION refuse() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN RAISE EXCEPTION 'not today'; END $$;
CREATE CONSTRAINT TRIGGER refuse AFTER INSERT OR UPDATE OR DELETE ON {table}
    DEFERRABLE INITIALLY DEFERRED FOR EACH ROW EXECUTE FUNCTION refuse();
"""
_COUNTS = """
SELECT ARRAY[(SELECT count(*) FROM tasks), (SELECT count(*) FROM task_history), (SELECT count(*) FROM every_event),
             (SELECT count(*) FROM workers), (SELECT count(*) FROM task_attempts), (SELECT count(*) FROM keys)]
"""


@pytest.fixture
async def service(own_database: Database) -> AsyncIterator[Service]:
    async with serving(own_database.url, await make_keys(own_database)) as service:
        yield service


async def _refused(own_database: Database, answer: httpx.Response, before: Any) -> None:
    assert answer.status_code == 500, answer.text
    assert answer.headers["content-type"] == "application/problem+json"
    assert answer.json()["code"] == "internal_error"
    assert "not today" not in answer.text
    assert await value(own_database, _COUNTS) == before


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/tasks", {"agent_type": "ranking"}),
        ("/tasks", {"agent_type": "ranking", "id": str(uuid4())}),
        ("/tasks/batch", {"tasks": [{"agent_type": "ranking"}] * 3}),
    ],
)
async def test_a_task_that_could_not_be_committed_was_not_accepted(
    service: Service, own_database: Database, path: str, body: dict[str, Any]
) -> None:
    await execute(own_database, _REFUSE.format(table="tasks"))
    before = await value(own_database, _COUNTS)
    await _refused(own_database, await service.ask("POST", path, body), before)


async def test_a_cancellation_that_could_not_be_committed_cancels_nothing(
    service: Service, own_database: Database
) -> None:
    task_id = await service.submitted()
    await execute(own_database, _REFUSE.format(table="tasks"))
    before = await value(own_database, _COUNTS)
    await _refused(own_database, await service.ask("POST", f"/tasks/{task_id}/cancel", {}), before)
    assert (await service.get(f"/tasks/{task_id}"))["state"] == "pending"


@pytest.mark.parametrize(
    ("verb", "fields"),
    [
        ("start", {}),
        ("progress", {"percent": 50}),
        ("complete", {"result": {"hypothesis": 1}}),
        ("fail", {"error": {"code": "c", "message": "m"}}),
        ("release", {}),
    ],
)
async def test_a_call_on_a_lease_that_could_not_be_committed_changes_nothing(
    service: Service, own_database: Database, verb: str, fields: dict[str, Any]
) -> None:
    worker = await service.worker()
    await service.submitted()
    lease = await worker.lease()
    await execute(own_database, _REFUSE.format(table="tasks"))
    before = await value(own_database, _COUNTS)
    await _refused(own_database, await worker.on_lease(lease, verb, **fields), before)
    # Once the trouble is over, the same call succeeds.
    await execute(own_database, "DROP TRIGGER refuse ON tasks")
    assert (await worker.on_lease(lease, verb, **fields)).status_code == 200


async def test_a_lease_that_could_not_be_committed_is_not_handed_out(service: Service, own_database: Database) -> None:
    worker = await service.worker()
    task_id = await service.submitted()
    await execute(own_database, _REFUSE.format(table="tasks"))
    before = await value(own_database, _COUNTS)
    wanted = {"request_id": str(uuid4()), "acknowledge": True}
    async with asyncio.timeout(30):
        await _refused(own_database, await worker.ask("/lease", wanted), before)
    await execute(own_database, "DROP TRIGGER refuse ON tasks")
    assert (await worker.lease())["task_id"] == task_id


async def test_a_worker_that_could_not_be_committed_has_no_key(service: Service, own_database: Database) -> None:
    await execute(own_database, _REFUSE.format(table="keys"))
    before = await value(own_database, _COUNTS)
    body = {"name": "w", "host": "h", "pid": 1, "capabilities": ["ranking"], "memory_gb": 1, "cpu_cores": 1}
    await _refused(own_database, await service.ask("POST", "/workers", body, key=Role.POOL), before)


async def test_one_refused_completion_takes_no_other_with_it(service: Service, own_database: Database) -> None:
    """Calls are coalesced into one statement; a batch that fails is tried call by call."""
    workers = [await service.worker() for _ in range(4)]
    for _ in workers:
        await service.submitted()
    leases = [await worker.lease() for worker in workers]
    await execute(
        own_database,
        "CREATE FUNCTION refuse_one() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN"
        f" IF OLD.id = '{leases[2]['task_id']}' THEN RAISE EXCEPTION 'not this one'; END IF; RETURN NULL; END $$;"
        "CREATE CONSTRAINT TRIGGER refuse_one AFTER DELETE ON tasks DEFERRABLE INITIALLY DEFERRED"
        " FOR EACH ROW EXECUTE FUNCTION refuse_one();",
    )
    calls = [worker.on_lease(lease, "complete", result={}) for worker, lease in zip(workers, leases, strict=True)]
    answers = [answer.status_code for answer in await asyncio.gather(*calls)]
    assert answers == [200, 200, 500, 200]
    assert await value(own_database, "SELECT count(*) FROM task_history WHERE state = 'completed'") == 3
