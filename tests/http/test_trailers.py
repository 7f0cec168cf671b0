"""What follows a body is no part of the head of its request: nobody's key, host or address (RFC 9110, 6.5.1)."""

import pytest

from app.kernel.access import Role
from tests.http.test_slow_clients import _until_let_go
from tests.http.test_slow_clients import port as port
from tests.support.echo import answers, echo, headers_of
from tests.support.streams import Port

_LAST = b"GET /last HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n"


def _chunked(head: str, *trailers: str) -> bytes:
    lines = [head, "Host: x", "Transfer-Encoding: chunked", "", "2", "{}", "0", *trailers, "", ""]
    return "\r\n".join(lines).encode()


@pytest.mark.parametrize(
    "name",
    ["Authorization", "Host", "X-Forwarded-For", "Content-Type", "Expect", "Connection", "Upgrade", "Idempotency-Key"],
)
async def test_a_trailer_is_no_header(name: str) -> None:
    """Neither of its own request nor of the next on the connection."""
    request = _chunked("POST /first HTTP/1.1", f"{name}: 100-continue", "X-Other: 1", f"{name}: last")
    async with echo() as port:
        for segments in ((request + _LAST,), (request, _LAST), (request[:-20], request[-20:] + _LAST)):
            statuses, (first, last) = await answers(port, *segments)
            assert statuses == [200, 200]
            assert headers_of(first) == {"host": "x", "transfer-encoding": "chunked"}
            assert first[3] == "{}"
            assert headers_of(last) == {"host": "x", "connection": "close"}


@pytest.mark.parametrize("head", ["POST /lease HTTP/1.1", "POST /tasks HTTP/1.1", "GET /whoami HTTP/1.1"])
async def test_a_key_in_a_trailer_lets_nobody_in(port: Port, head: str) -> None:
    key = port.service.keys[Role.ADMIN]
    request = _chunked(f"{head}\r\nConnection: close", f"Authorization: Bearer {key}", "X-Other: 1")
    answer = await _until_let_go(port, request)
    assert answer.startswith(b"HTTP/1.1 401 ")


async def test_a_host_in_a_trailer_is_none(port: Port) -> None:
    lacking = _chunked("GET /livez HTTP/1.1", "Host: x", "X-Other: 1").replace(b"Host: x\r\n", b"", 1)
    assert (await _until_let_go(port, lacking)).startswith(b"HTTP/1.1 400 ")
