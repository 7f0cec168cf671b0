"""Refused requests: they leave traces, are slowed down by address, and never keep out a valid key."""

import asyncio
import logging
from collections.abc import Awaitable, Callable

import httpx
import pytest

from app.admin.store import keys
from app.db.database import Database
from app.health.service.refusals import write_counts
from app.health.store import refusals as store
from app.http.refusals import RefusalPolicy, Refusals
from app.kernel.access import RefusalReason, Role
from tests.support.service import Service, registration
from tests.support.sql import execute

_WRONG = "cvn_0123456789ab_a-wrong-secret"
Get = Callable[..., Awaitable[httpx.Response]]


@pytest.fixture
def refusals(service: Service) -> Refusals:
    """The refusals of the service, with the usual bounds."""
    part = service.app.state.services[Refusals]
    part.policy = RefusalPolicy()
    assert isinstance(part, Refusals)
    return part


async def _get(service: Service, key: str | None, address: str = "192.0.2.1", path: str = "/tasks") -> httpx.Response:
    transport = httpx.ASGITransport(app=service.app, client=(address, 1))
    headers = {"Authorization": f"Bearer {key}"} if key else {}
    async with httpx.AsyncClient(transport=transport, base_url="http://convener") as client:
        return await client.get(path, headers=headers)


async def test_guesses_of_an_address_become_a_handful(service: Service, refusals: Refusals) -> None:
    answers = [await _get(service, f"cvn_{number:012x}_guess") for number in range(60)]
    assert [answer.status_code for answer in answers].count(401) <= 12
    late = answers[-1]
    assert (late.status_code, late.json()["code"]) == (429, "too_many_failures")
    assert 1 <= int(late.headers["retry-after"]) <= 6
    assert late.headers["content-type"] == "application/problem+json"
    assert refusals.totals[RefusalReason.UNKNOWN_KEY] + refusals.totals[RefusalReason.TOO_MANY] == 60


async def test_a_valid_key_is_served_whatever_others_do_at_its_address(service: Service, refusals: Refusals) -> None:
    for _ in range(30):
        await _get(service, _WRONG)
    assert (await _get(service, _WRONG)).status_code == 429
    # Neither remembered by this process, nor ever seen at this address.
    for role in (Role.READER, Role.SUPERVISOR, Role.OPERATOR):
        assert (await _get(service, service.keys[role])).status_code == 200
    assert (await _get(service, None, path="/livez")).status_code == 200
    assert (await _get(service, service.keys[Role.MONITOR])).status_code == 403, "a valid key that may not do this"


async def test_workers_that_come_back_after_days_are_not_slowed_down(
    service: Service, refusals: Refusals, database: Database
) -> None:
    """However many have one address: each is told that it is over, which is no failure of the address."""
    key = service.keys[Role.POOL]
    workers = [await service.post("/workers", registration(), key=key) for _ in range(refusals.policy.failures + 5)]
    await execute(database, "UPDATE workers SET state = 'lost', ended_at = now() - interval '3 days'")
    async with database.transaction() as connection:
        await keys.prune(connection)
    for worker in workers:
        path = f"/workers/{worker['worker_id']}/heartbeat"
        gone = await service.ask("POST", path, {"state": "ready"}, key=worker["key"])
        assert (gone.status_code, gone.json()["code"], gone.json()["reason"]) == (409, "worker_gone", "lost")
    assert not refusals.has_failures


@pytest.mark.parametrize(
    ("first", "same", "other"),
    [
        ("192.0.2.1", "192.0.2.1", "192.0.2.2"),
        ("2001:db8:0:1::1", "2001:db8:0:1:ffff::2", "2001:db8:0:2::1"),
        ("192.0.2.1", "::ffff:192.0.2.1", "::ffff:192.0.2.2"),
    ],
)
async def test_each_address_has_its_own_budget(
    service: Service, refusals: Refusals, first: str, same: str, other: str
) -> None:
    for _ in range(20):
        await _get(service, _WRONG, first)
    assert (await _get(service, _WRONG, same)).status_code == 429
    assert (await _get(service, _WRONG, other)).status_code == 401


async def test_the_memory_for_addresses_is_bounded() -> None:
    refusals = Refusals(RefusalPolicy(max_addresses=100))
    for number in range(1000):
        for _ in range(20):
            refusals.fail(f"address {number}")
    assert len(refusals._forgiven_at) == 100
    assert refusals.retry_after("address 999") > 0
    assert refusals.retry_after("address 0") == 0


async def test_a_refusal_is_logged_without_its_secret_and_only_so_often(
    service: Service, refusals: Refusals, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING, logger="app.http.refusals"):
        for _ in range(100):
            await _get(service, _WRONG, path="/tasks/00000000-0000-0000-0000-000000000001")
    lines = [record.getMessage() for record in caplog.records if record.name == "app.http.refusals"]
    assert "refused GET /tasks/{task_id} from 192.0.2.1: unknown_key" in lines[0]
    assert vars(caplog.records[0])["key"] == "0123456789ab"
    assert "a-wrong-secret" not in caplog.text
    # Five a second, and a hundred requests take a few seconds at the most.
    assert len(lines) < 60
    assert refusals.totals.total() == 100


async def test_what_callers_make_up_stands_in_no_line(
    service: Service, refusals: Refusals, caplog: pytest.LogCaptureFixture
) -> None:
    transport = httpx.ASGITransport(app=service.app, client=("no address\n", 1))
    async with httpx.AsyncClient(transport=transport, base_url="http://convener") as client:
        await client.request("GET", "/tasks?evil", headers={"Authorization": "Bearer cvn_evil_evil"})
    assert "refused GET /tasks from unknown: unknown_key" in caplog.text
    assert "evil" not in caplog.text


async def test_every_reason_is_counted_and_shown(service: Service, refusals: Refusals, database: Database) -> None:
    await _get(service, None, "192.0.2.3")
    await _get(service, service.keys[Role.MONITOR], "192.0.2.3")
    worker = await service.worker()
    assert (await service.ask("POST", "/lease", {}, key=Role.POOL)).status_code == 403
    assert (await worker.ask("/leases/x/start", {})).status_code == 422
    for _ in range(15):
        await _get(service, _WRONG)
    expected = {
        RefusalReason.NO_KEY: 1,
        RefusalReason.FORBIDDEN: 2,
        RefusalReason.UNKNOWN_KEY: 10,
        RefusalReason.TOO_MANY: 5,
    }
    assert refusals.totals == expected
    # The page is made at most once a second, so the first one may be of before.
    async with asyncio.timeout(30):
        while (
            'convener_refused_requests_total{reason="forbidden"} 2.0' not in (await service.ask("GET", "/metrics")).text
        ):
            await asyncio.sleep(0.2)
    # Two processes write together what they have counted, and nothing twice.
    await asyncio.gather(write_counts(database, refusals), write_counts(database, refusals))
    await write_counts(database, refusals)
    async with database.transaction() as connection:
        assert await store.recent(connection) == expected


async def test_no_refusal_causes_a_write(service: Service, refusals: Refusals, database: Database) -> None:
    for _ in range(50):
        await _get(service, _WRONG)
    async with database.transaction() as connection:
        assert await store.recent(connection) == {}


async def test_counts_that_could_not_be_written_are_kept(refusals: Refusals) -> None:
    refusals.record(RefusalReason.NO_KEY, "GET /tasks", "192.0.2.1", "-")
    counts = refusals.take_unwritten()
    refusals.record(RefusalReason.NO_KEY, "GET /tasks", "192.0.2.1", "-")
    refusals.put_back(counts)
    assert refusals.take_unwritten() == {RefusalReason.NO_KEY: 2}
