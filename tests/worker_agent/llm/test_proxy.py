"""From a handler to a provider and back, over real connections."""

import json
import threading
import time
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest

from tests.worker_agent.llm.conftest import Start, raw, wait_until_settled
from tests.worker_agent.llm.loopback import ReceivedRequest, ResponseWriter
from tests.worker_agent.llm.provider import (
    MESSAGES,
    Act,
    Permits,
    Provider,
    closes_mid_body,
    completion,
    cuts_the_stream,
    hangs,
    refuses,
    says,
    stalls,
)
from worker_agent.failures import Permanent, Postponed, Transient


def test_an_answer_comes_back_and_is_accounted(start: Start) -> None:
    bench = start(Provider.of(says("Because of gravity.")))

    answer = bench.model().ask("Why?", system="Be brief.", max_tokens=50, temperature=0)

    assert (answer.text, answer.model, answer.degraded) == ("Because of gravity.", "gpt-4.1", None)
    (sent,) = bench.upstream.requests
    assert sent.headers["authorization"] == "Bearer the-gateway"
    assert sent.body["messages"][0] == {"role": "system", "content": "Be brief."}
    assert sent.body["max_tokens"] == 50
    permit_request = bench.plane.requests[0].body
    lease = bench.opened[0].task_key.lease
    assert (permit_request["task_id"], permit_request["model"]) == (lease.task_id, "gpt-4.1")
    assert permit_request.keys().isdisjoint({"agent_type", "goal_id", "priority"}), "the lease says it"
    (settlement,) = bench.permits.settlements
    assert (
        settlement["outcome"],
        settlement["prompt_tokens"],
        settlement["completion_tokens"],
    ) == ("success", 7, 3)
    assert settlement["cache"]["key"] == permit_request["cache_key"]


def test_the_trace_goes_on(start: Start) -> None:
    bench = start(Provider.of())
    trace = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"

    raw(bench, {"messages": MESSAGES}, bench.access(trace=trace).environment["OPENAI_API_KEY"])

    assert bench.upstream.requests[0].headers["traceparent"] == trace


@pytest.mark.parametrize(
    "trouble",
    [
        refuses(500),
        refuses(503, body=b"<html>Service Unavailable</html>"),
        refuses(502, body={"error": {"type": "invalid_request_error", "message": "connection refused"}}),
        refuses(200, body=b"not JSON at all"),
        refuses(200, body={"choices": []}),
        refuses(200, body=completion("half", "gpt-4.1", finish_reason=None)),
        closes_mid_body,
        refuses(302, headers={"location": "http://127.0.0.1:1/"}),
    ],
    ids=["500", "html", "502", "garbage", "no choices", "unfinished", "closed", "redirect"],
)
def test_trouble_of_the_provider_is_mended_by_asking_again(start: Start, trouble: Act) -> None:
    bench = start(Provider.of(trouble))

    assert bench.model().ask("Why?").text == "It is a law."

    assert bench.permits.outcomes == ["server_error", "success"]


def test_a_provider_that_hangs_is_given_up_in_time(start: Start) -> None:
    bench = start(Provider.of(hangs(5.0), hangs(5.0)), total_seconds=0.2, attempts=1)

    with pytest.raises(Transient, match="no answer in time"):
        bench.model().ask("Why?")

    assert bench.permits.outcomes == ["timeout", "timeout"]


@pytest.mark.parametrize(
    "headers",
    [{"retry-after": "0.2"}, {"x-ratelimit-reset-requests": "200ms", "x-ratelimit-reset-tokens": "-1"}],
    ids=["retry-after", "reset"],
)
def test_a_429_is_waited_out_as_long_as_it_says(start: Start, headers: dict[str, str]) -> None:
    bench = start(Provider.of(refuses(429, headers)))

    began = time.monotonic()
    assert bench.model().ask("Why?").text == "It is a law."

    assert time.monotonic() - began >= 0.2
    assert bench.permits.outcomes == ["rate_limited", "success"]


def test_resets_of_minus_one_are_no_wait(start: Start) -> None:
    headers = {"x-ratelimit-reset-requests": "-1", "x-ratelimit-reset-tokens": "-1"}
    bench = start(Provider.of(refuses(429, headers)))

    assert bench.model().ask("Why?").text == "It is a law."

    assert "reset_requests_seconds" not in bench.permits.settlements[0]


def test_who_has_no_time_left_to_wait_is_told_when_to_come_back(start: Start) -> None:
    bench = start(Provider.of(then=refuses(429, {"retry-after": "40"})))

    with pytest.raises(Postponed) as postponed:
        bench.model(seconds=5).ask("Why?")

    assert 40 <= postponed.value.seconds <= 45
    assert bench.permits.outcomes == ["rate_limited", "rate_limited"]


@pytest.mark.parametrize("status", [429, 503, 529])
@pytest.mark.parametrize("retry_after", ["86400", "Wed, 21 Oct 2099 07:28:00 GMT"])
def test_a_task_that_a_service_sends_away_for_long_costs_no_attempt_and_is_back_in_minutes(
    start: Start, status: int, retry_after: str
) -> None:
    bench = start(Provider.of(then=refuses(status, {"retry-after": retry_after})), models=("gpt-4.1",))

    with pytest.raises(Postponed) as postponed:
        bench.model().ask("Why?")

    assert postponed.value.seconds == 300
    assert len(bench.upstream.requests) == 1


def test_an_error_in_the_place_of_an_answer_is_told(start: Start) -> None:
    trouble = refuses(200, body={"error": {"message": "the provider behind is away", "code": 502}})
    bench = start(Provider.of(then=trouble), attempts=1, models=("gpt-4.1",))

    with pytest.raises(Transient, match="the answer says: the provider behind is away"):
        bench.model().ask("Why?")


def test_another_model_answers_when_the_first_cannot(start: Start) -> None:

    def by_model(request: Any, writer: Any) -> None:
        (says("I am small.") if request.body["model"] == "gpt-4.1-mini" else refuses(500))(request, writer)

    bench = start(Provider.of(then=by_model), attempts=2)

    answer = bench.model().ask("Why?")

    assert (answer.text, answer.model, answer.degraded) == ("I am small.", "gpt-4.1-mini", "fallback")
    assert bench.permits.outcomes == ["server_error", "server_error", "success"]
    assert "cache" not in bench.permits.settlements[-1], "what another model said is no answer of the first"


def test_an_open_breaker_leads_to_the_next_model_at_once(start: Start) -> None:
    permits = Permits()
    permits.refuse([{"reason": "breaker_open", "retry_after": 30.0}])
    bench = start(Provider.of(), permits)

    began = time.monotonic()
    assert bench.model().ask("Why?").degraded == "fallback"

    assert time.monotonic() - began < 10


def test_an_earlier_answer_serves_in_hard_times_and_says_so(start: Start) -> None:
    permits = Permits()
    cached = {"answer": completion("As I said.", "gpt-4.1"), "stored_at": "2026-11-24T12:00:00Z"}
    permits.refuse([{"reason": "breaker_open", "retry_after": 30.0, "cached": cached}])
    bench = start(Provider.of(), permits)

    answer = bench.model().ask("Why?")

    assert (answer.text, answer.degraded) == ("As I said.", "cached")
    assert not bench.upstream.requests


def test_an_earlier_answer_is_looked_for_when_every_model_has_failed(start: Start) -> None:
    bench = start(Provider.of(then=refuses(500)), attempts=1)
    with pytest.raises(Transient):
        bench.model().ask("Why?")
    key = bench.plane.requests[0].body["cache_key"]
    bench.permits.cache[key] = {"answer": completion("As I said.", "gpt-4.1"), "stored_at": "2026-11-24T12:00:00Z"}

    status, headers, content = raw(bench, {"messages": [{"role": "user", "content": "Why?"}], "model": "gpt-4.1"})

    assert (status, headers["x-convener-degraded"]) == (200, "cached")
    assert json.loads(content)["convener"]["stored_at"] == "2026-11-24T12:00:00Z"


def test_permits_are_waited_for(start: Start) -> None:
    permits = Permits()
    permits.refuse([{"reason": "concurrency"}, {"reason": "tokens"}])
    bench = start(Provider.of(), permits)

    assert bench.model().ask("Why?").text == "It is a law."

    ids = [request.body["request_id"] for request in bench.plane.requests if request.path == "/llm/permits"]
    assert len(ids) == 3
    assert len(set(ids)) == 1, "the same request keeps its place among those who wait"


class OneAtATime(Permits):
    """Refuses while a call is under way, and tells all to come back in `retry_after`."""

    def __init__(self, retry_after: float) -> None:
        super().__init__()
        self.retry_after = retry_after
        self.request_count = 0

    def _acquire(self, writer: ResponseWriter) -> None:
        self.request_count += 1
        if self.live:
            self.refuse([{"reason": "share", "retry_after": self.retry_after}])
        super()._acquire(writer)


def test_of_the_calls_of_a_task_that_wait_for_permits_one_asks(start: Start) -> None:
    permits = OneAtATime(0.05)
    bench = start(Provider.of(then=says("It is a law.", 0.2)), permits)
    secret = bench.access().environment["OPENAI_API_KEY"]
    asking = [threading.Thread(target=raw, args=(bench, {"messages": MESSAGES}, secret)) for _ in range(12)]
    for thread in asking:
        thread.start()
    for thread in asking:
        thread.join(20)
    assert permits.outcomes == ["success"] * 12
    # Four for each call, and one of each at its start; each for itself they would ask 250 times.
    assert permits.request_count < 12 * 7


def test_a_call_that_waits_goes_before_one_that_comes_when_a_permit_is_free(start: Start) -> None:
    permits = OneAtATime(1.0)
    bench = start(Provider.of(then=says("It is a law.", 0.3)), permits)
    secret = bench.access().environment["OPENAI_API_KEY"]

    def ask(question: str) -> None:
        raw(bench, {"messages": [{"role": "user", "content": question}]}, secret)

    running, waiting = (threading.Thread(target=ask, args=(name,)) for name in ("first", "second"))
    running.start()
    _until(lambda: len(permits.live) == 1)
    waiting.start()
    _until(lambda: permits.request_count == 2)
    running.join(20)
    ask("third")
    waiting.join(20)
    assert [r.body["messages"][0]["content"] for r in bench.upstream.requests] == ["first", "second", "third"]


def test_a_call_behind_others_is_served_by_an_earlier_answer_where_that_is_as_good(start: Start) -> None:
    bench = start(Provider.of(then=says("It is a law.", 2.0)), OneAtATime(0.3))
    secret = bench.access().environment["OPENAI_API_KEY"]
    repeated = {"messages": MESSAGES, "temperature": 0}
    raw(bench, repeated, secret)
    key = bench.plane.requests[0].body["cache_key"]
    bench.permits.cache[key] = {"answer": completion("As I said.", "gpt-4.1"), "stored_at": "2026-11-24T12:00:00Z"}
    others = [threading.Thread(target=raw, args=(bench, {"messages": MESSAGES}, secret)) for _ in range(2)]

    def has_asked(count: int) -> bool:
        return sum(request.path == "/llm/permits" for request in bench.plane.requests) >= count

    # Whoever has asked twice stands in the line.
    for count, thread in zip((2, 4), others, strict=True):
        thread.start()
        _until(partial(has_asked, count))
    _, headers, _ = raw(bench, repeated, secret)
    for thread in others:
        thread.join(20)
    assert headers.get("x-convener-degraded") == "cached"


class SmallOneAtATime(OneAtATime):
    """Refuses so for the small model alone."""

    def respond(self, request: ReceivedRequest, writer: ResponseWriter) -> None:
        if request.path == "/llm/permits" and request.body["model"] == "gpt-4.1":
            Permits._acquire(self, writer)
        else:
            super().respond(request, writer)


def test_a_call_that_another_model_would_serve_waits_no_longer_behind_others_for_that(
    start: Start, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("worker_agent.llm.model_turn._MAX_WAIT_SECONDS", 0.3)
    permits = SmallOneAtATime(0.1)
    bench = start(Provider.of(then=says("It is a law.", 2.0)), permits)
    secret = bench.access().environment["OPENAI_API_KEY"]
    small, large = {"messages": MESSAGES, "model": "gpt-4.1-mini"}, {"messages": MESSAGES, "model": "gpt-4.1"}
    running, waiting = (threading.Thread(target=raw, args=(bench, body, secret)) for body in (small, large))
    running.start()
    _until(lambda: len(permits.live) == 1)
    permits.refuse([{"reason": "breaker_open", "retry_after": 30.0}])
    waiting.start()
    _until(lambda: permits.request_count >= 3)
    raw(bench, small, secret)
    running.join(20)
    waiting.join(20)
    assert [request.body["model"] for request in bench.upstream.requests] == ["gpt-4.1-mini", "gpt-4.1", "gpt-4.1-mini"]


def _until(condition: Callable[[], bool]) -> None:
    end = time.monotonic() + 10
    while not condition() and time.monotonic() < end:
        time.sleep(0.005)
    assert condition()


def test_a_request_that_can_never_be_served_is_shown_as_the_gateway_refused_it(start: Start) -> None:
    bench = start(Provider.of(then=refuses(400, body={"error": {"message": "too long", "code": "context"}})))

    with pytest.raises(Permanent, match="too long"):
        bench.model().ask("Why?")

    assert bench.permits.outcomes == ["client_error"]


def test_a_model_that_wants_the_other_limit_gets_it(start: Start) -> None:
    refusal = "Unsupported parameter: 'max_tokens'. Use 'max_completion_tokens' instead."
    bench = start(Provider.of(refuses(400, body={"error": {"message": refusal}})))
    model = bench.model()

    assert model.ask("Why?", max_tokens=9).text == "It is a law."
    model.ask("Why else?", max_tokens=9)

    limits = [
        ("max_tokens" in request.body, "max_completion_tokens" in request.body) for request in bench.upstream.requests
    ]
    assert limits == [(True, False), (False, True), (False, True)]


def test_a_model_that_was_exchanged_in_silence_is_noticed(start: Start) -> None:
    bench = start(Provider.of(refuses(200, body=completion("Hello", "gpt-4o-2024-08-06"))))

    assert bench.model().ask("Why?").degraded == "substituted"


def test_a_stream_is_passed_on_piece_by_piece(start: Start) -> None:
    bench = start(Provider.of(says("It is a law.")))

    status, headers, content = raw(bench, {"messages": MESSAGES, "stream": True})

    lines = [line[6:] for line in content.decode().split("\n\n") if line.startswith("data: ")]
    assert status == 200
    assert headers["content-type"].startswith("text/event-stream")
    assert lines[-1] == "[DONE]"
    pieces = [json.loads(line) for line in lines[:-1]]
    assert "".join(p["choices"][0]["delta"].get("content", "") for p in pieces if p["choices"]) == "It is a law. "
    wait_until_settled(bench, 1)
    assert (bench.permits.settlements[0]["outcome"], bench.permits.settlements[0]["completion_tokens"]) == (
        "success",
        3,
    )


def test_a_stream_that_fails_before_its_first_word_is_asked_for_again(start: Start) -> None:
    bench = start(Provider.of(refuses(200, headers={"content-type": "text/event-stream"}, body=b"data: [DONE]\n\n")))

    _, _, content = raw(bench, {"messages": MESSAGES, "stream": True})

    assert content.endswith(b"data: [DONE]\n\n")
    wait_until_settled(bench, 2)
    assert bench.permits.outcomes == ["server_error", "success"]


@pytest.mark.parametrize("act", [cuts_the_stream, stalls(5.0)], ids=["cut", "stalled"])
def test_a_stream_that_breaks_off_does_not_look_whole(start: Start, act: Act) -> None:
    bench = start(Provider.of(act), between_tokens_seconds=0.2)

    _, _, content = raw(bench, {"messages": MESSAGES, "stream": True})

    assert b"[DONE]" not in content
    assert b"convener_stream_broken" in content
    wait_until_settled(bench, 1)
    assert bench.permits.outcomes[0] in ("server_error", "timeout")
    # What came is paid for, though the stream tells so with its end only.
    settlement = bench.permits.settlements[0]
    assert (settlement["prompt_tokens"], settlement["completion_tokens"]) == (len(json.dumps(MESSAGES)) // 4, 1)


def test_a_long_call_keeps_its_permit(start: Start) -> None:
    permits = Permits(ttl_seconds=6.0)

    def slowly(request: ReceivedRequest, writer: ResponseWriter) -> None:
        """For longer than a permit lives that nobody renews."""
        end = time.monotonic() + 30
        while permits.renewal_count < 3 and time.monotonic() < end:
            time.sleep(0.01)
        says("Done.")(request, writer)

    bench = start(Provider.of(slowly), permits)

    assert bench.model().ask("Why?").text == "Done."

    assert bench.permits.outcomes == ["success"]


def test_the_end_of_a_task_ends_its_calls(start: Start) -> None:
    bench = start(Provider.of(hangs(3.0)))
    access = bench.access()
    outcome: list[object] = []

    def ask() -> None:
        try:
            outcome.append(raw(bench, {"messages": MESSAGES}, access.environment["OPENAI_API_KEY"])[0])
        except OSError as error:
            outcome.append(error)

    asking = threading.Thread(target=ask)
    asking.start()
    end = time.monotonic() + 10
    while not bench.upstream.requests and time.monotonic() < end:
        time.sleep(0.01)
    bench.gateway.close_access(access)
    asking.join(10)

    assert outcome
    assert outcome[0] != 200
    wait_until_settled(bench, 1)
    assert bench.permits.outcomes == ["cancelled"]
    assert raw(bench, {"messages": MESSAGES}, access.environment["OPENAI_API_KEY"])[0] == 401


@pytest.mark.parametrize("secret", ["", "the-worker", "the-gateway", "task-guess"])
def test_only_running_tasks_may_ask(start: Start, secret: str) -> None:
    bench = start(Provider.of())

    assert raw(bench, {"messages": MESSAGES}, secret)[0] == 401
    assert not bench.plane.requests


@pytest.mark.parametrize(
    "body", [{}, {"messages": []}, {"messages": "hello"}, []], ids=["empty", "none", "text", "list"]
)
def test_a_request_without_messages_is_refused_before_anything_is_asked(start: Start, body: Any) -> None:
    bench = start(Provider.of())

    status, _, content = raw(bench, body)

    assert status == 400
    assert "messages" in json.loads(content)["error"]["message"]
    assert not bench.plane.requests


def test_a_request_that_would_fill_the_memory_of_the_worker_is_refused(start: Start) -> None:
    bench = start(Provider.of())

    status, _, content = raw(bench, {"messages": [{"role": "user", "content": "[],{}," * 1_000_000}]})
    assert status == 200
    bench.plane.requests.clear()
    status, _, content = raw(bench, {"messages": [*MESSAGES, [[]] * 400_000]})

    assert status == 400
    assert "too many values" in json.loads(content)["error"]["message"]
    assert not bench.plane.requests


_CONDITIONS = {
    "key_expired": [refuses(401), refuses(403)],
    "quota_exhausted": [refuses(402), refuses(429, body={"error": {"code": "insufficient_quota", "message": "no"}})],
    "maintenance": [refuses(503, body={"error": {"code": "cluster_under_maintenance", "message": "back at noon"}})],
    "loading": [refuses(503, body={"error": {"message": "The model is currently loading"}})],
}


@pytest.mark.parametrize(("condition", "act"), [(name, act) for name, acts in _CONDITIONS.items() for act in acts])
def test_a_condition_is_reported_and_the_task_waits_for_the_model(start: Start, condition: str, act: Act) -> None:
    permits = Permits()
    bench = start(Provider.of(then=act), permits, models=("gpt-4.1",))
    permits.on_settled = lambda: permits.refuse([{"reason": condition, "retry_after": 1.5, "park_seconds": 60.0}])
    model = bench.model()
    with pytest.raises(Postponed) as caught:
        model.ask("Why?")
    assert caught.value.seconds == 60
    assert len(bench.upstream.requests) == 1
    assert bench.permits.settlements[0]["error_code"] == condition
    waits = bench.opened[-1].task_key.waits
    assert (waits.model, waits.seconds) == ("gpt-4.1", 60)
    bench.provider.finally_ = says("Yes.")
    permits.on_settled = None
    assert model.ask("Why?").text == "Yes."
    assert waits.model is None


def test_a_task_waits_for_the_budget_that_has_no_room(start: Start) -> None:
    permits = Permits()
    refusal = {"reason": "budget", "retry_after": 30.0, "park_seconds": 900.0, "waits_for": "budget:agent:ranking"}
    permits.refuse(2 * [refusal])
    bench = start(Provider.of(), permits, models=("gpt-4.1", "small"))
    with pytest.raises(Postponed) as caught:
        bench.model().ask("Why?")
    assert caught.value.seconds == 900
    assert not bench.upstream.requests
    waits = bench.opened[-1].task_key.waits
    assert (waits.model, waits.seconds) == ("budget:agent:ranking", 900)


def test_a_call_waits_in_place_while_others_have_reserved_what_is_left_of_a_budget(start: Start) -> None:
    permits = Permits()
    permits.refuse(2 * [{"reason": "budget", "retry_after": 0.5, "park_seconds": 0.5, "waits_for": "gpt-4.1"}])
    bench = start(Provider.of(), permits)
    assert bench.model().ask("Why?").text
    assert bench.opened[-1].task_key.waits.model is None


def test_what_is_about_the_question_is_no_condition(start: Start) -> None:
    body = {"error": {"code": "content_policy_violation", "message": "flagged by moderation"}}
    bench = start(Provider.of(refuses(403, body=body)))
    with pytest.raises(Permanent):
        bench.model().ask("Why?")


@pytest.mark.parametrize("refused", [True, False])
def test_models_that_operators_name_come_before_the_chain(start: Start, refused: bool) -> None:
    permits = Permits(fallback_models=["small"])
    if refused:
        permits.refuse([{"reason": "breaker_open", "retry_after": 20.0, "fallback_models": ["small"]}])
    bench = start(Provider.of(*([] if refused else 4 * [refuses(500)])), permits)
    answer = bench.model().ask("Why?")
    assert (answer.model, answer.degraded) == ("small", "fallback")
