"""A handler, a provider or a control plane that means harm: what a call may name, take, or hold is bounded."""

import json
import socket
import threading
import time
from contextlib import ExitStack
from typing import Any
from urllib.parse import urlsplit

import pytest

from tests.worker_agent.llm.conftest import Bench, Start, raw, wait_until_settled
from tests.worker_agent.llm.loopback import ReceivedRequest, ResponseWriter
from tests.worker_agent.llm.provider import MESSAGES, Act, Permits, Provider, completion, piece, refuses, says
from worker_agent.llm import bounded_connections, task_keys


@pytest.mark.parametrize("model", ["gpt-5", "gpt-4.1 ", "a\nb", "x" * 10_000, 5, ["gpt-4.1"], {"a": 1}, True])
def test_a_model_that_the_operator_has_not_listed_is_refused(start: Start, model: Any) -> None:
    bench = start(Provider.of())

    status, _, content = raw(bench, {"messages": MESSAGES, "model": model})

    assert status == 404
    assert json.loads(content)["error"]["message"] == "the model must be one of: gpt-4.1, gpt-4.1-mini"
    assert not bench.plane.requests
    assert not bench.upstream.requests


@pytest.mark.parametrize("name", ["models", "fallbacks", "context_window_fallbacks"])
def test_no_request_names_further_models_to_the_gateway(start: Start, name: str) -> None:
    bench = start(Provider.of())

    assert raw(bench, {"messages": MESSAGES, "model": "gpt-4.1", name: ["gpt-5"]})[0] == 400
    assert not bench.plane.requests
    assert not bench.upstream.requests


@pytest.mark.parametrize("path", ["/v1/embeddings", "/v1/files", "/v1/chat/completions/../files", "/v1/", "/"])
def test_nothing_but_completions_and_the_list_of_models_is_served(start: Start, path: str) -> None:
    bench = start(Provider.of())

    assert raw(bench, {"messages": MESSAGES}, path=path)[0] == 404
    assert not bench.upstream.requests


def test_a_model_that_the_control_plane_does_not_allow_leaves_its_turn_to_the_next(start: Start) -> None:
    class Strict(Permits):
        def respond(self, request: ReceivedRequest, writer: ResponseWriter) -> None:
            if request.body.get("model") == "gpt-4.1":
                writer.deny(404, "model_not_allowed", detail="not listed")
            else:
                Permits.respond(self, request, writer)

    bench = start(Provider.of(), Strict())

    answer = bench.model().ask("Why?")

    assert (answer.model, answer.degraded) == ("gpt-4.1-mini", "fallback")
    assert [request.body["model"] for request in bench.upstream.requests] == ["gpt-4.1-mini"]


@pytest.mark.parametrize(
    "grant",
    [
        b"<html>Welcome</html>",
        b"{}",
        {"permit_id": "p", "token": "t"},
        {"permit_id": "p", "token": "t", "ttl_seconds": "soon"},
        {"permit_id": "p", "token": "t", "ttl_seconds": -1},
        {"permit_id": None, "token": "t", "ttl_seconds": 60},
    ],
    ids=["html", "empty", "no time", "word", "past", "no id"],
)
def test_without_a_permit_that_is_one_nothing_is_called(start: Start, grant: Any) -> None:
    class Odd(Permits):
        def respond(self, request: ReceivedRequest, writer: ResponseWriter) -> None:
            if request.path == "/llm/permits" and not self.live:
                self.live.add("odd")
                writer.answer(201, grant)
            else:
                Permits.respond(self, request, writer)

    bench = start(Provider.of(), Odd())

    assert bench.model().ask("Why?").text == "It is a law."

    assert len([request for request in bench.plane.requests if request.path == "/llm/permits"]) == 2
    assert len(bench.upstream.requests) == 1


@pytest.mark.parametrize("ttl", ["x", [1], -5, 0, True], ids=str)
def test_a_renewal_that_says_an_odd_time_keeps_the_one_before(start: Start, ttl: Any) -> None:
    renewed = threading.Event()

    def renew(request: ReceivedRequest, writer: ResponseWriter) -> None:
        writer.answer(200, {"ttl_seconds": ttl})
        renewed.set()

    def slowly(request: ReceivedRequest, writer: ResponseWriter) -> None:
        renewed.wait(10)
        says("Done.")(request, writer)

    bench = start(Provider.of(slowly), Permits(ttl_seconds=3.0, on_renewal=renew))

    assert bench.model().ask("Why?").text == "Done."
    assert bench.permits.outcomes == ["success"]


def test_a_redirect_is_not_followed_with_the_key(start: Start) -> None:
    other = start(Provider.of())
    bench = start(Provider.of(refuses(307, headers={"location": f"{other.upstream.url}/v1/chat/completions"})))

    assert bench.model().ask("Why?").text == "It is a law."
    assert not other.upstream.requests


def _floods(stream: bool, headers: dict[str, str]) -> Act:
    """An answer without an end."""

    def act(request: ReceivedRequest, writer: ResponseWriter) -> None:
        writer.begin(headers)
        writer.write("data: " if stream else '{"choices": "')
        while True:
            writer.write("x" * (1 << 20))

    return act


@pytest.mark.parametrize("stream", [False, True], ids=["whole", "stream"])
@pytest.mark.parametrize("headers", [{}, {"content-encoding": "gzip"}], ids=["plain", "compressed"])
def test_an_answer_without_an_end_is_given_up(start: Start, stream: bool, headers: dict[str, str]) -> None:
    bench = start(Provider.of(then=_floods(stream, headers)), attempts=1, models=("gpt-4.1",))

    assert raw(bench, {"messages": MESSAGES, "stream": stream})[0] == 503
    wait_until_settled(bench, 1)
    assert bench.permits.outcomes == ["server_error"]


@pytest.mark.parametrize("stream", [False, True], ids=["whole", "stream"])
def test_an_answer_of_a_million_lists_is_given_up(start: Start, stream: bool) -> None:
    def act(request: ReceivedRequest, writer: ResponseWriter) -> None:
        answer = completion("Yes.", "gpt-4.1") | {"lists": 1_000_000 * [[]]}
        writer.begin({})
        writer.write(("data: " if stream else "") + json.dumps(answer, separators=(",", ":")) + "\n\n")

    bench = start(Provider.of(then=act), attempts=1, models=("gpt-4.1",))

    assert raw(bench, {"messages": MESSAGES, "stream": stream})[0] == 503
    wait_until_settled(bench, 1)
    assert bench.permits.outcomes == ["server_error"]


def _refuses_for_ever(request: ReceivedRequest, writer: ResponseWriter) -> None:
    """A 429 whose body has no end."""
    writer.begin({"retry-after": "0.01"}, 429)
    while True:
        writer.write("x" * (1 << 20))


@pytest.mark.parametrize("stream", [False, True], ids=["whole", "stream"])
@pytest.mark.parametrize(
    ("refusal", "outcome"),
    [
        (refuses(429, {"content-encoding": "gzip"}, b"\x1f\x8b\x08"), "rate_limited"),
        (refuses(402, {"content-encoding": "gzip"}, b"\x1f\x8b\x08"), "client_error"),
        (_refuses_for_ever, "rate_limited"),
    ],
    ids=["compressed 429", "compressed 402", "429 without an end"],
)
def test_a_refusal_is_one_whatever_its_body_is(start: Start, stream: bool, refusal: Act, outcome: str) -> None:
    bench = start(Provider.of(refusal), models=("gpt-4.1",))

    assert raw(bench, {"messages": MESSAGES, "stream": stream})[0] == 200
    wait_until_settled(bench, 2)
    assert bench.permits.outcomes == [outcome, "success"]


@pytest.mark.parametrize("stream", [False, True], ids=["whole", "stream"])
@pytest.mark.parametrize("status", [200, 400, 401, 500])
def test_a_key_that_the_gateway_repeats_reaches_nobody(
    start: Start, caplog: pytest.LogCaptureFixture, stream: bool, status: int
) -> None:
    caplog.set_level("DEBUG")
    said = {"error": {"message": "the key the-gateway is not good"}}

    def repeats(request: ReceivedRequest, writer: ResponseWriter) -> None:
        if status != 200 or not stream:
            writer.answer(status, said)
            return
        writer.begin({"content-type": "text/event-stream"})
        writer.write(piece("It ", request.body["model"]) + f"data: {json.dumps(said)}\n\n")

    bench = start(Provider.of(then=repeats), attempts=1, models=("gpt-4.1",))

    _, _, content = raw(bench, {"messages": MESSAGES, "stream": stream})

    assert "the key *** is not good" in content.decode()
    logged = str([vars(record) for record in caplog.records])
    assert "the-gateway" not in content.decode() + logged + str(bench.permits.settlements)


def test_nor_does_one_whose_slashes_the_gateway_writes_as_json_allows(start: Start) -> None:
    said = rb'{"error": {"message": "the key k\/e\/y-of-ours is not good"}}'
    bench = start(Provider.of(then=refuses(401, body=said)), key="k/e/y-of-ours", attempts=1, models=("gpt-4.1",))
    assert "the key *** is not good" in raw(bench, {"messages": MESSAGES})[2].decode()


def test_a_stream_that_drips_for_ever_ends_with_the_time_of_the_call(start: Start) -> None:
    hung_up = threading.Event()

    def drips(request: ReceivedRequest, writer: ResponseWriter) -> None:
        writer.begin({"content-type": "text/event-stream"})
        try:
            writer.write(piece("It ", request.body["model"]))
            while True:
                writer.write(": still here\n")
                time.sleep(0.05)
        except OSError:
            hung_up.set()

    bench = start(Provider.of(drips), total_seconds=0.5)

    _, _, content = raw(bench, {"messages": MESSAGES, "stream": True})

    assert b"convener_stream_broken" in content
    assert hung_up.wait(10)
    wait_until_settled(bench, 1)
    assert bench.permits.outcomes == ["timeout"]


def test_calls_of_one_task_beyond_a_number_wait_for_each_other(start: Start, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(task_keys, "_MAX_CALLS", 3)
    go_on, lock = threading.Event(), threading.Lock()
    waiting: list[str] = []

    class Full(Permits):
        def respond(self, request: ReceivedRequest, writer: ResponseWriter) -> None:
            if request.path == "/llm/permits":
                with lock:
                    waiting.append(request.body["request_id"])
                go_on.wait(20)
            Permits.respond(self, request, writer)

    bench = start(Provider.of(), Full())
    secret = bench.access().environment["OPENAI_API_KEY"]
    asking = [threading.Thread(target=raw, args=(bench, {"messages": MESSAGES}, secret)) for _ in range(6)]
    for thread in asking:
        thread.start()
    end = time.monotonic() + 10
    while len(waiting) < 3 and time.monotonic() < end:
        time.sleep(0.01)
    time.sleep(0.2)
    assert len(waiting) == 3
    go_on.set()
    for thread in asking:
        thread.join(20)
    assert len(bench.permits.settlements) == 6


@pytest.mark.parametrize("answer", [{}, {"choices": []}, {"choices": [5]}, {"choices": {"a": 1}}, {"choices": [{}]}])
def test_an_earlier_answer_that_is_none_is_not_used(start: Start, answer: Any) -> None:
    permits = Permits()
    permits.refuse([{"cached": {"answer": answer, "stored_at": "2026-11-24T12:00:00Z"}}])
    bench = start(Provider.of(), permits)

    assert bench.model().ask("Why?", temperature=0).text == "It is a law."


def _connect(bench: Bench) -> socket.socket:
    parts = urlsplit(bench.gateway.url)
    return socket.create_connection((parts.hostname, parts.port), timeout=10)


def _is_ended(connection: socket.socket) -> bool:
    try:
        return connection.recv(1) == b""
    except ConnectionError:
        return True


def test_a_head_without_an_end_is_cut_off(start: Start) -> None:
    bench = start(Provider.of())
    with _connect(bench) as stranger, pytest.raises(ConnectionError):
        stranger.sendall(b"GET /v1/models HTTP/1.1\r\nx: " + bytes(8 << 20).replace(b"\0", b"x"))
    assert bench.model().ask("Why?").text == "It is a law."


def test_strangers_who_keep_connections_open_leave_room_for_calls(
    start: Start, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bounded_connections, "_MAX_CONNECTIONS", 4)
    is_asked, go_on = threading.Event(), threading.Event()

    def slowly(request: ReceivedRequest, writer: ResponseWriter) -> None:
        is_asked.set()
        go_on.wait(20)
        says("Done.")(request, writer)

    bench, texts = start(Provider.of(slowly)), list[str]()
    asking = threading.Thread(target=lambda: texts.append(bench.model().ask("Why?").text))
    asking.start()
    assert is_asked.wait(20)
    with ExitStack() as stack:
        strangers = [stack.enter_context(_connect(bench)) for _ in range(8)]
        assert _is_ended(strangers[0])
        assert bench.model().ask("Why?").text == "It is a law."
    go_on.set()
    asking.join(20)
    assert texts == ["Done."]
