"""Two processes of the API take turns at the requests of one client, as behind a load balancer: none keeps anything."""

from collections.abc import AsyncIterator
from dataclasses import replace
from uuid import uuid4

import httpx
import pytest

from app.db.database import Database
from app.http.refusals import RefusalPolicy, Refusals
from app.kernel.access import Role
from tests.dashboard.browsers import Browser
from tests.support.service import Service, Worker, make_keys, registration, serving


class _InTurn(httpx.AsyncBaseTransport):
    """Every request goes to another one than the last."""

    def __init__(self, services: list[Service]) -> None:
        self._transports = [httpx.ASGITransport(app=service.app) for service in services]

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        self._transports.reverse()
        return await self._transports[0].handle_async_request(request)


@pytest.fixture
async def pair(database: Database) -> AsyncIterator[list[Service]]:
    keys = await make_keys(database)
    # Different settings make different applications of this process.
    async with (
        serving(database.url, keys, host_name="one") as one,
        serving(database.url, keys, host_name="two") as two,
    ):
        yield [one, two]


@pytest.fixture
async def balanced(pair: list[Service]) -> AsyncIterator[Service]:
    """One service of the two."""
    async with httpx.AsyncClient(transport=_InTurn(pair), base_url="http://convener", timeout=60) as client:
        yield replace(pair[0], client=client)


async def test_a_session_of_the_dashboard_is_good_at_each(balanced: Service) -> None:
    browser = Browser(client=balanced.client)
    for _ in range(2):
        answer = await browser.log_in(balanced.keys[Role.OPERATOR])
        assert (answer.status_code, answer.headers["location"]) == (303, "/dashboard")
        for path in ("/dashboard", "/dashboard", "/dashboard/tasks"):
            await browser.page(path)
        await balanced.submitted()  # the next form comes from the other one


async def test_a_token_of_one_use_is_used_once(pair: list[Service]) -> None:
    body = {"label": "node", "uses": 1, "expires_in_seconds": 900, "reason": "test"}
    token = (await pair[0].post("/keys/enrolments", body))["key"]
    answers = [await service.ask("POST", "/workers", registration(), key=token) for service in [*pair, *pair]]
    assert [answer.status_code for answer in answers] == [201, 401, 401, 401]


async def test_what_is_sent_twice_is_done_once(balanced: Service) -> None:
    task = {"agent_type": "generation", "idempotency_key": uuid4().hex}
    first, again = [await balanced.post("/tasks", task) for _ in range(2)]
    assert first["id"] == again["id"]
    worker: Worker = await balanced.worker()
    request = str(uuid4())
    leases = [await worker.lease(request_id=request) for _ in range(2)]
    assert leases[0] is not None
    assert leases[0] | {"expires_at": leases[1]["expires_at"]} == leases[1]
    answers = [await worker.on_lease(leases[0], "complete", result={"by": "one"}) for _ in range(4)]
    assert {answer.status_code for answer in answers} == {200}
    assert (await worker.on_lease(leases[0], "complete", result={"by": "two"})).status_code == 409


async def test_failures_of_an_address_count_at_each_for_itself(pair: list[Service]) -> None:
    for service in pair:
        service.app.state.services[Refusals].policy = RefusalPolicy(failures=3)

    async def fail(service: Service) -> int:
        return (await service.ask("GET", "/tasks", key="cvn_000000000000_wrong")).status_code

    assert [await fail(pair[0]) for _ in range(5)] == [401, 401, 401, 429, 429]
    assert [await fail(pair[1]) for _ in range(5)] == [401, 401, 401, 429, 429]
