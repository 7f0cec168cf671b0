"""A client that offers to go on in another protocol is served in this one, its body is read as one (RFC 9110, 7.8)."""

import json

import pytest

from app.db.database import Database
from app.kernel.access import Role
from tests.http.test_slow_clients import _until_let_go
from tests.http.test_slow_clients import port as port
from tests.support.echo import answers, echo, headers_of
from tests.support.sql import value
from tests.support.streams import Port

_OFFERS = [
    ["Connection: Upgrade, HTTP2-Settings", "Upgrade: h2c", "HTTP2-Settings: AAMAAABkAAQAAP__"],  # Java's HttpClient
    ["Upgrade: x", "Connection: Upgrade"],
    ["Connection: upgrade", "Upgrade: websocket", "Sec-WebSocket-Version: 13", "Sec-WebSocket-Key: eA=="],
]
_LAST = b"GET /last HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n"
_INNER = "GET /inner HTTP/1.1\r\nHost: x\r\n\r\n"


def _head(*lines: str) -> bytes:
    return "\r\n".join(["POST /first%20one?a=%20b HTTP/1.1", "Host: x", *lines, "", ""]).encode()


@pytest.mark.parametrize("offer", _OFFERS, ids=lambda offer: str(offer[1]))
@pytest.mark.parametrize("is_chunked", [False, True])
async def test_its_body_is_a_body_however_it_comes(offer: list[str], is_chunked: bool) -> None:
    """Also one that looks like a request."""
    length = "Transfer-Encoding: chunked" if is_chunked else f"Content-Length: {len(_INNER)}"
    body = f"{len(_INNER):x}\r\n{_INNER}\r\n0\r\n\r\n".encode() if is_chunked else _INNER.encode()
    head = _head(*offer, length)
    ways = [
        (head + body + _LAST,),
        (head, body + _LAST),
        (head + body, _LAST),
        (head[:40], head[40:], body[:9], body[9:] + _LAST[:9], _LAST[9:]),
        ((head + body) * 50 + _LAST,),
    ]
    async with echo() as port:
        for segments in ways:
            statuses, bodies = await answers(port, *segments)
            count = b"".join(segments).count(head)
            assert statuses == [200] * (count + 1)
            for method, path, _, text in bodies[:-1]:
                assert (method, path, text) == ("POST", "/first one", _INNER)
            assert bodies[-1][1] == "/last"


async def test_other_headers_are_those_that_were_sent() -> None:
    offer = ["Connection: Upgrade", "X-Long: " + "a" * 20_000, "Upgrade: x", "Empty:", "Twice: 1", "Twice: 2"]
    async with echo() as port:
        _, (first, _) = await answers(port, _head(*offer, "Content-Length: 2") + b"{}" + _LAST)
    assert first[2] == [
        ["host", "x"],
        ["connection", "Upgrade"],
        ["x-long", "a" * 20_000],
        ["empty", ""],
        ["twice", "1"],
        ["twice", "2"],
        ["content-length", "2"],
    ]


async def test_one_without_a_body_is_served_too() -> None:
    async with echo() as port:
        for version in ("1.0", "1.1"):
            request = f"GET /first HTTP/{version}\r\nHost: x\r\nConnection: upgrade, close\r\nUpgrade: x\r\n\r\n"
            statuses, (first,) = await answers(port, request.encode())
            assert statuses == [200]
            assert headers_of(first) == {"host": "x", "connection": "upgrade, close"}


@pytest.mark.parametrize("target", ["/", "x:80"])
async def test_nothing_is_passed_on_to_another_host(target: str, caplog: pytest.LogCaptureFixture) -> None:
    async with echo() as port:
        request = f"CONNECT {target} HTTP/1.1\r\nHost: x\r\n\r\n"
        statuses, (problem,) = await answers(port, request.encode() + _LAST)
    assert (statuses, problem["code"]) == ([400], "malformed_request")
    assert len(caplog.records) <= 1


async def test_the_service_submits_what_came_with_an_offer(
    port: Port, database: Database, caplog: pytest.LogCaptureFixture
) -> None:
    body = json.dumps({"agent_type": "ranking", "payload": {"n": 1}})
    lines = [f"Authorization: Bearer {port.service.keys[Role.SUPERVISOR]}", "Content-Type: application/json"]
    head = _head(*lines, *_OFFERS[0], f"Content-Length: {len(body)}").replace(b"/first%20one?a=%20b", b"/tasks")
    answer = await _until_let_go(port, head + body.encode() + _LAST)
    assert answer.startswith(b"HTTP/1.1 201 ")
    assert answer.count(b"HTTP/1.1 ") == 2
    assert await value(database, "SELECT count(*) FROM tasks") == 1
    assert [record.getMessage() for record in caplog.records if record.name.startswith("uvicorn")] == []
