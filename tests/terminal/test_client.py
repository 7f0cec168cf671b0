"""What the client makes of services that are busy, away, strange, or somebody else."""

import json
import time
from collections.abc import Callable

import httpx
import pytest

from app.terminal.client import Client, Refusal, Unreachable
from app.terminal.connection import Access
from app.terminal.failures import ExitCode, Failure

Answer = Callable[[httpx.Request], httpx.Response]


def client(answer: Answer, url: str = "http://convener.test/base") -> Client:
    return Client(Access(url=url, key="cvn_id_secret"), transport=httpx.MockTransport(answer))


def one_by_one(*responses: httpx.Response | Exception) -> Answer:
    left = iter(responses)

    def answer(_: httpx.Request) -> httpx.Response:
        response = next(left)
        if isinstance(response, Exception):
            raise response
        return response

    return answer


def test_fields_that_an_older_service_does_not_have_are_empty() -> None:
    """So a newer command shows all else of them. A service that lists no models grants permits for each that it has."""
    with client(one_by_one(httpx.Response(200, json={"items": [{"model": "large"}], "next": None}))) as older:
        answer = older.get("/llm/models")
    assert answer["reason"] is None
    assert answer["items"][0]["leased_at"] is None
    assert answer["items"][0]["is_listed"] is True
    assert (answer, json.dumps(answer["items"])) == (
        {"items": [{"model": "large"}], "next": None},
        '[{"model": "large"}]',
    )


@pytest.fixture
def pauses(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    waited: list[float] = []
    monkeypatch.setattr(time, "sleep", waited.append)
    return waited


@pytest.mark.parametrize(("text", "sent"), [(f"00-{'1' * 32}-{'2' * 16}-01", True), ("nonsense", False)])
def test_belongs_to_the_trace_of_whoever_calls_it(monkeypatch: pytest.MonkeyPatch, text: str, sent: bool) -> None:
    monkeypatch.setenv("TRACEPARENT", text)
    headers: list[httpx.Headers] = []

    def answer(request: httpx.Request) -> httpx.Response:
        headers.append(request.headers)
        return httpx.Response(200, json={})

    client(answer).get("/tasks")
    assert headers[0].get("traceparent") == (text if sent else None)


def test_shows_the_key_and_keeps_the_path_of_the_address() -> None:
    def answer(request: httpx.Request) -> httpx.Response:
        assert request.headers["authorization"] == "Bearer cvn_id_secret"
        assert str(request.url) == "http://convener.test/base/tasks?limit=3"
        return httpx.Response(200, json={"items": []})

    with client(answer) as live_service:
        assert live_service.get("/tasks", limit=3, after=None) == {"items": []}


def test_waits_as_long_as_it_is_told_to(pauses: list[float]) -> None:
    busy = httpx.Response(429, headers={"Retry-After": "3"}, json={"code": "queue_full"})
    away = httpx.Response(503, headers={"Retry-After": "soon"}, json={"code": "shutting_down"})
    with client(one_by_one(busy, away, httpx.Response(201, json={"id": "x"}))) as live_service:
        assert live_service.post("/tasks", {}) == {"id": "x"}
    assert pauses == [3.0, 1.0]


@pytest.mark.parametrize(("value", "seconds"), [("nan", 0.1), ("inf", 10.0), ("-3", 0.1)])
def test_waits_neither_for_ever_nor_for_nonsense(pauses: list[float], value: str, seconds: float) -> None:
    busy = httpx.Response(429, headers={"Retry-After": value}, json={"code": "queue_full"})
    with client(one_by_one(busy, httpx.Response(200, json={}))) as live_service:
        live_service.get("/status")
    assert pauses == [seconds]


def test_gives_up_in_the_end(pauses: list[float]) -> None:
    away = {"title": "The database does not answer", "code": "database_unavailable", "status": 503, "detail": "x"}
    with client(lambda _: httpx.Response(503, json=away)) as live_service, pytest.raises(Refusal) as refused:
        live_service.get("/status")
    assert refused.value.code is ExitCode.UNREACHABLE
    assert len(pauses) == 3
    assert "convener db status" in str(refused.value.hint)


@pytest.mark.parametrize(
    ("scope", "roles"),
    [
        ("keys:manage", "with the role admin: `convener key create admin"),
        ("read", "with the role supervisor, operator, admin or reader:"),
        ("nothing", "with the role operator or admin:"),
    ],
)
def test_a_key_that_may_not_is_told_which_may(scope: str, roles: str) -> None:
    detail = f"this key, with the role x, does not include {scope}"
    problem = {"title": "No", "code": "forbidden", "status": 403, "detail": detail}
    with client(lambda _: httpx.Response(403, json=problem)) as live_service, pytest.raises(Refusal) as refused:
        live_service.get("/tasks/x")
    assert roles in str(refused.value.hint)
    assert "--database" in str(refused.value.hint)


@pytest.mark.parametrize(
    ("status", "code"), [(401, ExitCode.KEY), (403, ExitCode.KEY), (404, ExitCode.NOT_FOUND), (409, ExitCode.REFUSED)]
)
def test_problems_have_exit_codes(status: int, code: ExitCode) -> None:
    problem = {"title": "No", "code": "forbidden", "status": status, "detail": "because"}
    with client(lambda _: httpx.Response(status, json=problem)) as live_service, pytest.raises(Refusal) as refused:
        live_service.get("/tasks/x")
    assert (refused.value.code, list(refused.value.details)) == (code, ["because"])


@pytest.mark.parametrize(
    "error", [httpx.ConnectError("refused"), httpx.ReadTimeout(""), httpx.RemoteProtocolError("?")]
)
def test_nobody_there(error: Exception) -> None:
    with client(one_by_one(error)) as live_service, pytest.raises(Unreachable) as unreachable:
        live_service.get("/status")
    assert unreachable.value.code is ExitCode.UNREACHABLE
    assert "http://convener.test/base" in unreachable.value.message


@pytest.mark.parametrize("status", [502, 503, 504])
def test_a_proxy_says_that_nobody_is_there(status: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("time.sleep", lambda _: None)
    page = httpx.Response(status, text="<html><body>No server is available to handle this request.")
    with client(lambda _: page) as live_service, pytest.raises(Unreachable) as unreachable:
        live_service.get("/status")
    assert unreachable.value.code is ExitCode.UNREACHABLE
    assert f"http://convener.test/ (a proxy answers {status})" in unreachable.value.message


@pytest.mark.parametrize(
    "response",
    [
        httpx.Response(200, text="<html>"),
        httpx.Response(200, json=[1]),
        httpx.Response(404, text="<html>"),
        httpx.Response(502, json={"error": "bad gateway"}),
        httpx.Response(302, headers={"Location": "http://elsewhere.test/login"}),
    ],
)
def test_somebody_else_is_there(response: httpx.Response) -> None:
    with client(one_by_one(response)) as live_service, pytest.raises(Failure) as failure:
        live_service.get("/status")
    assert failure.value.code is ExitCode.REFUSED
    assert "not like Convener" in failure.value.message


def test_pages_are_followed_up_to_the_limit() -> None:
    asked: list[tuple[str, str | None]] = []

    def answer(request: httpx.Request) -> httpx.Response:
        limit, after = int(request.url.params["limit"]), request.url.params.get("after")
        asked.append((str(limit), after))
        start = int(after or 0)
        numbers = [{"n": n} for n in range(start, min(start + limit, 1200))]
        return httpx.Response(
            200, json={"items": numbers, "next": str(start + limit) if start + limit < 1200 else None}
        )

    with client(answer) as live_service:
        items, following = live_service.pages("/tasks", 700)
        assert (len(items), following) == (700, "700")
        assert asked == [("500", None), ("200", "500")]
        items, following = live_service.pages("/tasks", None, after="700")
        assert (items[0]["n"], items[-1]["n"], following) == (700, 1199, None)


def test_where_the_clocks_are_apart_that_of_the_service_counts() -> None:
    with client(
        lambda _: httpx.Response(200, json={}, headers={"Date": "Tue, 01 Jan 2030 00:00:05 GMT"})
    ) as live_service:
        live_service.get("/status")
        assert live_service.now.isoformat() == "2030-01-01T00:00:05+00:00"


@pytest.mark.parametrize("date", ["Fri, 01 Jan 2100 00:00:05", "Fri, 01 Jan 2100 00:00:05 -0000", "now"])
def test_a_date_without_a_zone_is_no_time_of_the_service(date: str) -> None:
    with client(lambda _: httpx.Response(200, json={}, headers={"Date": date})) as live_service:
        live_service.get("/status")
    assert live_service.now.year != 2100


@pytest.mark.parametrize("url", ["http://127.0.0.1:8765", "https://far.test", "unix:/run/api.sock"])
def test_a_proxy_of_the_surroundings_is_never_used(monkeypatch: pytest.MonkeyPatch, url: str) -> None:
    monkeypatch.setenv("HTTP_PROXY", "http://proxy.test:3128")
    monkeypatch.setenv("HTTPS_PROXY", "http://proxy.test:3128")
    with Client(Access(url=url, key="k")) as client:
        assert not client._http._mounts
        assert client._http._trust_env is False
