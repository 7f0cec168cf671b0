"""Calls over real HTTP: what counts as an answer, and how a waiting call is cut off."""

import socket
import threading
import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import replace
from itertools import chain, repeat
from queue import SimpleQueue

import pytest

from tests.worker_agent.fake_control_plane import LOST, POOL_KEY, Answer, FakeControlPlane, foreign, problem, served
from tests.worker_agent.machines import registration
from worker_agent.client import Client, register
from worker_agent.transport import ApiUnavailable, Problem, Transport
from worker_agent.wire import LeaseRef


@pytest.fixture
def trickling_url() -> Iterator[str]:
    """A server whose answer comes byte by byte, and has no end."""
    over = threading.Event()
    with socket.create_server(("127.0.0.1", 0)) as server:

        def trickle() -> None:
            with server.accept()[0] as connection, suppress(OSError):
                for byte in chain(b"HTTP/1.1 200 OK\r\nx: ", repeat(ord("x"))):
                    connection.sendall(bytes([byte]))
                    if over.wait(0.05):
                        return

        threading.Thread(target=trickle, daemon=True).start()
        yield f"http://127.0.0.1:{server.getsockname()[1]}"
        over.set()


@pytest.fixture
def transport(url: str) -> Transport:
    return Transport(url)


def call(transport: Transport) -> object:
    return transport.post("/leases/t-1/start", {"token": 1}, key="cvn_key", timeout=10.0)


def test_an_answer_that_trickles_holds_its_caller_no_longer_than_one_that_does_not_come(trickling_url: str) -> None:
    transport = Transport(trickling_url)
    answered: SimpleQueue[Exception] = SimpleQueue()

    def post() -> None:
        try:
            transport.post("/lease", {}, key="cvn_key", timeout=0.5)
        except ApiUnavailable as error:
            answered.put(error)

    threading.Thread(target=post, daemon=True).start()
    error = answered.get(timeout=20)
    assert isinstance(error, ApiUnavailable)
    assert (error.is_late, str(error)) == (True, "no whole answer within 1.5 s")
    transport.close()


@pytest.mark.parametrize(
    ("answer", "retry_after"),
    [
        (LOST, 0.0),
        (Answer(status=500), 0.0),
        (Answer(status=503, headers=(("retry-after", "7"),)), 7.0),
        (Answer(status=429, body={"code": "queue_full"}, headers=(("retry-after", "1.5"),)), 1.5),
        (Answer(status=503, headers=(("retry-after", "86400"),)), 60.0),
        (Answer(status=503, headers=(("retry-after", "Wed, 21 Oct 2026 07:28:00 GMT"),)), 0.0),
        (Answer(status=200), 0.0),
        (Answer(status=307, headers=(("location", "/elsewhere"),)), 0.0),
    ],
)
def test_no_answer_or_a_later_one_is_away(
    plane: FakeControlPlane, transport: Transport, answer: Answer, retry_after: float
) -> None:
    plane.script["start"].append(answer)
    with pytest.raises(ApiUnavailable) as caught:
        call(transport)
    assert caught.value.retry_after == retry_after
    assert call(transport) == {"state": "executing"}
    transport.close()


def test_whoever_is_to_wait_learns_why(plane: FakeControlPlane, transport: Transport) -> None:
    plane.script["start"].append(problem(429, "pool_full", detail="the configuration allows 6 workers"))
    with pytest.raises(ApiUnavailable, match="429 pool_full: the configuration allows 6 workers") as caught:
        call(transport)
    assert caught.value.asks_to_wait
    plane.script["start"].append(problem(503, "database_unavailable", detail="the database does not answer"))
    with pytest.raises(ApiUnavailable, match="503 database_unavailable") as caught:
        call(transport)
    assert not caught.value.asks_to_wait
    transport.close()


def test_a_proxy_does_not_stand_between_us_and_loopback(
    plane: FakeControlPlane, url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HTTP_PROXY", "http://127.0.0.1:1")
    monkeypatch.setenv("ALL_PROXY", "http://127.0.0.1:1")
    transport = Transport(url)
    assert call(transport) == {"state": "executing"}
    transport.close()


def test_a_refusal_is_a_problem(plane: FakeControlPlane, transport: Transport) -> None:
    plane.script["start"].append(problem(409, "worker_gone", detail="gone", reason="lost"))
    with pytest.raises(Problem, match="409 worker_gone: gone") as caught:
        call(transport)
    assert (caught.value.status, caught.value.code, caught.value.reason) == (409, "worker_gone", "lost")
    transport.close()


@pytest.mark.parametrize("status", [400, 401, 403, 404, 405, 409, 422])
def test_a_refusal_by_somebody_else_is_no_word_of_the_control_plane(
    plane: FakeControlPlane, transport: Transport, status: int
) -> None:
    """An ingress that reloads, a firewall or a captive portal refuses calls of which it knows nothing."""
    without_code = replace(problem(status, "x"), body={"title": "no"})
    of_another_type = replace(problem(status, "not_found"), headers=(("content-type", "application/json"),))
    for answer in (Answer(status=status), foreign(status), without_code, of_another_type):
        plane.script["start"].append(answer)
        with pytest.raises(ApiUnavailable, match=f"{status} .* no problem of a control plane") as caught:
            call(transport)
        assert caught.value.is_foreign_refusal
    transport.close()


def test_a_body_that_is_too_large_for_a_proxy_is_refused_for_good(
    plane: FakeControlPlane, transport: Transport
) -> None:
    plane.script["start"].append(Answer(status=413))
    with pytest.raises(Problem, match="413 unknown"):
        call(transport)
    transport.close()


def test_a_waiting_call_is_cut_off_and_the_next_one_connects_anew() -> None:
    plane = FakeControlPlane(longest_wait=25.0)
    with served(plane) as address:
        transport = Transport(address)
        client = Client(transport, registration())
        ended: list[Exception] = []

        def wait() -> None:
            try:
                client.lease("request-1")
            except ApiUnavailable as away:
                ended.append(away)

        thread = threading.Thread(target=wait)
        thread.start()
        plane.wait_for("lease")
        began = time.monotonic()
        transport.abort()
        thread.join(20.0)
        assert ended
        assert time.monotonic() - began < 20.0
        client.release(LeaseRef("t-1", 1), "a later call")
        transport.close()


@pytest.mark.parametrize("body", [{}, {"worker_id": "w", "name": "n", "incarnation": "x", "key": "k"}])
def test_a_registration_that_cannot_be_read_is_asked_for_again(
    plane: FakeControlPlane, transport: Transport, body: dict[str, object]
) -> None:
    plane.script["register"].append(Answer(status=201, body=body))
    with pytest.raises(ApiUnavailable, match="no registration"):
        register(transport, {"name": "n"}, POOL_KEY)
    transport.close()


@pytest.mark.parametrize("body", [{"task_id": "t"}, {"task_id": "t", "token": 1, "agent_type": "x", "payload": 3}])
def test_a_lease_that_cannot_be_read_is_asked_for_again(
    plane: FakeControlPlane, transport: Transport, body: dict[str, object]
) -> None:
    plane.script["lease"].append(Answer(body=body))
    with pytest.raises(ApiUnavailable, match="unreadable lease"):
        Client(transport, registration()).lease("request-1")
    transport.close()


def test_keys_stay_out_of_reprs() -> None:
    assert "secret" not in repr(registration())
