"""Calls are gathered while others are under way, answered once, and none is lost, whatever the other side does."""

import asyncio
import json
from collections.abc import AsyncIterator
from dataclasses import replace
from functools import partial
from uuid import uuid4

import pytest

from app.outage import Outage
from app.relay.calls import Answer, Item, Operation, read_item
from app.relay.exchange import Exchange, ExchangePolicy
from app.relay.upstream import Away, Crowded
from tests.relay.fake_upstream import FakeUpstream, Request, call, lease_call, settled

_EXPIRES_AT = "2026-11-30T18:00:00.123456Z"
POLICY = ExchangePolicy(taken_seconds=0.0, withdraw_seconds=0.0, return_seconds=0.0)


def lease(task_id: str | None = None) -> dict[str, object]:
    return {"task_id": task_id or str(uuid4()), "token": 7, "expires_at": _EXPIRES_AT}


def submit(exchange: Exchange, *items: Item) -> None:
    for item in items:
        item.answer.add_done_callback(partial(_forget, exchange, item))
        exchange.submit(item)


def _forget(exchange: Exchange, item: Item, _: object) -> None:
    exchange.forget(item)


async def answers(*items: Item) -> list[Answer | None]:
    """The answers to these."""
    async with asyncio.timeout(30):
        return [await item.answer for item in items]


async def answer_to(item: Item) -> Answer:
    """The answer to one that has one."""
    (answer,) = await answers(item)
    assert answer is not None
    return answer


@pytest.fixture
def upstream() -> FakeUpstream:
    return FakeUpstream()


@pytest.fixture
async def exchange(upstream: FakeUpstream) -> AsyncIterator[Exchange]:
    exchange = Exchange(upstream.send, POLICY, Outage("the control plane", str))
    yield exchange
    await exchange.stop(0.0)
    await settled()


async def until_sent(upstream: FakeUpstream, count: int) -> Request:
    """The newest request, once there are so many."""
    async with asyncio.timeout(30):
        while len(upstream.requests) < count:
            await asyncio.sleep(0.001)
    return upstream.requests[-1]


async def test_a_call_goes_at_once_and_what_comes_meanwhile_goes_together(
    exchange: Exchange, upstream: FakeUpstream
) -> None:
    exchange.policy = replace(POLICY, gather_seconds=30.0)
    submit(exchange, first := call(worker="w1"))
    await settled()
    others = [call(worker=f"o{number}") for number in range(50)]
    for item in others:
        submit(exchange, item)
        await settled()
    assert [len(request.items) for request in upstream.requests] == [1]
    upstream.requests[0].answer_all(state="completed")
    await settled()
    assert [len(request.items) for request in upstream.requests] == [1, 50]
    # So many that it is worth it go beside others, but not in any number of requests, and none is too long.
    more = [call(worker=f"m{number}") for number in range(2000)]
    submit(exchange, *more)
    await settled()
    assert [len(request.items) for request in upstream.requests] == [1, 50, 512, 512, 512]
    upstream.requests[1].answer_all(state="completed")
    await settled()
    assert [len(request.items) for request in upstream.requests] == [1, 50, 512, 512, 512, 464]
    for request in upstream.requests[2:]:
        request.answer_all(state="completed")
    everybody = (first, *others, *more)
    assert await answers(*everybody) == [Answer(200, b'{"state":"completed"}')] * len(everybody)
    await settled()
    assert (exchange._open_items, exchange._open_bytes) == (0, 0)


async def test_those_who_were_answered_together_call_again_together(exchange: Exchange, upstream: FakeUpstream) -> None:
    exchange.policy = replace(POLICY, return_seconds=30.0)
    submit(exchange, *[call(worker=f"w{number}") for number in range(8)])
    await settled()
    exchange._started_at -= 120.0  # as if it took two minutes, of which a quarter is waited at most
    upstream.requests[0].answer_all()
    await settled()
    for number in range(5):
        submit(exchange, call(worker=f"w{number}"))
        await settled()
    assert len(upstream.requests) == 1
    submit(exchange, call(worker="w5"))
    await settled()
    assert [len(request.items) for request in upstream.requests] == [8, 6]
    exchange.policy = replace(POLICY, return_seconds=0.05)
    upstream.requests[1].answer_all()
    await settled()
    submit(exchange, call(worker="w6"))
    assert len((await until_sent(upstream, 3)).items) == 1, "the others are not waited for any longer"


async def test_nobody_waits_long_behind_a_request_that_takes_long(exchange: Exchange, upstream: FakeUpstream) -> None:
    exchange.policy = replace(POLICY, gather_seconds=0.01)
    submit(exchange, call(worker="slow"))
    await settled()
    submit(exchange, quick := call(worker="quick"))
    (await until_sent(upstream, 2)).answer_all()
    assert await answer_to(quick) == Answer(200, b"{}")


async def test_an_item_is_its_plain_call(exchange: Exchange, upstream: FakeUpstream) -> None:
    task_id, worker_id = str(uuid4()), str(uuid4())
    items = [
        call(f"/leases/{task_id}/fail", "w1", token=3, error={"code": "x", "message": "ü"}),
        call(f"/workers/{worker_id}/heartbeat", "w2", state="ready"),
        lease_call("w3", wait_seconds=0),
    ]
    submit(exchange, *items)
    await settled()
    fail, beat, ask = upstream.requests[0].items
    assert fail == {
        "authorization": "Bearer cvn_w1",
        "operation": "fail",
        "task_id": task_id,
        "body": {"token": 3, "error": {"code": "x", "message": "ü"}},
    }
    assert (beat["operation"], beat["worker_id"], "task_id" in beat) == ("heartbeat", worker_id, False)
    assert (ask["operation"], sorted(ask)) == ("lease", ["authorization", "body", "operation"])


@pytest.mark.parametrize("wait", ["1e400", "1e308", "9" * 399, "61"])
async def test_a_wait_without_end_harms_nobody(exchange: Exchange, upstream: FakeUpstream, wait: str) -> None:
    body = b'{"wait_seconds":%s}' % wait.encode()
    item = read_item(Operation("lease"), b"Bearer cvn_w1", body, 0.0)
    assert item is not None
    assert (item.wait_seconds, item.ends_at, item.body) == (60.0, 60.0, body)
    submit(exchange, item)
    await settled()
    assert not item.answer.done()


async def test_answers_keep_status_wait_and_body(exchange: Exchange, upstream: FakeUpstream) -> None:
    items = [call(worker=f"w{number}") for number in range(3)]
    submit(exchange, *items)
    await settled()
    upstream.requests[0].answer(
        {"index": 2, "status": 409, "body": {"code": "lease_superseded", "reason": None}},
        {"index": 0, "status": 503, "body": {"code": "locked"}, "retry_after": 2},
    )
    upstream.requests[0].answer({"index": 1, "status": 200, "body": {"text": "\ud83d", "big": 10**30}}, ends=True)
    busy, odd, refused = await answers(*items)
    assert refused == Answer(409, b'{"code":"lease_superseded","reason":null}')
    assert busy == Answer(503, b'{"code":"locked"}', "2")
    assert odd is not None
    assert json.loads(odd.body) == {"text": "\ud83d", "big": 10**30}


async def test_many_that_wait_hold_few_requests_and_each_is_answered_once(
    exchange: Exchange, upstream: FakeUpstream
) -> None:
    items = [lease_call(f"w{number}") for number in range(300)]
    for item in items:
        submit(exchange, item)
        await settled()
    async with asyncio.timeout(30):
        while sum(len(request.items) for request in upstream.open_requests) > 300:
            await asyncio.sleep(0.001)
    assert len(upstream.open_requests) <= POLICY.waiting_requests + 1
    assert sum(len(request.items) for request in upstream.requests) < 300 * 12, "each was sent few times"
    # One that was joined into another ends its waits without a task, which nobody may hear.
    for request in upstream.requests:
        if request.is_hung_up:
            request.answer_all(204)
    await settled()
    assert not any(item.answer.done() for item in items)
    for request in upstream.open_requests:
        request.answer(*({"index": n, "status": 200, "body": lease()} for n in range(len(request.items))), ends=True)
    assert len({answer.body for answer in await answers(*items) if answer}) == 300


async def test_a_request_that_is_replaced_may_still_bring_a_lease(exchange: Exchange, upstream: FakeUpstream) -> None:
    exchange.policy = replace(POLICY, waiting_requests=1, taken_seconds=30.0)
    submit(exchange, first := lease_call("w1"))
    await settled()
    # As a withdrawal of another worker does.
    exchange._carry_on(list(exchange._requests))
    await settled()
    old, new = upstream.requests
    assert new.items[0]["body"]["request_id"] == old.items[0]["body"]["request_id"]
    assert 0 < new.items[0]["body"]["wait_seconds"] <= 20
    old.answer({"index": 0, "status": 204})
    await settled()
    assert not first.answer.done()
    old.answer({"index": 0, "status": 200, "body": lease("t")})
    assert json.loads((await answer_to(first)).body) == lease("t")


async def test_a_lease_whose_worker_hung_up_is_withdrawn_and_the_others_wait_on(
    exchange: Exchange, upstream: FakeUpstream
) -> None:
    gone, staying = lease_call("gone"), lease_call("staying")
    submit(exchange, gone, staying)
    await settled()
    exchange.abandon(gone)
    exchange.forget(gone)
    newest = await until_sent(upstream, 2)
    assert [item["authorization"] for item in newest.items] == ["Bearer cvn_staying"]
    async with asyncio.timeout(30):
        while not upstream.requests[0].is_hung_up:
            await asyncio.sleep(0.001)
    newest.answer({"index": 0, "status": 204}, ends=True)
    assert await answer_to(staying) == Answer(204)


@pytest.mark.parametrize("calls_again", [False, True])
async def test_a_lease_that_nobody_heard_of_is_given_back_unless_its_worker_asked_again(
    exchange: Exchange, upstream: FakeUpstream, calls_again: bool
) -> None:
    exchange.policy = replace(POLICY, withdraw_seconds=30.0)
    gone, task_id = lease_call("w1"), str(uuid4())
    submit(exchange, gone)
    await settled()
    exchange.abandon(gone)
    exchange.forget(gone)
    if calls_again:
        submit(exchange, lease_call("w1"))
    upstream.requests[0].answer({"index": 0, "status": 200, "body": lease(task_id)}, ends=True)
    await settled()
    released = [item for request in upstream.requests for item in request.items if item["operation"] == "release"]
    assert [item["task_id"] for item in released] == ([] if calls_again else [task_id])
    # Not one that the control plane has given again since, as the worker has asked another process.
    assert {(item["body"]["token"], item["body"]["expires_at"]) for item in released} <= {(7, _EXPIRES_AT)}


async def test_a_control_plane_that_cannot_tell_a_lease_by_its_end_is_given_it_back_without(
    exchange: Exchange, upstream: FakeUpstream
) -> None:
    exchange.policy = replace(POLICY, withdraw_seconds=30.0)
    submit(exchange, gone := lease_call("w1"))
    await settled()
    exchange.abandon(gone)
    exchange.forget(gone)
    upstream.requests[0].answer({"index": 0, "status": 200, "body": lease()}, ends=True)
    for count in (2, 3):
        (release,) = (await until_sent(upstream, count)).items
        assert (release["operation"], release["body"]["token"]) == ("release", 7)
        assert ("expires_at" in release["body"]) == (count == 2)
        # The former one says so of the first; whatever is said of the second is the end.
        upstream.requests[-1].answer_all(422, detail="expires_at: Extra inputs are not permitted")
    await settled()
    assert len(upstream.requests) == 3
    assert (exchange._open_items, exchange._open_bytes) == (0, 0)


async def test_a_control_plane_that_is_silent_is_told_of(
    upstream: FakeUpstream, caplog: pytest.LogCaptureFixture
) -> None:
    silent = Exchange(upstream.send, replace(POLICY, answer_seconds=0.01), Outage("the control plane", str))
    item = call()
    submit(silent, item)
    lost = await answer_to(item)
    assert lost is not None
    assert lost.status == 502
    line = "the control plane has been away for 0 s (the control plane does not answer), trying again"
    assert caplog.messages == [line]
    await silent.stop(0)


@pytest.mark.parametrize("failure", [Away("refused"), None, b"nonsense", b'{"answers":[{"index":5,"status":200}]}'])
async def test_who_gets_no_answer_hears_that_the_control_plane_is_away(
    exchange: Exchange, upstream: FakeUpstream, failure: Exception | bytes | None
) -> None:
    items = [call(worker="w1"), call(worker="w2")]
    submit(exchange, *items)
    await settled()
    upstream.requests[0].answer({"index": 0, "status": 200, "body": {}})
    upstream.requests[0].lines.put_nowait(failure)
    done, lost = await answers(*items)
    assert done == Answer(200, b"{}")
    assert lost is not None
    assert (lost.status, json.loads(lost.body)["code"]) == (502, "control_plane_away")
    submit(exchange, again := call(worker="w2"))
    await settled()
    upstream.requests[1].answer_all()
    assert await answer_to(again) == Answer(200, b"{}")


async def test_no_answer_in_time_is_none(exchange: Exchange, upstream: FakeUpstream) -> None:
    exchange.policy = replace(POLICY, answer_seconds=0.01)
    submit(exchange, item := call())
    answer = await answer_to(item)
    assert answer.status == 502
    assert upstream.requests[0].is_hung_up


@pytest.mark.parametrize("waits", [False, True])
@pytest.mark.parametrize("status", [401, 403, 409])
async def test_a_key_that_is_refused_keeps_nobody_else_out(
    exchange: Exchange, upstream: FakeUpstream, waits: bool, status: int
) -> None:
    # Later than leases that wait are taken to have been taken.
    upstream.refusals, upstream.refusal_seconds = [Answer(status, b"{}"), Answer(429, b"{}", "6")], 0.01
    make = lease_call if waits else lambda name: call(worker=name)
    items = [make(name) for name in ("bad", "worse", "good", "good")]
    submit(exchange, *items)
    await until_sent(upstream, 3)
    await settled()
    assert [request.key for request in upstream.requests] == [
        b"Bearer cvn_bad",
        b"Bearer cvn_worse",
        b"Bearer cvn_good",
    ]
    upstream.requests[2].answer_all()
    assert await answers(*items) == [None, None, Answer(200, b"{}"), Answer(200, b"{}")]
    submit(exchange, *[make(name) for name in ("bad", "good")])
    await settled()
    assert upstream.requests[3].key == b"Bearer cvn_good", "the one that was let in before"


async def test_the_key_of_a_worker_that_has_ended_since_it_let_a_request_in_keeps_nobody_else_out(
    exchange: Exchange, upstream: FakeUpstream
) -> None:
    submit(exchange, call(worker="lost"))
    await settled()
    upstream.requests[0].answer_all()
    await settled()
    upstream.refusals = [Answer(409, b'{"code":"worker_gone"}')]
    items = [call(worker=name) for name in ("good", "lost")]
    submit(exchange, *items)
    newest = await until_sent(upstream, 3)
    newest.answer_all()
    assert await answers(*items) == [Answer(200, b"{}"), None]
    assert [request.key for request in upstream.requests[1:]] == [b"Bearer cvn_lost", b"Bearer cvn_good"]
    assert list(exchange.admitted_keys) == [b"Bearer cvn_good"]


async def test_a_key_is_let_in_by_the_answer_to_its_own_call_too(exchange: Exchange, upstream: FakeUpstream) -> None:
    submit(exchange, *[call(worker=name) for name in ("head", "second", "stranger")])
    await settled()
    given = [{"index": index, "status": status} for index, status in enumerate((200, 200, 401))]
    upstream.requests[0].answer(*given, ends=True)
    await settled()
    assert set(exchange.admitted_keys) == {b"Bearer cvn_head", b"Bearer cvn_second"}


async def test_keys_that_are_all_refused_cost_few_requests(exchange: Exchange, upstream: FakeUpstream) -> None:
    upstream.refusals = [Answer(401, b"{}")] * 300
    items = [call(worker=f"w{number}") for number in range(300)]
    submit(exchange, *items)
    assert await answers(*items) == [None] * 300
    assert [len(request.items) for request in upstream.requests] == [300, 299, 298]


@pytest.mark.parametrize(("status", "is_passed"), [(400, True), (413, True), (422, True), (500, False), (503, False)])
async def test_a_request_that_is_refused_as_a_whole(
    exchange: Exchange, upstream: FakeUpstream, status: int, is_passed: bool
) -> None:
    refusal = Answer(status, b'{"code":"x"}', "1")
    upstream.refusals = [refusal]
    items = [call(worker="w1"), call(worker="w2")]
    submit(exchange, *items)
    assert await answers(*items) == [None if is_passed else refusal] * 2


async def test_no_connection_left_is_busy(exchange: Exchange, upstream: FakeUpstream) -> None:
    upstream.refusals = [Crowded()]
    submit(exchange, item := call())
    answer = await answer_to(item)
    assert (answer.status, answer.retry_after) == (503, "1")


async def test_without_an_exchange_every_call_goes_by_itself_and_that_is_logged_once(
    exchange: Exchange, upstream: FakeUpstream, caplog: pytest.LogCaptureFixture
) -> None:
    upstream.refusals = [Answer(404)] * 4
    for _ in range(2):
        submit(exchange, item := call(), lease := lease_call())
        assert await answers(item, lease) == [None, None]
    assert not exchange.is_usable
    assert [record.message for record in caplog.records if "has no exchange" in record.message] != []
    assert len(caplog.records) == 1


async def test_bounds_of_what_is_open(exchange: Exchange, upstream: FakeUpstream) -> None:
    exchange.policy = replace(POLICY, max_open_items=3)
    submit(exchange, *[call(worker=f"w{number}") for number in range(3)])
    assert exchange.is_full
    await settled()
    upstream.requests[0].answer_all()
    await settled()
    assert not bool(exchange.is_full)
    exchange.policy = replace(POLICY, max_open_bytes=100)
    submit(exchange, call(text="x" * 100))
    assert exchange.is_full


async def test_a_stop_sends_away_who_waits_and_lets_the_others_end(exchange: Exchange, upstream: FakeUpstream) -> None:
    waiting, working, late = lease_call("w1"), call(worker="w2"), call(worker="w3")
    submit(exchange, waiting, working)
    await settled()
    stopping = asyncio.create_task(exchange.stop(30))
    submit(exchange, late)
    answer = await answer_to(waiting)
    assert (answer.status, json.loads(answer.body)["code"]) == (503, "shutting_down")
    await settled()
    assert not stopping.done()
    for request in upstream.requests:
        if request.items[0]["operation"] == "complete":
            request.answer_all()
    assert await answer_to(working) == Answer(200, b"{}")
    await settled()
    upstream.requests[-1].answer_all()
    await asyncio.wait_for(stopping, 30)
    assert await answer_to(late) == Answer(200, b"{}")
