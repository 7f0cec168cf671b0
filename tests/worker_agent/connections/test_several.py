"""Several addresses: the first that answers is used, none is asked twice, and an earlier one again once it is back."""

import asyncio
import socket
import ssl
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import httpx
import pytest

from tests.support.ports import free_port
from tests.support.tls import ALERT_IN_CLEAR, issue, listening
from worker_agent.connections.clients import addresses, check_address, open_async_client, open_client
from worker_agent.connections.several import Preference
from worker_agent.connections.trust import SYSTEM_TRUST, Trust


class Plane:
    """Counts the requests that reach it, by path, and answers with its status; None hangs up.

    A sign of life takes it so many seconds.
    """

    def __init__(self, status: int | None = 200, seconds: float = 0.0) -> None:
        self.status = status
        self.seconds = seconds
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

        def do_GET(self) -> None:
            time.sleep(plane.seconds)
            self.send_response(200)
            self.send_header("content-length", "0")
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
    moment = 100.0
    preference = Preference(3, lambda: moment)
    assert preference.order() == [0, 1, 2]
    preference.note_failure(0)
    preference.note(1, 502)
    preference.note_failure(1)
    assert preference.order() == [2, 0, 1]
    moment += 1.0
    assert preference.order() == [0, 2, 1]
    preference.note_failure(0)
    moment += 1.0
    assert preference.order()[0] != 0, "the second pause is longer"
    preference.note_answer(0)
    assert preference.order()[0] == 0


def test_a_pause_has_a_bound() -> None:
    moment = 0.0
    preference = Preference(2, lambda: moment)
    for _ in range(2000):
        preference.note_failure(0)
    moment += 60.0
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


async def test_one_that_is_slow_to_show_a_sign_of_life_is_asked_where_no_other_is_there(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """As a relay on a busy node is, which its workers would never have reached again after one failure."""
    monkeypatch.setattr("worker_agent.connections.several._FIRST_PAUSE_SECONDS", 0.0)
    monkeypatch.setattr("worker_agent.connections.several._PROBE_SECONDS", 0.1)
    port, relay = free_port(), Plane(seconds=0.5)
    both = f"http://127.0.0.1:{port},http://127.0.0.1:{free_port()}"
    with open_client(both, SYSTEM_TRUST, timeout=30) as client:
        async with open_async_client(both, SYSTEM_TRUST, timeout=30) as asyncio_client:
            with pytest.raises(httpx.ConnectError):
                client.post("/lease", content=b"1")
            with pytest.raises(httpx.ConnectError):
                await asyncio_client.post("/lease", content=b"1")
            with serving(relay, port):
                assert client.post("/lease", content=b"1").status_code == 200
                assert (await asyncio_client.post("/lease", content=b"1")).status_code == 200
    assert len(relay.requests) == 2


async def test_one_that_hangs_beside_one_that_is_slow_ends_the_call_by_its_own_time(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("worker_agent.connections.several._FIRST_PAUSE_SECONDS", 0.0)
    monkeypatch.setattr("worker_agent.connections.several._PROBE_SECONDS", 0.1)
    with socket.create_server(("127.0.0.1", 0)) as first, socket.create_server(("127.0.0.1", 0)) as second:
        both = ",".join(f"http://127.0.0.1:{stopped.getsockname()[1]}" for stopped in (first, second))
        async with open_async_client(both, SYSTEM_TRUST, timeout=0.1) as client, asyncio.timeout(20):
            for _ in range(4):
                with pytest.raises(httpx.ReadTimeout):
                    await client.post("/lease", content=b"1")


async def test_one_whose_encryption_breaks_is_passed_by_for_the_next(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr("worker_agent.connections.several._FIRST_PAUSE_SECONDS", 0.0)
    certificate, direct = issue(tmp_path), Plane()
    trust = Trust(ca_file=certificate.ca_file)
    with listening(certificate.context(), b"", beneath=ALERT_IN_CLEAR) as broken, serving(direct) as second:
        async with open_async_client(f"https://127.0.0.1:{broken.port},{second}", trust, timeout=30) as client:
            # Of a body the server would read nothing, and reset the connection.
            with pytest.raises(ssl.SSLError):
                await client.get("/lease")
            for _ in range(2):
                assert (await client.post("/lease", content=b"1")).status_code == 200
    assert len(direct.requests) == 2


async def test_nobody_answers() -> None:
    ports = free_port(), free_port()
    both = ",".join(f"http://127.0.0.1:{port}" for port in ports)
    with open_client(both, SYSTEM_TRUST, timeout=30) as client, pytest.raises(httpx.ConnectError):
        client.post("/lease", content=b"1")
    async with open_async_client(both, SYSTEM_TRUST, timeout=30) as asyncio_client:
        with pytest.raises(httpx.ConnectError):
            await asyncio_client.post("/lease", content=b"1")
