"""Several addresses: the first that answers is used, none is asked twice, and an earlier one again once it is back."""

import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import httpx
import pytest

from tests.support.ports import free_port
from worker_agent.connections.clients import addresses, check_address, open_async_client, open_client
from worker_agent.connections.several import Preference
from worker_agent.connections.trust import SYSTEM_TRUST


class Plane:
    """Counts the requests that reach it, by path, and answers with its status; None hangs up."""

    def __init__(self, status: int | None = 200) -> None:
        self.status = status
        self.requests: list[tuple[str, str, bytes]] = []


@contextmanager
def serving(plane: Plane, port: int = 0) -> Iterator[str]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["content-length"]))
            plane.requests.append((self.path, str(self.headers["host"]), body))
            # Else its thread would go on serving this connection when the server has ended.
            self.close_connection = True
            if plane.status is None:
                return
            self.send_response(plane.status)
            self.send_header("content-length", "0")
            self.send_header("connection", "close")
            self.end_headers()

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", port), Handler)
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, args=(0.01,))
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def test_one_that_failed_comes_last_until_its_pause_is_over() -> None:
    time = 100.0
    preference = Preference(3, lambda: time)
    assert preference.order() == [0, 1, 2]
    preference.note_failure(0)
    preference.note(1, 502)
    preference.note_failure(1)
    assert preference.order() == [2, 0, 1]
    time += 1.0
    assert preference.order() == [0, 2, 1]
    preference.note_failure(0)
    time += 1.0
    assert preference.order()[0] != 0, "the second pause is longer"
    preference.note_answer(0)
    assert preference.order()[0] == 0


def test_a_pause_has_a_bound() -> None:
    time = 0.0
    preference = Preference(2, lambda: time)
    for _ in range(2000):
        preference.note_failure(0)
    time += 60.0
    assert preference.order() == [0, 1]


def test_each_of_several_addresses_is_checked() -> None:
    assert addresses("unix:/a,b,http://127.0.0.1:1, https://far.test") == [
        "unix:/a,b",
        "http://127.0.0.1:1",
        "https://far.test",
    ]
    assert check_address("http://127.0.0.1:1/,https://far.test", SYSTEM_TRUST) == "http://127.0.0.1:1,https://far.test"
    with pytest.raises(ValueError, match="in clear"):
        check_address("http://127.0.0.1:1,http://far.test", SYSTEM_TRUST)
    with pytest.raises(ValueError, match="in clear"):
        open_client("http://127.0.0.1:1,http://far.test", SYSTEM_TRUST)


def test_the_next_is_asked_in_the_same_call_and_the_first_again_when_it_is_back(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("worker_agent.connections.several._FIRST_PAUSE_SECONDS", 0.0)
    relay, direct, port = Plane(), Plane(), free_port()
    with (
        serving(direct) as url,
        open_client(f"http://127.0.0.1:{port},{url}/under", SYSTEM_TRUST, timeout=30) as client,
    ):
        assert client.post("/lease", content=b"1").status_code == 200
        with serving(relay, port):
            assert client.post("/lease", content=b"2").status_code == 200
        assert client.post("/lease", content=b"3").status_code == 200
    host = url.removeprefix("http://")
    assert direct.requests == [("/under/lease", host, b"1"), ("/under/lease", host, b"3")]
    assert relay.requests == [("/lease", f"127.0.0.1:{port}", b"2")]


def test_what_may_have_been_done_is_not_sent_again_but_the_next_call_goes_elsewhere() -> None:
    relay, direct = Plane(status=None), Plane()
    with (
        serving(relay) as first,
        serving(direct) as second,
        open_client(f"{first},{second}", SYSTEM_TRUST, timeout=30) as client,
    ):
        with pytest.raises(httpx.TransportError):
            client.post("/lease", content=b"1")
        assert (len(relay.requests), len(direct.requests)) == (1, 0)
        assert client.post("/lease", content=b"1").status_code == 200
    assert (len(relay.requests), len(direct.requests)) == (1, 1)


async def test_a_relay_that_does_not_reach_the_control_plane_is_passed_by() -> None:
    relay, direct = Plane(status=502), Plane()
    with serving(relay) as first, serving(direct) as second:
        async with open_async_client(f"{first},{second}", SYSTEM_TRUST, timeout=30) as client:
            assert (await client.post("/lease", content=b"1")).status_code == 502
            assert (await client.post("/lease", content=b"1")).status_code == 200
    assert (len(relay.requests), len(direct.requests)) == (1, 1)


async def test_one_that_hangs_keeps_no_call_but_the_first_waiting(monkeypatch: pytest.MonkeyPatch) -> None:
    """As a relay that is stopped does: the system goes on to take its connections."""
    monkeypatch.setattr("worker_agent.connections.several._FIRST_PAUSE_SECONDS", 0.0)
    monkeypatch.setattr("worker_agent.connections.several._PROBE_SECONDS", 0.1, raising=False)
    direct = Plane()
    with socket.create_server(("127.0.0.1", 0)) as stopped, serving(direct) as second:
        both = f"http://127.0.0.1:{stopped.getsockname()[1]},{second}"
        with open_client(both, SYSTEM_TRUST) as client:
            with pytest.raises(httpx.ReadTimeout):
                client.post("/lease", content=b"1", timeout=0.1)
            for _ in range(2):
                assert client.post("/lease", content=b"1", timeout=5).status_code == 200
        async with open_async_client(both, SYSTEM_TRUST) as asyncio_client:
            with pytest.raises(httpx.ReadTimeout):
                await asyncio_client.post("/lease", content=b"1", timeout=0.1)
            for _ in range(2):
                assert (await asyncio_client.post("/lease", content=b"1", timeout=5)).status_code == 200
    assert len(direct.requests) == 4


async def test_nobody_answers() -> None:
    ports = free_port(), free_port()
    both = ",".join(f"http://127.0.0.1:{port}" for port in ports)
    with open_client(both, SYSTEM_TRUST, timeout=30) as client, pytest.raises(httpx.ConnectError):
        client.post("/lease", content=b"1")
    async with open_async_client(both, SYSTEM_TRUST, timeout=30) as asyncio_client:
        with pytest.raises(httpx.ConnectError):
            await asyncio_client.post("/lease", content=b"1")
