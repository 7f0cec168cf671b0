"""Odd requests, odd answers, and tasks that end in an odd moment: nothing stumbles, and no permit is left behind."""

import contextlib
import http.client
import json
import threading
import time
from typing import Any

import pytest

from tests.worker_agent.llm.conftest import Bench, Start, raw, wait_until_settled
from tests.worker_agent.llm.loopback import ReceivedRequest, ResponseWriter
from tests.worker_agent.llm.provider import MESSAGES, Permits, Provider, completion, piece, refuses
from worker_agent.failures import Permanent
from worker_agent.llm.proxy import ProxyAccess


@pytest.mark.parametrize("slow", ["/llm/permits", "/settle"], ids=["acquiring", "settling"])
def test_a_task_that_ends_leaves_no_permit_and_asks_no_more(start: Start, slow: str) -> None:
    waiting, go_on = threading.Event(), threading.Event()

    class Slow(Permits):
        def respond(self, request: ReceivedRequest, writer: ResponseWriter) -> None:
            if request.path.endswith(slow) and not waiting.is_set():
                waiting.set()
                go_on.wait(10)
            Permits.respond(self, request, writer)

    bench = start(Provider.of(then=refuses(500)), Slow(), attempts=9)
    access = bench.access()
    asking = threading.Thread(target=_ask_in_vain, args=(bench, access))
    asking.start()
    assert waiting.wait(10)
    bench.gateway.close_access(access)
    asking.join(10)
    request_count = len(bench.upstream.requests)
    go_on.set()

    wait_until_settled(bench, 1)
    time.sleep(0.2)
    assert len(bench.upstream.requests) == request_count
    assert len(bench.permits.settlements) == 1


def _ask_in_vain(bench: Bench, access: ProxyAccess) -> None:
    with contextlib.suppress(OSError, http.client.HTTPException):
        raw(bench, {"messages": MESSAGES}, access.environment["OPENAI_API_KEY"])


@pytest.mark.parametrize(
    "answer",
    [
        completion("half of a letter \ud83d", "gpt-4.1"),
        completion("nothing \x00 at all", "gpt-4.1"),
        completion("no number", "gpt-4.1") | {"usage": {"prompt_tokens": float("nan"), "completion_tokens": 10**12}},
        completion("a name of two lines", "gpt-4.1\r\nx-evil: 1"),
    ],
    ids=["surrogate", "nul", "nan", "header"],
)
@pytest.mark.parametrize("stream", [False, True], ids=["whole", "stream"])
def test_odd_answers_arrive(start: Start, answer: Any, stream: bool) -> None:
    message = answer["choices"][0]["message"]
    event = answer | {"choices": [{"index": 0, "delta": message, "finish_reason": "stop"}]}

    def act(request: ReceivedRequest, writer: ResponseWriter) -> None:
        if not stream:
            writer.answer(200, answer)
            return
        writer.begin({"content-type": "text/event-stream"})
        writer.write(f"data: {json.dumps(event)}\n\ndata: [DONE]\n\n")

    bench = start(Provider.of(then=act))

    status, headers, content = raw(bench, {"messages": MESSAGES, "stream": stream})

    assert status == 200
    assert "x-evil" not in headers
    assert json.dumps(message["content"]).encode() in content
    assert b"NaN" not in content
    wait_until_settled(bench, 1)
    assert bench.permits.outcomes == ["success"]
    # A stream whose count is none counts by its pieces.
    told, counted = isinstance(answer["usage"]["prompt_tokens"], int), 1 if stream else None
    assert bench.permits.settlements[0].get("completion_tokens") == (3 if told else counted)


@pytest.mark.parametrize("refused", ["cache", "prompt_tokens"])
def test_a_settlement_that_the_control_plane_cannot_take_is_made_without_its_answer_and_then_its_details(
    start: Start, refused: str
) -> None:
    """A lone surrogate in an answer must not keep its tokens from the budgets."""

    class Strict(Permits):
        def respond(self, request: ReceivedRequest, writer: ResponseWriter) -> None:
            if refused in request.body:
                writer.deny(422, "invalid_request")
            else:
                Permits.respond(self, request, writer)

    bench = start(Provider.of(), Strict())

    assert bench.model().ask("Why?").text == "It is a law."

    wait_until_settled(bench, 1)
    (settlement,) = bench.permits.settlements
    assert "cache" not in settlement
    tokens = {name: count for name, count in settlement.items() if name.endswith("_tokens")}
    assert tokens == ({"prompt_tokens": 7, "completion_tokens": 3} if refused == "cache" else {})
    assert (settlement["token"], settlement["outcome"]) == ("t", "success")


def test_a_wish_that_can_never_be_granted_is_refused_at_once(start: Start) -> None:
    class Strict(Permits):
        def respond(self, request: ReceivedRequest, writer: ResponseWriter) -> None:
            writer.deny(422, "invalid_request", detail="model: too long")

    bench = start(Provider.of(), Strict())

    with pytest.raises(Permanent, match="model: too long"):
        bench.model(seconds=3).ask("Why?")

    assert len(bench.plane.requests) == 1


@pytest.mark.parametrize(
    ("odd", "status"),
    [
        ({"messages": [{"role": "user", "content": "half \ud83d"}]}, 200),
        ({"messages": MESSAGES, "max_tokens": 10**30}, 200),
        ({"messages": MESSAGES, "temperature": float("nan")}, 400),
    ],
    ids=["surrogate", "huge", "nan"],
)
def test_odd_requests_are_passed_on_or_refused(start: Start, odd: Any, status: int) -> None:
    bench = start(Provider.of())

    assert raw(bench, odd)[0] == status

    wait_until_settled(bench, 1 if status == 200 else 0)
    assert all(request.body.get("estimated_tokens", 0) <= 100_000_000 for request in bench.plane.requests)


@pytest.mark.parametrize("text", ['{"choices":[5]}', '{"choices":{"a":1}}', "[" * 50_000], ids=["5", "a", "deep"])
def test_a_stream_with_an_odd_piece_breaks_off_in_order(start: Start, text: str) -> None:
    def act(request: ReceivedRequest, writer: ResponseWriter) -> None:
        writer.begin({"content-type": "text/event-stream"})
        writer.write(piece("It ", request.body["model"]) + f"data: {text}\n\n")

    bench = start(Provider.of(act))

    _, _, content = raw(bench, {"messages": MESSAGES, "stream": True})

    assert b"convener_stream_broken" in content
    wait_until_settled(bench, 1)


def test_an_earlier_answer_with_calls_of_tools_numbers_them_in_a_stream(start: Start) -> None:
    call = {"id": "call-1", "type": "function", "function": {"name": "look", "arguments": "{}"}}
    answer = completion("", "gpt-4.1", "tool_calls")
    answer["choices"][0]["message"]["tool_calls"] = [call]
    permits = Permits()
    permits.refuse([{"reason": "breaker_open", "cached": {"answer": answer, "stored_at": "2026-11-24T12:00:00Z"}}])
    bench = start(Provider.of(), permits)

    _, headers, content = raw(bench, {"messages": MESSAGES, "stream": True})

    event = json.loads(content.split(b"\n\n")[0].removeprefix(b"data: "))
    assert headers["x-convener-degraded"] == "cached"
    assert event["choices"][0]["delta"]["tool_calls"] == [{"index": 0, **call}]
