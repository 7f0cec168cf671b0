"""Answers go out in one write where they are whole at once, byte for byte as uvicorn sends them."""

import asyncio
import logging
from typing import Any

import pytest
from uvicorn.protocols.http.httptools_impl import RequestResponseCycle

from app.db.database import Database
from app.http.answers import JSON_BODY, JoinedAnswer
from app.http.json import JsonAnswer
from app.http.security import secured
from app.kernel.access import Role
from tests.support.streams import on_a_port

_DATE = (b"date", b"Mon, 30 Nov 2026 12:00:00 GMT")
_JSON = [(b"content-length", b"2"), (b"content-type", b"application/json"), (b"x-content-type-options", b"nosniff")]


class _Client:
    """A transport and a control of its flow that only take note."""

    def __init__(self, *, write_paused: bool = False) -> None:
        self.writes: list[bytes] = []
        self.is_closed = False
        self.write_paused = write_paused

    def write(self, data: bytes) -> None:
        if data:
            self.writes.append(data)

    def close(self) -> None:
        self.is_closed = True

    def is_closing(self) -> bool:
        return self.is_closed

    async def drain(self) -> None:
        self.write_paused = False

    def resume_reading(self) -> None:
        pass


def _request(
    kind: type[RequestResponseCycle], *, method: str = "POST", write_paused: bool = False, **options: Any
) -> tuple[_Client, RequestResponseCycle, list[bool]]:
    """A client, its request, and what is noted when it has been answered."""
    client: Any = _Client(write_paused=write_paused)
    completions: list[bool] = []
    fields: dict[str, Any] = {
        "scope": {"type": "http", "method": method, "http_version": "1.1", "headers": []},
        "transport": client,
        "flow": client,
        "logger": logging.getLogger("test"),
        "access_logger": logging.getLogger("test"),
        "access_log": False,
        "default_headers": [],
        "message_event": asyncio.Event(),
        "expect_100_continue": False,
        "keep_alive": True,
        "on_response": lambda: completions.append(True),
    }
    return client, kind(**(fields | options)), completions


async def _sent(
    kind: type[RequestResponseCycle], messages: list[dict[str, Any]], **options: Any
) -> tuple[_Client, RequestResponseCycle, int]:
    client, cycle, completions = _request(kind, **options)

    async def app(_scope: Any, _receive: Any, send: Any) -> None:
        for message in messages:
            if "error" in message:
                raise RuntimeError(message["error"])
            await send(dict(message))

    await cycle.run_asgi(app)
    return client, cycle, len(completions)


def _start(headers: list[tuple[bytes, bytes]], status: int = 200) -> dict[str, Any]:
    return {"type": "http.response.start", "status": status, "headers": headers}


def _body(body: bytes, *, more: bool = False) -> dict[str, Any]:
    return {"type": "http.response.body", "body": body, "more_body": more}


_CLOSE = (b"connection", b"close")
_CASES: dict[str, tuple[list[dict[str, Any]], dict[str, Any]]] = {
    "whole": ([_start(_JSON), _body(b"{}")], {}),
    "refused": ([_start(_JSON, 409), _body(b"{}")], {}),
    "closing": ([_start(_JSON), _body(b"{}")], {"keep_alive": False}),
    "told to close": ([_start([*_JSON, _CLOSE]), _body(b"{}")], {}),
    "in parts": ([_start(_JSON), _body(b"{", more=True), _body(b"}")], {}),
    "stream": ([_start([(b"content-type", b"text/plain")]), _body(b"a", more=True), _body(b"")], {}),
    "nothing": ([_start([], 204), _body(b"")], {}),
    "head": ([_start(_JSON), _body(b"")], {"method": "HEAD"}),
    "slow client": ([_start(_JSON), _body(b"{}")], {"write_paused": True}),
    "with the date": ([_start(_JSON), _body(b"{}")], {"default_headers": [_DATE]}),
    "split header": ([_start([*_JSON, (b"x", b"a\r\nb: c")]), _body(b"{}")], {}),
    "too short": ([_start(_JSON), _body(b"{")], {}),
    "too long": ([_start(_JSON), _body(b"{}}")], {}),
    "error instead of a body": ([_start(_JSON), {"error": "late"}], {}),
    "no body": ([_start(_JSON)], {}),
}


@pytest.mark.parametrize("name", _CASES)
async def test_the_same_bytes_are_sent(name: str) -> None:
    """Where a head is held until an error, the client gets a whole 500 instead of a head without its body."""
    messages, options = _CASES[name]
    plain, plain_cycle, plain_completions = await _sent(RequestResponseCycle, messages, **options)
    joined, joined_cycle, joined_completions = await _sent(JoinedAnswer, messages, **options)
    if name in ("error instead of a body", "no body"):
        assert b"".join(joined.writes).startswith(b"HTTP/1.1 500")
        assert joined_cycle.response_complete
        return
    assert b"".join(joined.writes) == b"".join(plain.writes)
    assert (joined.is_closed, joined_completions) == (plain.is_closed, plain_completions)
    assert joined_cycle.response_complete == plain_cycle.response_complete
    assert joined_cycle.message_event.is_set() == plain_cycle.message_event.is_set()


@pytest.mark.parametrize("options", [{}, {"keep_alive": False}, {"write_paused": True}], ids=str)
async def test_a_body_of_json_is_sent_as_the_answer_that_it_stands_for(options: dict[str, Any]) -> None:
    response = secured(JsonAnswer(b"{}"))
    messages = [_start(list(response.raw_headers)), _body(bytes(response.body))]
    plain, plain_cycle, plain_completions = await _sent(
        RequestResponseCycle, messages, default_headers=[_DATE], **options
    )
    json, json_cycle, json_completions = await _sent(
        JoinedAnswer, [{"type": JSON_BODY, "body": b"{}"}], default_headers=[_DATE], **options
    )
    assert json.writes == [b"".join(plain.writes)]
    assert (json.is_closed, json_completions) == (plain.is_closed, plain_completions)
    assert json_cycle.response_complete == plain_cycle.response_complete
    assert json_cycle.message_event.is_set() == plain_cycle.message_event.is_set()


async def test_nothing_is_sent_to_who_has_hung_up() -> None:
    client, cycle, _ = _request(JoinedAnswer)
    cycle.disconnected = True
    message: Any = {"type": JSON_BODY, "body": b"{}"}
    await cycle.send(message)
    assert client.writes == []


async def test_a_whole_answer_is_one_write() -> None:
    client, _, _ = await _sent(JoinedAnswer, [_start(_JSON), _body(b"{}")], default_headers=[_DATE])
    assert len(client.writes) == 1


async def test_the_service_answers_in_one_write(database: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also with the date that its server adds, by which uvicorn's own way would be taken, with its two writes."""

    async def in_two_writes(*_: object) -> None:
        raise AssertionError("uvicorn's own way was taken")

    async with on_a_port(database) as port:
        monkeypatch.setattr(RequestResponseCycle, "send", in_two_writes)
        worker = await port.service.worker()
        task_id = await port.service.submitted()
        lease = await worker.lease()
        assert lease["task_id"] == task_id
        completed = await worker.on_lease(lease, "complete", result={})
        refused = await worker.on_lease(lease, "complete", result={"another": 1})
        shown = await port.service.ask("GET", f"/tasks/{task_id}", key=Role.READER)
        assert [r.status_code for r in (completed, refused, shown)] == [200, 409, 200]
        assert all("date" in r.headers for r in (completed, refused, shown))


@pytest.mark.parametrize("kind", [RequestResponseCycle, JoinedAnswer])
async def test_a_body_is_received_once_and_then_the_end_of_the_connection(kind: type[RequestResponseCycle]) -> None:
    _, cycle, _ = _request(kind)
    cycle.body += b"{"
    cycle.message_event.set()
    assert await cycle.receive() == {"type": "http.request", "body": b"{", "more_body": True}
    cycle.body += b"}"
    cycle.more_body = False
    cycle.message_event.set()
    assert await cycle.receive() == {"type": "http.request", "body": b"}", "more_body": False}
    waiting = asyncio.create_task(cycle.receive())
    await asyncio.sleep(0.01)
    assert not waiting.done()
    cycle.disconnected = True
    cycle.message_event.set()
    assert await waiting == {"type": "http.disconnect"}


async def test_the_head_of_a_stream_does_not_wait() -> None:
    client, _, _ = await _sent(JoinedAnswer, [_start([(b"content-type", b"text/event-stream")]), {"error": "later"}])
    assert client.writes[0].startswith(b"HTTP/1.1 200")
