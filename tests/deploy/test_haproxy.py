"""A real haproxy with the file in deploy/ before two real APIs: what it must not cut, hide, forge or hold back."""

import asyncio
import json
import re
import signal
from collections.abc import AsyncIterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from subprocess import Popen
from typing import Any
from uuid import uuid4

import httpx
import pytest

from app.db.database import Database
from app.http import streaming
from app.kernel.access import Role
from app.queue.api import event_stream
from tests.support.exchanges import ask, hand_in
from tests.support.journal import Client, Journal, submit, work
from tests.support.ports import free_port
from tests.support.processes import process
from tests.support.proxies import HAPROXY, haproxy
from tests.support.service import Service, registration
from tests.support.streams import Source, on_a_port
from tests.system.conftest import is_ready, make_keys, until

pytestmark = pytest.mark.slow
# Longer than haproxy takes to see that an API is not ready: three looks, one a second.
_DRAIN_SECONDS = 5
_PATIENCE_SECONDS = 60.0
_STRANGER, _NEIGHBOUR = "127.0.0.2", "127.0.0.3"
_NO_KEY = {"Authorization": "Bearer cvn_0123456789ab_nobody"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Place:
    """Two APIs behind haproxy."""

    url: str
    own_urls: list[str]
    apis: list["Popen[bytes]"]
    keys: dict[Role, str]

    def bearer(self, role: Role) -> dict[str, str]:
        """The header that a holder of this role sends."""
        return {"Authorization": f"Bearer {self.keys[role]}"}


@pytest.fixture(scope="module")
async def place(module_database_url: str, tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Place]:
    directory, ports = tmp_path_factory.mktemp("haproxy"), [free_port(), free_port()]
    settings = {
        "CONVENER_DATABASE_URL": module_database_url,
        "CONVENER_TRUSTED_PROXIES": "127.0.0.1",
        "CONVENER_DRAIN_SECONDS": str(_DRAIN_SECONDS),
    }
    with ExitStack() as stack:
        apis = [
            stack.enter_context(process("app.main", settings | {"CONVENER_PORT": str(port)}, directory / f"{port}.log"))
            for port in ports
        ]
        port = stack.enter_context(haproxy(ports, directory / "haproxy.log"))
        urls = [f"http://127.0.0.1:{each}" for each in (port, *ports)]
        keys = await make_keys(module_database_url)
        async with asyncio.timeout(_PATIENCE_SECONDS):
            for each in urls:
                while not await is_ready(each):
                    await asyncio.sleep(0.05)
        yield Place(url=urls[0], own_urls=urls[1:], apis=apis, keys=keys)
        for api in apis:
            # A second one, which follows, ends the time to drain.
            api.terminate()


def _client(url: str, *, address: str = "127.0.0.1") -> httpx.AsyncClient:
    """One that calls from this address of the machine, and obeys no proxy of the environment."""
    transport = httpx.AsyncHTTPTransport(local_address=address)
    return httpx.AsyncClient(base_url=url, transport=transport, trust_env=False, timeout=_PATIENCE_SECONDS)


async def _worker(client: httpx.AsyncClient, place: Place) -> tuple[str, dict[str, str]]:
    """Id and header of a worker that is ready."""
    answer = await client.post("/workers", json=registration(), headers=place.bearer(Role.POOL))
    worker, own = answer.json()["worker_id"], {"Authorization": f"Bearer {answer.json()['key']}"}
    assert (await client.post(f"/workers/{worker}/heartbeat", json={"state": "ready"}, headers=own)).is_success
    return worker, own


async def _waiting(place: Place) -> int:
    """Number of calls for a task that wait in both APIs."""
    waiting = 0
    for url in place.own_urls:
        async with _client(url) as client:
            waiting += (await client.get("/status", headers=place.bearer(Role.ADMIN))).json()["waiting_leases"]
    return waiting


async def _until_waiting(place: Place, count: int) -> None:
    async with asyncio.timeout(_PATIENCE_SECONDS):
        while await _waiting(place) != count:
            await asyncio.sleep(0.05)


async def test_a_client_that_hangs_up_waits_no_longer_behind_it(place: Place) -> None:
    async with _client(place.url) as client:
        _, own = await _worker(client, place)
        wanted = {"request_id": str(uuid4()), "wait_seconds": 30}
        async with _client(place.url) as other:
            polling = asyncio.create_task(other.post("/lease", json=wanted, headers=own))
            await _until_waiting(place, 1)
            polling.cancel()
            await asyncio.gather(polling, return_exceptions=True)
        # By itself the call would end after its 30 s.
        async with asyncio.timeout(20):
            await _until_waiting(place, 0)


async def _refused(client: httpx.AsyncClient, count: int, **headers: str) -> list[int]:
    """What calls with an unknown key are answered, which count against whoever makes them."""
    return [(await client.get("/tasks", headers=_NO_KEY | headers)).status_code for _ in range(count)]


async def test_failures_count_against_the_caller_and_against_nobody_else(place: Place) -> None:
    async with _client(place.url, address=_STRANGER) as stranger, _client(place.url, address=_NEIGHBOUR) as neighbour:
        # Each API counts for itself, and allows ten.
        assert 429 in await _refused(stranger, 30)
        assert await _refused(neighbour, 2) == [401] * 2


@pytest.mark.parametrize("through_haproxy", [True, False])
async def test_no_caller_may_say_itself_where_it_comes_from(place: Place, through_haproxy: bool) -> None:
    """Nor when it calls an API past haproxy, from an address that is not haproxy's."""
    url, address = (place.url, "127.0.0.4") if through_haproxy else (place.own_urls[1], "127.0.0.5")
    statuses: list[int] = []
    async with _client(url, address=address) as liar, _client(url, address=_NEIGHBOUR) as neighbour:
        for number in range(30):
            statuses += await _refused(liar, 1, **{"X-Forwarded-For": f"10.0.0.{number}"})
        # Nor that it is somebody else, who would then be locked out.
        for _ in range(30):
            statuses += await _refused(liar, 1, **{"X-Forwarded-For": _NEIGHBOUR})
        assert 429 in statuses[:30]
        assert 429 in statuses[30:]
        assert await _refused(neighbour, 2) == [401] * 2


async def test_nor_behind_the_body_of_its_request(place: Place) -> None:
    """haproxy passes trailers on, and overwrites the header only."""
    port, statuses = int(place.url.rpartition(":")[2]), []
    for number in range(40):
        reader, writer = await asyncio.open_connection("127.0.0.1", port, local_addr=("127.0.0.6", 0))
        lines = ["POST /lease HTTP/1.1", "Host: x", f"Authorization: {_NO_KEY['Authorization']}", "Connection: close"]
        lines += ["Transfer-Encoding: chunked", "", "2", "{}", "0", f"X-Forwarded-For: 10.1.0.{number}", "X: y", "", ""]
        writer.write("\r\n".join(lines).encode())
        async with asyncio.timeout(_PATIENCE_SECONDS):
            statuses.append(int((await reader.read()).split()[1]))
        writer.close()
    # Each API allows ten, and forgives one in six seconds.
    assert statuses.count(401) < 30, statuses
    assert statuses[-1] == 429


async def test_answers_of_an_exchange_come_one_by_one(place: Place) -> None:
    """Those that wait hold back none of those that are there, and none is lost on the way."""
    async with _client(place.url) as client:
        service = Service(app=None, client=client, keys=place.keys)  # type: ignore[arg-type]  # it is elsewhere
        busy, idle = [await service.worker() for _ in range(2)]
        tasks = [{"agent_type": "ranking", "payload": {"text": "x" * 200_000}} for _ in range(3)]
        await service.post("/tasks/batch", {"tasks": tasks}, key=Role.SUPERVISOR)
        lease = await busy.lease()
        items = [hand_in(busy, lease, and_next=True), ask(idle, 30, agent_types=["evolution"])]
        own = {"Authorization": items[0]["authorization"]}
        async with client.stream("POST", "/leases/exchange", json={"items": items}, headers=own) as answer:
            assert answer.status_code == 200, await answer.aread()
            lines = answer.aiter_lines()
            (first,) = json.loads(await anext(lines))["answers"]
            assert (first["index"], first["status"]) == (0, 200)
            assert len(first["body"]["lease"]["payload"]["text"]) == 200_000
            # It waits until there is such a task, which comes over another connection.
            task = await service.post("/tasks", {"agent_type": "evolution"}, key=Role.SUPERVISOR)
            (second,) = json.loads(await anext(lines))["answers"]
            assert (second["index"], second["body"]["task_id"]) == (1, task["id"])
            assert [line async for line in lines] == []


def _timeouts(text: str) -> dict[str, float]:
    return {name: float(seconds) for name, seconds in re.findall(r"^\s+timeout (\S+) (\d+)s$", text, flags=re.M)}


@pytest.mark.parametrize("beats", [True, False])
async def test_a_stream_of_events_outlives_the_timeouts_by_its_heartbeat(
    database: Database, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, beats: bool
) -> None:
    """By a file whose 75 s are two: without the heartbeat the stream would be cut, and events come at once."""
    text, file = HAPROXY.read_text(), tmp_path / "haproxy.cfg"
    limits = _timeouts(text)
    assert min(limits["client"], limits["server"]) > 4 * streaming.HEARTBEAT_SECONDS
    file.write_text(re.sub(r"timeout (client|server) 75s", r"timeout \1 2s", text))
    monkeypatch.setattr(streaming, "HEARTBEAT_SECONDS", 0.1 if beats else 60)
    monkeypatch.setattr(event_stream, "_POLL_SECONDS", 0.1)
    async with on_a_port(database) as port:
        with haproxy([port.number, free_port()], tmp_path / "haproxy.log", file) as number:
            async with _client(f"http://127.0.0.1:{number}") as client:
                await until_ready(str(client.base_url))
                service = Service(app=port.service.app, client=client, keys=port.service.keys)
                source = Source(service=service, query={"after": "now"})
                async with asyncio.timeout(_PATIENCE_SECONDS), source.open() as events:
                    following = asyncio.ensure_future(anext(events))
                    if not beats:
                        with pytest.raises(httpx.RemoteProtocolError):
                            await following
                        return
                    await until(lambda: source.comments >= 40 or following.done())
                    task = await service.submitted()
                    _, kind, data = await following
    assert (kind, json.loads(data)["task_id"]) == ("task.submitted", task)


@pytest.mark.parametrize(("fault", "status"), [("dies", 502), ("is gone", 503), ("hangs", 504)])
async def test_what_haproxy_answers_for_an_api_has_the_form_of_the_service(
    tmp_path: Path, fault: str, status: int
) -> None:
    """It was a page of HTML, without a word of when to come again."""

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = await reader.readuntil(b"\r\n\r\n")
        if b"/readyz" in head:
            writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\nConnection: close\r\n\r\n")
        elif fault == "hangs":
            await reader.read()
        writer.close()

    # haproxy looks once, so that it does not see an API go; and waits for 2 s, not 75 s.
    text, file = HAPROXY.read_text(), tmp_path / "haproxy.cfg"
    text = text.replace("check inter 1s", "check inter 60s").replace("timeout server 75s", "timeout server 2s")
    file.write_text(text)
    api = await asyncio.start_server(serve, "127.0.0.1", 0)
    number = api.sockets[0].getsockname()[1]
    with haproxy([number, free_port()], tmp_path / "haproxy.log", file) as port:
        await until_ready(f"http://127.0.0.1:{port}")
        if fault == "is gone":
            api.close()
            await api.wait_closed()
        async with _client(f"http://127.0.0.1:{port}") as client:
            answer = await client.post("/lease", json={})
    api.close()
    problem = answer.json()
    assert (answer.status_code, problem["status"], problem["code"]) == (status, status, "control_plane_away")
    assert (answer.headers["content-type"], answer.headers["retry-after"]) == ("application/problem+json", "1")


async def until_ready(url: str) -> None:
    """Wait until haproxy has seen an API."""
    async with asyncio.timeout(_PATIENCE_SECONDS):
        while not await is_ready(url):
            await asyncio.sleep(0.05)


async def _poll(client: httpx.AsyncClient, own: dict[str, str], done: asyncio.Event) -> list[int]:
    """What long polls for work that nobody submits are answered, one after the other."""
    statuses = []
    while not done.is_set():
        wanted: dict[str, Any] = {"request_id": str(uuid4()), "wait_seconds": 3, "agent_types": ["evolution"]}
        statuses.append((await client.post("/lease", json=wanted, headers=own)).status_code)
    return statuses


async def test_no_request_fails_while_an_api_drains(place: Place) -> None:
    """The last of the file, as it ends one of the two."""
    journal, done = Journal(), asyncio.Event()
    async with _client(place.url) as client:
        supervisor = Client(http=client, key=place.keys[Role.SUPERVISOR], journal=journal)
        pool = Client(http=client, key=place.keys[Role.POOL], journal=journal)
        jobs: list[asyncio.Task[Any]] = [asyncio.create_task(work(pool, done)) for _ in range(4)]
        jobs += [asyncio.create_task(submit(supervisor, done)) for _ in range(2)]
        polls = [asyncio.create_task(_poll(client, (await _worker(client, place))[1], done)) for _ in range(6)]

        async def more(count: int) -> None:
            goal = len(journal.completed) + count
            await until(lambda: len(journal.completed) >= goal or any(job.done() for job in (*jobs, *polls)))

        await more(10)
        api = place.apis[0]
        api.send_signal(signal.SIGTERM)
        assert await asyncio.to_thread(api.wait, _PATIENCE_SECONDS) == 0
        await more(10)
        done.set()
        await asyncio.gather(*jobs)
        answers = [status for poll in await asyncio.gather(*polls) for status in poll]
    # A worker may ask for a task before its first heartbeat is answered.
    assert journal.errors.keys() <= {"409"}, journal.errors
    assert set(answers) == {204}
