"""Requests that two programs might read differently: refused or closed, never two answers where one was asked for."""

import asyncio
import re
from collections.abc import AsyncIterator

import pytest

from app.kernel.access import Role
from tests.system.conftest import Api, api_process

pytestmark = pytest.mark.slow
# What a smuggler would like to have answered: it names an address that nothing else here asks for.
SMUGGLED = b"GET /livez?smuggled HTTP/1.1\r\nHost: a\r\n\r\n"
BODY = b'{"ids": []}'


def post(*headers: bytes, body: bytes = BODY) -> bytes:
    return b"\r\n".join([b"POST /tasks/cancel HTTP/1.1", b"Host: a", *headers, b"", body])


def length(body: bytes = BODY) -> bytes:
    return b"Content-Length: %d" % len(body)


CHUNKED = b"b\r\n" + BODY + b"\r\n0\r\n\r\n"
# Each is one request to all who read it right, or none at all.
AMBIGUOUS = {
    "length and chunks": post(length(), b"Transfer-Encoding: chunked", body=CHUNKED + SMUGGLED),
    "chunks and length": post(b"Transfer-Encoding: chunked", length(), body=CHUNKED + SMUGGLED),
    "two lengths": post(length(), b"Content-Length: 0", body=BODY + SMUGGLED),
    "two equal lengths": post(length(), length(), body=BODY + SMUGGLED),
    "lengths in one line": post(b"Content-Length: 11, 11", body=BODY + SMUGGLED),
    "a length with a sign": post(b"Content-Length: +11", body=BODY + SMUGGLED),
    "a negative length": post(b"Content-Length: -11", body=BODY + SMUGGLED),
    "a hexadecimal length": post(b"Content-Length: 0xb", body=BODY + SMUGGLED),
    "a length beyond all numbers": post(b"Content-Length: " + 30 * b"9", body=BODY + SMUGGLED),
    "an empty length": post(b"Content-Length:", body=BODY + SMUGGLED),
    "a space before the colon": post(b"Content-Length : 11", body=BODY + SMUGGLED),
    "a folded line": post(length(), b"X-A: b", b" Transfer-Encoding: chunked", body=SMUGGLED),
    "a folded length": post(b"Content-Length:", b" 11", body=BODY + SMUGGLED),
    "a line feed alone": b"POST /tasks/cancel HTTP/1.1\nHost: a\nContent-Length: 0\n\n" + SMUGGLED,
    "a line feed within a line": post(b"X-A: b\nTransfer-Encoding: chunked", length(), body=CHUNKED + SMUGGLED),
    "a carriage return within a line": post(b"X-A: b\rTransfer-Encoding: chunked", length(), body=CHUNKED + SMUGGLED),
    "a zero within a line": post(b"X-A: b\0c", length(), body=BODY + SMUGGLED),
    "an encoding that is none": post(b"Transfer-Encoding: xchunked", body=CHUNKED + SMUGGLED),
    "chunks are not the last encoding": post(b"Transfer-Encoding: chunked, gzip", body=CHUNKED + SMUGGLED),
    "two encodings": post(b"Transfer-Encoding: chunked", b"Transfer-Encoding: x", body=CHUNKED + SMUGGLED),
    "an encoding after a tabulator": post(b"Transfer-Encoding:\x0bchunked", body=CHUNKED + SMUGGLED),
    "a chunk with a sign": post(b"Transfer-Encoding: chunked", body=b"+b\r\n" + BODY + b"\r\n0\r\n\r\n" + SMUGGLED),
    "a chunk of 0x": post(b"Transfer-Encoding: chunked", body=b"0xb\r\n" + BODY + b"\r\n0\r\n\r\n" + SMUGGLED),
    "a chunk without its end": post(b"Transfer-Encoding: chunked", body=b"b\r\n" + BODY + b"0\r\n\r\n" + SMUGGLED),
    "a chunk beyond all numbers": post(b"Transfer-Encoding: chunked", body=b"f" * 20 + b"\r\n" + BODY + SMUGGLED),
    "a version that is none": b"GET /livez HTTP/1.9\r\nHost: a\r\n\r\n" + SMUGGLED,
    "a version of one digit": b"GET /livez HTTP/1\r\nHost: a\r\n\r\n" + SMUGGLED,
    "spaces in the address": b"GET /livez x HTTP/1.1\r\nHost: a\r\n\r\n" + SMUGGLED,
    "a head without a name": b"GET /livez HTTP/1.1\r\nHost: a\r\n: b\r\n\r\n" + SMUGGLED,
    "a head without a colon": b"GET /livez HTTP/1.1\r\nHost: a\r\nnonsense\r\n\r\n" + SMUGGLED,
    "TLS": b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + bytes(64) + SMUGGLED,
    "HTTP/2": b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + SMUGGLED,
    "no HTTP": bytes(range(256)) * 16 + SMUGGLED,
}
PATHS = [
    "//livez", "/livez/", "/./livez", "/../livez", "/tasks/../keys", "/tasks/%2e%2e/keys", "/tasks/..%2fkeys",
    "/tasks/%252e%252e%252fkeys", "/keys%00", "/keys;a=b", "/keys%3f", "/KEYS", "/%6beys/", "/tasks/%c0%ae%c0%ae/keys",
    "/keys%0d%0aX-A:%20b", "/tasks/%ff%fe", "/" + "a/" * 2000, "/tasks/" + "%41" * 2000, "*", "http://other/keys/x",
]  # fmt: skip
METHODS = [
    "PROPFIND",
    "TRACE",
    "TRACK",
    "CONNECT",
    "OPTIONS",
    "HEAD",
    "PURGE",
    "SEARCH",
    "LINK",
    "GE T",
    "get",
    "é",
    "",
]


@pytest.fixture(scope="module")
async def api(module_database_url: str, tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Api]:
    directory = tmp_path_factory.mktemp("framing")
    async with api_process(module_database_url, directory) as api:
        yield api
    assert "Traceback" not in (directory / "api.log").read_text()


async def _exchange(port: int, data: bytes, seconds: float = 1.0) -> bytes:
    """All that comes back until the server closes or is silent for a while."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    answer = b""
    try:
        writer.write(data)
        await writer.drain()
        while piece := await asyncio.wait_for(reader.read(65_536), seconds):
            answer += piece
    except (TimeoutError, ConnectionError):
        pass
    writer.close()
    return answer


def _statuses(answer: bytes) -> list[int]:
    return [int(status) for status in re.findall(rb"HTTP/1\.\d (\d{3})", answer)]


async def test_nothing_ambiguous_becomes_two_requests(api: Api) -> None:
    key = b"Authorization: Bearer " + api.keys[Role.ADMIN].encode()
    wrong = {}
    names = list(AMBIGUOUS)
    requests = [AMBIGUOUS[name].replace(b"Host: a\r\n", b"Host: a\r\n" + key + b"\r\n", 1) for name in names]
    for name, answer in zip(names, await asyncio.gather(*(_exchange(api.port, it) for it in requests)), strict=True):
        statuses = _statuses(answer)
        if (statuses and statuses[0] < 400) or len(statuses) > 1 or any(status >= 500 for status in statuses):
            wrong[name] = statuses
    assert wrong == {}
    refusal = await _exchange(api.port, AMBIGUOUS["no HTTP"])
    assert b"content-type: application/problem+json" in refusal
    assert _statuses(await _exchange(api.port, SMUGGLED)) == [200]


async def test_tricks_with_paths_lead_nowhere(api: Api) -> None:
    """With an admin's key none of them shows the keys; without one none of them shows anything."""
    key = f"Authorization: Bearer {api.keys[Role.ADMIN]}\r\n"
    wrong = {}
    for path in PATHS:
        for head in (key, ""):
            answer = await _exchange(
                api.port, f"GET {path} HTTP/1.1\r\nHost: a\r\n{head}Connection: close\r\n\r\n".encode()
            )
            statuses = _statuses(answer)
            if len(statuses) != 1 or not 400 <= statuses[0] < 500 or b"X-A:" in answer:
                wrong[path] = statuses
    assert wrong == {}


async def test_odd_methods_are_refused(api: Api) -> None:
    key = f"Authorization: Bearer {api.keys[Role.ADMIN]}\r\n"
    wrong = {}
    for method in METHODS:
        request = f"{method} /keys HTTP/1.1\r\nHost: a\r\n{key}Connection: close\r\n\r\n"
        statuses = _statuses(await _exchange(api.port, request.encode()))
        if len(statuses) > 1 or any(not 400 <= status < 500 for status in statuses):
            wrong[method] = statuses
    assert wrong == {}


async def test_floods_of_headers_are_cut_off(api: Api) -> None:
    head = b"GET /livez HTTP/1.1\r\nHost: a\r\n"
    floods = {
        "many": head + b"".join(b"X-%d: a\r\n" % number for number in range(200_000)),
        "one that is long": head + b"X-A: " + b"a" * (2 << 20),
        "a long name": head + b"a" * (2 << 20),
        "a long address": b"GET /" + b"a" * (2 << 20),
    }
    wrong = {}
    for name, data in floods.items():
        statuses = _statuses(await _exchange(api.port, data, seconds=10))
        if len(statuses) > 1 or any(not 400 <= status < 500 for status in statuses):
            wrong[name] = statuses
    assert wrong == {}
    assert _statuses(await _exchange(api.port, SMUGGLED)) == [200]
