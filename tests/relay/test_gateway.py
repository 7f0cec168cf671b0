"""Requests through a gateway to a control plane of raw bytes: what is passed, joined, refused and cut off."""

import asyncio
import json
from pathlib import Path
from uuid import uuid4

import pytest
from starlette.types import Receive, Scope, Send

from app.http.bodies import CONTENT_BYTES, parse
from app.relay import passing, upstream
from app.relay.exchange import ExchangePolicy
from app.relay.gateway import Gateway
from app.relay.upstream import Upstream
from tests.relay.far_side import Arrival, Call, answer, asked, far_side
from tests.support.ports import free_port
from tests.support.tls import issue
from worker_agent.connections.trust import SYSTEM_TRUST, Trust

KEY = (("authorization", "Bearer cvn_w1"),)


def gateway(port: int, *, max_connections: int = 20) -> Gateway:
    place = Upstream(f"http://127.0.0.1:{port}", SYSTEM_TRUST, max_connections=max_connections)
    return Gateway(place, ExchangePolicy())


async def test_a_request_passes_with_its_headers_but_those_of_the_connection() -> None:
    async def reply(arrival: Arrival, writer: asyncio.StreamWriter) -> None:
        assert await arrival.body() == b"hello"
        writer.write(answer(b"[1]", "201 Created", "Retry-After: 3", "Connection: keep-alive, X-Hop", "X-Hop: 1"))

    hop = (("connection", "close, x-mine"), ("x-mine", "1"), ("te", "trailers"), ("x-forwarded-for", "10.0.0.1"))
    async with far_side(reply) as side:
        app = gateway(side.port)
        call, text = await asked(app, "/workers?a=%20b", b"hello", headers=(*KEY, *hop, ("x-other", "ü")))
    (arrival,) = side.arrivals
    assert arrival.line == "POST /workers?a=%20b HTTP/1.1"
    assert arrival.headers == {
        "host": f"127.0.0.1:{side.port}",
        "authorization": "Bearer cvn_w1",
        "x-other": "ü".encode().decode("latin-1"),
        "content-length": "5",
    }
    assert (call.status, text, call.headers["retry-after"]) == (201, b"[1]", "3")
    assert "x-hop" not in call.headers
    assert "connection" not in call.headers


async def test_a_body_is_never_a_request_and_an_answer_to_none_is_nobodys() -> None:
    hop = (("connection", "content-length, transfer-encoding"),)
    async with far_side() as side:
        call, _ = await asked(gateway(side.port), "/goals", b"GET /livez HTTP/1.1\r\nHost: a\r\n\r\n", headers=hop)
    assert (call.status, [arrival.line for arrival in side.arrivals]) == (200, ["POST /goals HTTP/1.1"])

    async def reply(_: Arrival, writer: asyncio.StreamWriter) -> None:
        writer.write(answer(b"[1]") + answer(b"[2]"))

    async with far_side(reply) as side:
        app = gateway(side.port)
        for _ in range(2):
            assert (await asked(app, "/goals", method="GET"))[1] == b"[1]"
        assert side.connections == 2


async def test_connections_are_used_again_and_one_that_was_closed_is_not() -> None:
    closing: list[asyncio.StreamWriter] = []

    async def reply(arrival: Arrival, writer: asyncio.StreamWriter) -> None:
        await arrival.body()
        writer.write(b"HTTP/1.1 103 Early Hints\r\nLink: x\r\n\r\n" + answer(b"{}"))
        closing.append(writer)

    async with far_side(reply) as side:
        app = gateway(side.port)
        for _ in range(3):
            call, text = await asked(app, "/goals", method="GET")
            assert (call.status, text) == (200, b"{}")
            assert "link" not in call.headers
        assert side.connections == 1
        closing[-1].close()
        await asyncio.sleep(0.05)
        call, _ = await asked(app, "/goals", method="GET")
        assert (call.status, side.connections) == (200, 2)
        assert (await asked(app, "/goals", method="HEAD"))[0].status == 200


async def test_pieces_pass_as_they_come_and_a_client_that_hangs_up_ends_the_answer() -> None:
    ended = asyncio.Event()

    async def reply(_: Arrival, writer: asyncio.StreamWriter) -> None:
        writer.write(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\nContent-Type: text/event-stream\r\n\r\n")
        for number in range(3):
            writer.write(b"9\r\ndata: %d\n\n\r\n" % number)
            await asyncio.sleep(0)
        await _.rest.read()
        ended.set()

    async with far_side(reply) as side:
        call = Call()
        call.begin(gateway(side.port), "/events/stream", method="GET")
        call.body(b"")
        received = b""
        async with asyncio.timeout(30):
            while received.count(b"data") < 3:
                received += await call.pieces.get() or b""
            assert received == b"data: 0\n\ndata: 1\n\ndata: 2\n\n"
            call.hang_up()
            await ended.wait()
            assert call.task is not None
            await call.task


async def test_a_long_body_streams_and_one_that_is_refused_early_is_not_read_to_its_end() -> None:
    async def refuse(_: Arrival, writer: asyncio.StreamWriter) -> None:
        writer.write(answer(b'{"code":"body_too_large"}', "413 Too Large", "Connection: close"))

    async with far_side() as side:
        call = Call()
        call.begin(gateway(side.port), "/context/a/b", headers=(("transfer-encoding", "chunked"),))
        for _ in range(40):
            call.body(b"x" * 65_536, more=True)
        call.body(b"")
        assert await call.text() == b"{}"
        assert side.bodies == [b"x" * 65_536 * 40]
    async with far_side(refuse) as side:
        call = Call()
        call.begin(gateway(side.port), "/context/a/b", headers=(("content-length", "1000000"),))
        call.body(b"x" * 100, more=True)
        assert await call.text() == b'{"code":"body_too_large"}'
        assert call.status == 413


async def test_a_body_without_end_is_cut_off(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(passing, "MAX_BODY_BYTES", 1000)

    async def swallow(arrival: Arrival, _: asyncio.StreamWriter) -> None:
        await arrival.body()

    async with far_side(swallow) as side:
        app = gateway(side.port)
        declared, text = await asked(app, "/tasks", b"x" * 1001)
        assert (declared.status, json.loads(text)["code"], side.connections) == (413, "body_too_large", 0)
        call = Call()
        call.begin(app, "/tasks", headers=(("transfer-encoding", "chunked"),))
        for _ in range(11):
            call.body(b"x" * 100, more=True)
        assert json.loads(await call.text())["code"] == "body_too_large"
        assert call.status == 413


async def test_a_control_plane_that_is_away_or_breaks_off() -> None:
    async def nothing(_: Arrival, writer: asyncio.StreamWriter) -> None:
        writer.close()

    async def half(_: Arrival, writer: asyncio.StreamWriter) -> None:
        writer.write(answer(b"{}")[:-1])
        await writer.drain()
        writer.close()

    async def nonsense(_: Arrival, writer: asyncio.StreamWriter) -> None:
        writer.write(b"SSH-2.0-OpenSSH\r\n\r\n")

    call, text = await asked(gateway(free_port()), "/tasks", b"{}")
    assert (call.status, json.loads(text)["code"]) == (502, "control_plane_away")
    for reply in (nothing, nonsense):
        async with far_side(reply) as side:
            call, text = await asked(gateway(side.port), f"/leases/{uuid4()}/start", b'{"token":1}', headers=KEY)
            assert (call.status, json.loads(text)["code"]) == (502, "control_plane_away")
    async with far_side(half) as side:
        call = Call()
        call.begin(gateway(side.port), "/tasks", method="GET")
        call.body(b"")
        assert call.task is not None
        await asyncio.wait_for(call.task, 30)
        assert call.status == 200
        assert None not in [call.pieces.get_nowait() for _ in range(call.pieces.qsize())], "it has no end"


@pytest.mark.parametrize("path", ["/tasks", f"/leases/{uuid4()}/start"])
async def test_an_outage_has_a_line_at_its_begin_and_one_at_its_end(
    path: str, caplog: pytest.LogCaptureFixture
) -> None:
    """An operator read nothing in the log of the relay while its workers waited."""
    statuses = iter(("200 OK", "502 Bad Gateway", "502 Bad Gateway", "503 Service Unavailable"))

    async def reply(arrival: Arrival, writer: asyncio.StreamWriter) -> None:
        await arrival.body()
        status = next(statuses)
        writer.write(answer(b"{}", status).replace(b"json", b"html" if status.startswith("502") else b"json"))

    async with far_side(reply) as side:
        app = gateway(side.port)
        for _ in range(4):
            await asked(app, path, b'{"token":1}', headers=KEY)
    told = [message.partition(" for ")[0] for message in caplog.messages]
    assert told == ["the control plane has been away", "the control plane is back after 0 s"]
    caplog.clear()
    app = gateway(free_port())
    for _ in range(3):
        await asked(app, path, b'{"token":1}', headers=KEY)
    (line,) = caplog.messages
    assert line.startswith("the control plane has been away for 0 s (no connection to the control plane: ")


async def test_no_more_connections_than_may_be() -> None:
    came = asyncio.Event()

    async def never(arrival: Arrival, _: asyncio.StreamWriter) -> None:
        came.set()
        await arrival.rest.read()

    async with far_side(never) as side:
        app = gateway(side.port, max_connections=1)
        first = Call()
        first.begin(app, "/tasks", method="GET")
        first.body(b"")
        await asyncio.wait_for(came.wait(), 30)
        call, text = await asked(app, "/tasks", method="GET")
        assert (call.status, json.loads(text)["code"]) == (503, "relay_busy")
        first.hang_up()
        assert first.task is not None
        await asyncio.wait_for(first.task, 30)


@pytest.mark.parametrize(
    ("body", "headers", "query"),
    [
        (b"", KEY, ""),
        (b"[1]", KEY, ""),
        (b'{"token":1}],[', KEY, ""),
        (b'{"token":NaN}', KEY, ""),
        (b'{"token":1,"result":"' + b"x" * 70_000 + b'"}', KEY, ""),
        (b'{"token":%s}' % (b"9" * 401), KEY, ""),
        (b'{"token":1,"result":' + b"[" * 199 + b"]" * 199 + b"}", KEY, ""),
        (b'{"token":1,"result":[' + b"[]," * 20_000 + b"1]}", KEY, ""),
        (b'{"token":1}', (), ""),
        (b'{"token":1}', (*KEY, *KEY), ""),
        (b'{"token":1}', (("authorization", 'Bearer "'),), ""),
        (b'{"token":1}', (("authorization", "Basic abc"),), ""),
        (b'{"token":1}', (*KEY, ("content-encoding", "gzip")), ""),
        (b'{"token":1}', KEY, "?a=1"),
    ],
)
async def test_a_call_that_only_its_own_route_can_judge_goes_there_as_it_came(
    body: bytes, headers: tuple[tuple[str, str], ...], query: str
) -> None:
    path = f"/leases/{uuid4()}/complete{query}"
    async with far_side() as side:
        call, _ = await asked(gateway(side.port), path, body, headers=headers)
    assert call.status == 200
    assert [arrival.line for arrival in side.arrivals] == [f"POST {path} HTTP/1.1"]
    assert side.bodies == [body]


@pytest.mark.parametrize("seconds", ["-1", "-1e999", "-1" + "0" * 390])
async def test_no_wait_below_zero_is_an_outage(seconds: str) -> None:
    body = b'{"wait_seconds":%s}' % seconds.encode()
    async with far_side() as side:
        assert (await asked(gateway(side.port), "/lease", body, headers=KEY))[0].status == 200
    assert side.bodies == [body]


async def test_the_densest_calls_are_read_together_by_the_control_plane() -> None:
    sizes: list[int] = []

    async def exchange(arrival: Arrival, writer: asyncio.StreamWriter) -> None:
        items = (await parse(await arrival.body(), CONTENT_BYTES))["items"]
        sizes.append(len(items))
        answers = [{"index": index, "status": 204} for index in range(len(items))]
        writer.write(answer(json.dumps({"answers": answers}).encode()))

    dense = b'{%s"":1}' % (b'"":1,' * 13_000)
    async with far_side(exchange) as side:
        app = gateway(side.port)
        path = f"/leases/{uuid4()}/complete"
        calls = [asked(app, path, body, headers=KEY) for body in [*[b"{}"] * 500, *[dense] * 30]]
        assert {call.status for call, _ in await asyncio.gather(*calls)} == {204}
    assert sum(sizes) == 530


async def test_calls_are_joined_and_without_an_exchange_they_pass() -> None:
    async def old(arrival: Arrival, writer: asyncio.StreamWriter) -> None:
        await arrival.body()
        is_exchange = "/leases/exchange" in arrival.line
        writer.write(answer(b'{"code":"not_found"}', "404 Not Found") if is_exchange else answer(b'{"state":"x"}'))

    async with far_side(old) as side:
        app = gateway(side.port)
        path = f"/leases/{uuid4()}/start"
        for _ in range(2):
            call, text = await asked(app, path, b'{"token":1}', headers=KEY)
            assert (call.status, text) == (200, b'{"state":"x"}')
    lines = [arrival.line.split()[1] for arrival in side.arrivals]
    assert lines == ["/leases/exchange", path, path]


async def test_an_answer_of_the_exchange_has_the_headers_of_a_plain_one() -> None:
    async def exchange(arrival: Arrival, writer: asyncio.StreamWriter) -> None:
        (item,) = json.loads(await arrival.body())["items"]
        status = {"Bearer cvn_bad": 401, "Bearer cvn_none": 204}.get(item["authorization"], 503)
        body = {} if status == 204 else {"body": {"code": "x"}}
        line = json.dumps({"answers": [{"index": 0, "status": status, "retry_after": 2} | body]})
        writer.write(answer(line.encode() + b"\n"))

    async with far_side(exchange) as side:
        app = gateway(side.port)
        busy, _ = await asked(app, f"/leases/{uuid4()}/start", b'{"token":1}', headers=KEY)
        bad, _ = await asked(app, "/lease", b"{}", headers=(("authorization", "Bearer cvn_bad"),))
        none, text = await asked(app, "/lease", b"{}", headers=(("authorization", "Bearer cvn_none"),))
    assert (busy.status, busy.headers["retry-after"]) == (503, "2")
    assert busy.headers["content-type"] == "application/problem+json"
    assert busy.headers["x-content-type-options"] == "nosniff"
    assert (bad.status, bad.headers["www-authenticate"]) == (401, "Bearer")
    assert (none.status, text, "content-length" in none.headers) == (204, b"", False)


async def test_the_server_keeps_connections_with_a_key_that_was_let_in() -> None:
    async def exchange(arrival: Arrival, writer: asyncio.StreamWriter) -> None:
        await arrival.body()
        is_good = arrival.headers["authorization"] == "Bearer cvn_w1"
        body = b'{"answers":[{"index":0,"status":200,"body":{}}]}'
        writer.write(answer(body if is_good else b"{}", "200 OK" if is_good else "401 Unauthorized"))

    kept: list[bool] = []
    async with far_side(exchange) as side:
        app = gateway(side.port)

        async def watched(scope: Scope, receive: Receive, send: Send) -> None:
            await app(scope, receive, send)
            kept.append("principal" in scope["state"])

        for key in (KEY, KEY, (("authorization", "Bearer cvn_w2"),), (("authorization", "Bearer cvn_w2"),)):
            await asked(watched, f"/leases/{uuid4()}/start", b'{"token":1}', headers=key)
    assert kept == [False, True, False, False]


async def test_what_the_gateway_answers_itself() -> None:
    async with far_side() as side:
        app = gateway(side.port)
        call, _ = await asked(app, "/livez", method="GET")
        assert call.status == 200
        call, _ = await asked(app, "/tasks", headers=(("host", "other"),))
        assert call.status == 400
        await app.stop(0.0)
        call, text = await asked(app, "/tasks", b"{}")
        assert (call.status, json.loads(text)["code"], call.headers["connection"]) == (503, "shutting_down", "close")
    assert side.connections == 0


@pytest.mark.parametrize("with_proxy", [False, True])
async def test_tls_with_a_pin_straight_and_through_a_proxy(
    tmp_path: Path, with_proxy: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    files, other = issue(tmp_path / "right"), issue(tmp_path / "wrong")
    places: list[str] = []

    async def tunnel(arrival: Arrival, writer: asyncio.StreamWriter) -> None:
        places.append(arrival.line)
        far_reader, far_writer = await asyncio.open_connection("127.0.0.1", side.port)
        writer.write(b"HTTP/1.1 200 Connection established\r\n\r\n")

        async def carry(reader: asyncio.StreamReader, to: asyncio.StreamWriter) -> None:
            while data := await reader.read(65_536):
                to.write(data)
            to.close()

        await asyncio.gather(carry(arrival.rest, far_writer), carry(far_reader, writer), return_exceptions=True)

    # Else nothing on this machine would be asked for through a proxy.
    monkeypatch.setattr(upstream, "is_local", lambda _: False)
    async with far_side(ssl=files.context()) as side, far_side(tunnel) as proxy:
        address = f"https://localhost:{side.port}"
        through = f"http://127.0.0.1:{proxy.port}" if with_proxy else None
        for pin, status in ((files.pin, 200), (other.pin, 502)):
            trust = Trust(pins=frozenset({pin}), proxy=through)
            app = Gateway(Upstream(address, trust, max_connections=5), ExchangePolicy())
            call, text = await asked(app, "/tasks", b"{}", headers=KEY)
            assert call.status == status, text
            await app.stop(0.0)
    assert side.bodies == [b"{}"], "whoever is not trusted has read nothing"
    assert places == ([f"CONNECT localhost:{side.port} HTTP/1.1"] * 2 if with_proxy else [])
