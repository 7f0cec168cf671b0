"""The client of supervisors against proxies, portals and a service that takes its time: it repeats, and says why."""

from collections.abc import Callable, Iterator, Mapping
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from typing import Any

import httpx
import pytest

from examples.supervising.client import Convener, Refused, Unreachable
from examples.supervising.dispatch import Dispatch, Order
from tests.examples.fake_convener import FakeConvener

TASK = {"id": "t", "state": "completed"}


def client(answer: Callable[[httpx.Request], httpx.Response], **options: Any) -> Convener:
    settings: dict[str, Any] = {"sleep": lambda seconds: None, **options}
    return Convener("http://fake", "k", transport=httpx.MockTransport(answer), **settings)


def in_turn(*answers: httpx.Response | Exception) -> Callable[[httpx.Request], httpx.Response]:
    """These answers one after the other, then the task."""
    rest: Iterator[httpx.Response | Exception] = iter(answers)

    def answer(request: httpx.Request) -> httpx.Response:
        found = next(rest, None) or httpx.Response(200, json=TASK)
        if isinstance(found, Exception):
            raise found
        return found

    return answer


@pytest.mark.parametrize(
    "trouble",
    [
        httpx.Response(502, html="<h1>Bad gateway</h1>"),
        httpx.Response(520, html="<h1>Unknown error</h1>"),
        httpx.Response(404, html="<h1>no such upstream, while an ingress reloads</h1>"),
        httpx.Response(302, headers={"Location": "https://portal/login"}),
        httpx.Response(200, html="<h1>Maintenance</h1>"),
        httpx.Response(200, content=b'{"id": "t", "sta'),
        httpx.Response(200, content=b""),
        httpx.Response(200, json=[]),
        httpx.Response(408, json={"code": "request_timeout", "detail": "The request did not come in time"}),
        httpx.Response(409, json={"code": "submit_in_flight", "detail": "send it again in a moment"}),
        httpx.DecodingError("incorrect header check"),
        httpx.ReadTimeout("the answer was lost"),
    ],
    ids=lambda trouble: str(getattr(trouble, "status_code", trouble)),
)
def test_what_is_no_word_of_the_service_is_asked_again(trouble: httpx.Response | Exception) -> None:
    with client(in_turn(trouble)) as service:
        assert service.task("t") == TASK


@pytest.mark.parametrize(
    ("value", "least", "most"),
    [
        ("7", 7.0, 7.0),
        ("1.5", 1.5, 1.5),
        ("date", 28.0, 30.0),
        ("86400", 60.0, 60.0),
        ("9" * 400, 0.0, 0.1),
        ("soon", 0.0, 0.1),
    ],
)
def test_it_waits_as_long_as_it_is_asked_to_within_reason(value: str, least: float, most: float) -> None:
    if value == "date":
        value = format_datetime(datetime.now(UTC) + timedelta(seconds=30), usegmt=True)
    pauses: list[float] = []
    answer = in_turn(httpx.Response(429, headers={"Retry-After": value}, json={"code": "queue_full"}))
    with client(answer, sleep=pauses.append) as service:
        service.task("t")
    (pause,) = pauses
    assert least <= pause <= most


@pytest.mark.parametrize(
    ("trouble", "words"),
    [
        (lambda: httpx.Response(200, html="<h1>It works</h1>"), "http://fake/tasks/t does not answer like Convener"),
        (
            lambda: httpx.Response(301, headers={"Location": "https://fake/tasks/t"}),
            "redirects to https://fake/tasks/t",
        ),
        (lambda: httpx.Response(503, json={"code": "locked", "detail": "the table is locked"}), "the table is locked"),
        (lambda: httpx.ConnectError("[SSL: CERTIFICATE_VERIFY_FAILED] certificate verify failed"), "CONVENER_CA_FILE"),
        (lambda: httpx.ConnectError("Name or service not known"), "Name or service not known"),
    ],
)
def test_who_gives_up_says_what_to_look_at(trouble: Callable[[], httpx.Response | Exception], words: str) -> None:
    answer = in_turn(*[trouble() for _ in range(1000)])
    with client(answer, give_up_seconds=-1) as service, pytest.raises(Unreachable) as unreachable:
        service.task("t")
    assert words in str(unreachable.value)


@pytest.mark.parametrize("status", [401, 403, 404, 409, 422])
def test_a_refusal_of_the_service_is_final(status: int) -> None:
    answer = in_turn(httpx.Response(status, json={"code": "no", "detail": "because"}))
    with client(answer) as service, pytest.raises(Refused, match="because"):
        service.task("t")


@pytest.mark.parametrize("status", [401, 403])
def test_a_key_that_is_refused_is_told_in_words(status: int) -> None:
    """It was the body of the answer, with nothing of what to do."""
    answer = in_turn(httpx.Response(status, json={"code": "no", "detail": "a key looks like cvn_<id>_<secret>"}))
    with client(answer) as service, pytest.raises(Refused) as refused:
        service.task("t")
    assert "a key looks like cvn_<id>_<secret>; put the key of a supervisor into CONVENER_KEY" in str(refused.value)


def test_a_wait_for_events_does_not_end_before_the_service_answers() -> None:
    timeouts: list[Mapping[str, float]] = []

    def answer(request: httpx.Request) -> httpx.Response:
        timeouts.append(request.extensions["timeout"])
        return httpx.Response(200, json={"items": [], "next": "1-1"})

    with client(answer) as service:
        service.events("goal", None, 30)
    assert timeouts[0]["read"] > 30


def test_a_supervisor_does_not_read_what_happened_before_its_first_task() -> None:
    fake = FakeConvener()
    fake.events = [{"cursor": str(n), "kind": "task.completed", "task_id": str(n), "goal_id": "goal"} for n in range(9)]
    first_wants: list[str | None] = []

    def answer(request: httpx.Request) -> httpx.Response:
        if request.url.path == "/events":
            first_wants.append(request.url.params.get("after"))
        return fake.answer(request)

    with client(answer) as service:
        dispatch = Dispatch(service, goal_id="goal")
        dispatch.submit([Order(number=1, agent_type="generation", payload={"seed": "1", "count": 1, "guidance": {}})])
        assert [outcome.order.number for outcome in dispatch.outcomes()] == [1]
    assert first_wants[:2] == ["now", "9"]


@pytest.mark.parametrize(("status", "code"), [(410, "cursor_expired"), (422, "cursor_ahead")])
def test_a_supervisor_goes_on_where_the_service_cannot_tell_what_happened_since(status: int, code: str) -> None:
    """As after the restore of a backup; what ended meanwhile has no event any more."""
    fake = FakeConvener()
    refusals: list[str] = []

    def answer(request: httpx.Request) -> httpx.Response:
        after = request.url.params.get("after", "now")
        if request.url.path == "/events" and after != "now" and not refusals:
            refusals.append(after)
            fake.work()
            return httpx.Response(status, json={"code": code, "detail": "no such cursor"})
        return fake.answer(request)

    with client(answer) as service:
        dispatch = Dispatch(service, goal_id="goal")
        payload = {"seed": "1", "count": 1, "guidance": {}}
        dispatch.submit([Order(number=n, agent_type="generation", payload=payload) for n in range(5)])
        assert sorted(outcome.order.number for outcome in dispatch.outcomes()) == [0, 1, 2, 3, 4]
    assert refusals
    assert len(fake.order_of_completion) == 5
