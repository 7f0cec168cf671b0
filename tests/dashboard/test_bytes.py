"""The bytes that a page costs whoever looks at it: compressed, one form a line, and not sent again for nothing."""

import re
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import httpx

from app.dashboard.assets import edition
from app.kernel.access import Role
from tests.dashboard.browsers import Browser
from tests.support.streams import Port

_WORKERS = 100
# The page took 231,000, and as many again by its stream.
_MAX_BYTES, _MAX_PACKED_BYTES = 140_000, 10_000
_FEED = "/dashboard/feeds/workers?show=live"


@asynccontextmanager
async def _client(port: Port) -> AsyncIterator[httpx.AsyncClient]:
    async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{port.number}", trust_env=False, timeout=60) as client:
        assert (await Browser(client=client).log_in(port.service.keys[Role.OPERATOR])).status_code == 303
        yield client


async def _text_until(answer: httpx.Response, parts: AsyncIterator[str], event: str) -> str:
    assert answer.headers["content-encoding"] == "gzip"
    text = ""
    async for part in parts:
        text += part
        if f"event: {event}\n" in text:
            return text
    raise AssertionError("the stream has ended")


async def test_a_page_of_many_workers_is_small_and_sent_again_only_once_something_has_changed(port: Port) -> None:
    workers = [await port.service.worker(f"lab-node-{number}") for number in range(_WORKERS)]
    async with _client(port) as client:
        answer = await client.get("/dashboard/workers")
        page = answer.text
        assert page.count("<form") == _WORKERS + 3
        assert len(page) < _MAX_BYTES
        assert answer.num_bytes_downloaded < _MAX_PACKED_BYTES
        mark = re.search(r'data-mark="(\w+)"', page)
        assert mark
        shown = f"{_FEED}&mark=list:{mark[1]}"
        # Of another page, and of a connection that has begun anew, the mark is no longer that of what is shown.
        for path, headers in ((_FEED, {}), (f"{_FEED}&mark=list:0", {}), (shown, {"Last-Event-ID": "1"})):
            async with client.stream("GET", path, headers=headers) as answer:
                assert "lab-node-99" in await _text_until(answer, answer.aiter_text(), "list")
        async with client.stream("GET", shown) as answer:
            parts = answer.aiter_text()
            text = await _text_until(answer, parts, "alive")
            assert "event: list" not in text
            assert f"data: {edition()}" in text
            await workers[0].beat(state="draining")
            text = await _text_until(answer, parts, "list")
            assert "draining" in text
            assert answer.num_bytes_downloaded < _MAX_PACKED_BYTES


async def test_what_another_site_asks_for_and_what_takes_no_gzip_is_not_compressed(port: Port) -> None:
    """The length of an answer in which a stranger chose words would tell the word of its forms (BREACH)."""
    async with _client(port) as client:
        for headers, is_packed in (
            ({"Sec-Fetch-Site": "same-origin"}, True),
            ({"Sec-Fetch-Site": "cross-site"}, False),
            ({"Sec-Fetch-Site": "same-site"}, False),
            ({"Accept-Encoding": "identity"}, False),
        ):
            answer = await client.get("/dashboard/tasks", headers=headers)
            assert ("content-encoding" in answer.headers) == is_packed, headers
            assert answer.text.startswith("<!doctype html>")
            assert "Accept-Encoding" in answer.headers["vary"]
