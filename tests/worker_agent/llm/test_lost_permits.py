"""A call goes on only while its permit is ours: else more calls would be under way than are allowed."""

import asyncio
import http.client
import json
import threading
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import urlsplit
from uuid import uuid4

import httpx
import pytest

from tests.worker_agent.llm.conftest import Bench, Start, wait_until_settled
from tests.worker_agent.llm.loopback import ReceivedRequest, ResponseWriter
from tests.worker_agent.llm.provider import MESSAGES, Act, Permits, Provider, hangs, permit_over, piece, refuses, renews
from worker_agent.failures import Postponed
from worker_agent.llm.outcomes import Outcome
from worker_agent.llm.permits import Permit, PermitClient, PermitRequest, Settlement
from worker_agent.llm.task_keys import TaskKey
from worker_agent.wire import Lease

_LONG = 30.0
_TTL = 4.0
_LOSSES = {"refused": permit_over, "away": refuses(503), "silent": hangs(_LONG)}
losses = pytest.mark.parametrize("loss", _LOSSES.values(), ids=_LOSSES)


@dataclass(slots=True)
class Endless:
    """A call that lasts until the caller hangs up; a stream begins, and may go on for ever."""

    goes_on: bool = False
    began: threading.Event = field(default_factory=threading.Event)
    hung_up: threading.Event = field(default_factory=threading.Event)

    def act(self, request: ReceivedRequest, writer: ResponseWriter) -> None:
        """As the provider."""
        if request.body.get("stream"):
            writer.begin({"content-type": "text/event-stream"})
            writer.write(piece("It ", request.body["model"]))
        self.began.set()
        if self.goes_on:
            self._write(request, writer)
        elif writer.sees_hang_up(_LONG):
            self.hung_up.set()

    def _write(self, request: ReceivedRequest, writer: ResponseWriter) -> None:
        try:
            while True:
                writer.write(piece("is " * 1000, request.body["model"]))
        except OSError:
            self.hung_up.set()


@losses
def test_a_call_whose_permit_is_lost_is_ended_and_made_anew(start: Start, loss: Act) -> None:
    endless = Endless()
    renewals: list[str] = []

    def loses_the_first(request: ReceivedRequest, writer: ResponseWriter) -> None:
        renewals.append(request.path)
        (loss if request.path == renewals[0] else renews)(request, writer)

    bench = start(Provider.of(endless.act), Permits(ttl_seconds=_TTL, on_renewal=loses_the_first))

    assert bench.model().ask("Why?").text == "It is a law."

    assert endless.hung_up.wait(_LONG)
    ids = [request.body["request_id"] for request in bench.plane.requests if request.path == "/llm/permits"]
    assert len(set(ids)) == 2
    wait_until_settled(bench, 2)
    assert sorted(bench.permits.outcomes) == ["cancelled", "success"]


@losses
def test_a_stream_whose_permit_is_lost_is_ended_and_says_so(start: Start, loss: Act) -> None:
    endless, is_read = Endless(), threading.Event()

    def loses_what_is_read(request: ReceivedRequest, writer: ResponseWriter) -> None:
        is_read.wait(_LONG)
        loss(request, writer)

    bench = start(Provider.of(endless.act), Permits(ttl_seconds=_TTL, on_renewal=loses_what_is_read))
    connection = _asking(bench, stream=True)
    response = connection.getresponse()
    assert b"It " in response.readline()
    is_read.set()
    content = response.read()
    connection.close()

    assert b"convener_not_now" in content
    assert b"[DONE]" not in content
    assert endless.hung_up.wait(_LONG)
    wait_until_settled(bench, 1)
    assert bench.permits.outcomes == ["cancelled"]


def test_a_stream_that_nobody_reads_is_ended_too(start: Start) -> None:
    endless = Endless(goes_on=True)
    bench = start(Provider.of(endless.act), Permits(ttl_seconds=_TTL, on_renewal=permit_over))
    connection = _asking(bench, stream=True)

    assert endless.hung_up.wait(_LONG)

    connection.close()
    wait_until_settled(bench, 1)


def test_a_task_without_time_for_another_permit_comes_back_later(start: Start) -> None:
    permits = Permits(ttl_seconds=_TTL, on_renewal=permit_over)

    def last(request: ReceivedRequest, writer: ResponseWriter) -> None:
        permits.refuse([{"retry_after": 3600.0}])
        Endless().act(request, writer)

    bench = start(Provider.of(last), permits, models=("gpt-4.1",))

    with pytest.raises(Postponed):
        bench.model().ask("Why?")

    wait_until_settled(bench, 1)


@pytest.mark.parametrize("stream", [False, True], ids=["whole", "stream"])
def test_a_client_that_leaves_ends_its_call(start: Start, stream: bool) -> None:
    endless = Endless()
    bench = start(Provider.of(endless.act))
    connection = _asking(bench, stream=stream)
    assert endless.began.wait(_LONG)

    connection.close()

    assert endless.hung_up.wait(_LONG)
    wait_until_settled(bench, 1)
    assert bench.permits.outcomes == ["cancelled"]


def test_a_permit_is_let_go_as_soon_as_the_control_plane_is_back(start: Start) -> None:
    """Its answer is given out meanwhile."""
    is_back, tried = threading.Event(), threading.Semaphore(0)

    class Away(Permits):
        def respond(self, request: ReceivedRequest, writer: ResponseWriter) -> None:
            if request.path.endswith("/settle") and not is_back.is_set():
                tried.release()
                writer.answer(503, {"code": "shutting_down"})
            else:
                Permits.respond(self, request, writer)

    bench = start(Provider.of(), Away())

    assert bench.model().ask("Why?").text == "It is a law."

    for _ in range(5):
        assert tried.acquire(timeout=_LONG)
    is_back.set()
    wait_until_settled(bench, 1)


def _asking(bench: Bench, *, stream: bool) -> http.client.HTTPConnection:
    """A request whose answer is not waited for."""
    parts = urlsplit(bench.gateway.url)
    connection = http.client.HTTPConnection(parts.hostname or "", parts.port, timeout=_LONG)
    headers = {"authorization": f"Bearer {bench.access().environment['OPENAI_API_KEY']}"}
    connection.request("POST", "/v1/chat/completions", json.dumps({"messages": MESSAGES, "stream": stream}), headers)
    return connection


async def test_the_time_of_a_permit_runs_from_before_it_was_asked_for() -> None:
    """The answer may take long, and the control plane counts from within."""
    request_times: list[float] = []

    async def plane(_: httpx.Request) -> httpx.Response:
        request_times.append(asyncio.get_running_loop().time())
        return httpx.Response(201, json={"permit_id": "p", "token": "t", "ttl_seconds": 0.2})

    async with _plane(plane) as http:
        permit = await PermitClient(http, lambda: "key").acquire(_permit_request())
        assert isinstance(permit, Permit)
        assert permit.requested_at <= request_times[0]
        assert permit.ends_at < permit.requested_at + 0.2


async def test_a_permit_that_nobody_renews_is_lost_at_its_end_though_the_answer_to_a_renewal_is_awaited() -> None:
    renewal_requested = asyncio.Event()

    async def plane(_: httpx.Request) -> httpx.Response:
        renewal_requested.set()
        await asyncio.Event().wait()
        raise AssertionError("nobody answers")

    loop = asyncio.get_running_loop()
    async with _plane(plane) as http:
        permit = Permit(permit_id="p", token="t", ttl_seconds=3.0, requested_at=loop.time())
        async with asyncio.timeout(_LONG):
            await PermitClient(http, lambda: "key").keep_alive(permit)
    assert renewal_requested.is_set()
    assert loop.time() >= permit.ends_at


@pytest.mark.parametrize("status", [403, 404, 409])
async def test_what_a_stranger_answers_ends_no_permit_and_loses_no_settlement(status: int) -> None:
    answers: dict[str, list[httpx.Response]] = {
        path: [httpx.Response(status, text="<h1>no such backend</h1>")] for path in ("renew", "settle")
    }
    calls: list[str] = []

    async def plane(request: httpx.Request) -> httpx.Response:
        path = request.url.path.rpartition("/")[2]
        calls.append(path)
        return answers[path].pop() if answers[path] else httpx.Response(200, json={"ttl_seconds": 60.0})

    async with _plane(plane) as http:
        client = PermitClient(http, lambda: "key")
        permit = Permit(permit_id="p", token="t", ttl_seconds=2.4, requested_at=asyncio.get_running_loop().time())
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(2.7):
                await client.keep_alive(permit)
        await client.settle(permit, Settlement(outcome=Outcome.SUCCESS))
    assert calls == ["renew", "renew", "settle", "settle"]


def _plane(respond: Any) -> httpx.AsyncClient:
    return httpx.AsyncClient(base_url="http://plane", transport=httpx.MockTransport(respond))


def _permit_request() -> PermitRequest:
    task_key = TaskKey(secret="s", lease=Lease(task_id="t", token=1, agent_type="ranking"), ends_at=0.0)
    return PermitRequest(request_id=uuid4(), model="m", task_key=task_key, estimated_tokens=1, cache_key="0" * 64)
