"""The first page: the verdict, what needs attention, and the stream that keeps it up to date for all viewers."""

import asyncio
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from typing import Any
from unittest.mock import AsyncMock

import pytest
from jinja2 import meta
from starlette.requests import Request

from app.dashboard import now, rendering, sight
from app.dashboard.access import Viewer, viewer_of
from app.dashboard.api_calls import Api, Refused
from app.dashboard.attention import attention
from app.dashboard.feed import CSRF_PLACE, Budget, Feed, News, Stopwatch
from app.dashboard.rendering import render
from app.dashboard.sight import Hour, LastHours, Looker, Sight
from app.db import notify
from app.db.database import Database
from app.kernel.access import Role
from tests.dashboard.browsers import browser
from tests.support.service import Service
from tests.support.sql import execute


async def test_the_verdict_says_it_in_a_sentence_with_every_reason(service: Service) -> None:
    async with browser(service, Role.READER) as somebody:
        before = await service.get("/health/report")
        page = await somebody.page("/dashboard")
        report = await service.get("/health/report")
        assert report["overall_health"] == "critical"
        assert "Critical: no background duty has ever run" in page
        # Of a busy machine some come and go.
        lasting = [reason["message"] for reason in before["reasons"] if reason in report["reasons"]]
        assert lasting
        assert all(message.replace("'", "&#39;") in page for message in lasting)


def test_a_verdict_without_messages_is_in_words() -> None:
    """So comes a report while the database hangs, and keys cannot be checked."""
    reason = {"code": "database_slow", "level": "critical", "message": None}
    assert now.sentence_of({"overall_health": "critical", "reasons": [reason]}) == "Critical: database slow."


async def test_figures_of_agents_are_those_of_the_api(service: Service) -> None:
    for _ in range(3):
        await service.submitted(agent_type="evolution")
    async with browser(service, Role.MONITOR) as monitor, browser(service, Role.READER) as reader:
        seen_by_monitor, seen_by_reader = await monitor.page("/dashboard"), await reader.page("/dashboard")
    row = seen_by_reader.split("agent_type=evolution")[1].split("</tr>")[0]
    assert '<td class="n">3</td>' in row
    assert '<td class="n">20 %</td>' in row
    # Weights are not for monitors.
    assert "Weight</th>" in seen_by_reader
    assert "Weight</th>" not in seen_by_monitor


async def test_the_busy_share_is_that_of_the_health_report_and_of_the_workers_beside_it(service: Service) -> None:
    worker, _, leaving = [await service.worker() for _ in range(3)]
    await leaving.beat(state="draining")
    await service.submitted(agent_type="ranking")
    assert await worker.lease()
    async with browser(service, Role.MONITOR) as monitor:
        page = await monitor.page("/dashboard")
    assert "1 busy, 1 idle, 1 draining" in page
    assert '<p class="value">50 %</p>' in page
    assert (await service.get("/health/report"))["worker_pool_health"]["utilization_percentage"] == 50


async def test_what_needs_attention_has_the_button_that_mends_it(service: Service) -> None:
    await service.post("/queues/ranking/pause", {"reason": f"a look {'r' * 1000}"})
    await service.submitted(agent_type="ranking")
    async with browser(service, Role.OPERATOR) as operator:
        page = await operator.page("/dashboard")
        assert f"ranking is paused, and 1 task of it waits: a look {'r' * 293}<" in page
        assert await operator.do("resume-queue", agent="ranking", reason="") == "ranking is leased again."
        assert "ranking is paused" not in await operator.page("/dashboard")


async def test_a_pause_counts_the_tasks_that_its_end_lets_go_as_the_queue_and_the_health_report_do(
    service: Service,
) -> None:
    await service.post("/queues/ranking/pause", {"reason": "a look"})
    await service.post("/goals", {"id": "kepler", "objective": "to know it"})
    await service.post("/goals/kepler/pause", {"reason": "waits for data"})
    await service.submitted(agent_type="ranking")
    await service.submitted(agent_type="ranking", goal_id="kepler")
    async with browser(service, Role.OPERATOR) as operator:
        assert "ranking is paused, and 1 task of it waits: a look" in await operator.page("/dashboard")
    assert "ranking is paused and 1 task of it waits: a look" in (await service.get("/queues"))["warnings"]


async def test_an_alert_comes_once_with_its_advice(service: Service) -> None:
    alert: dict[str, Any] = {"id": 7, "rule": "pool_below_minimum", "subject": "", "severity": "critical"}
    alert |= {"state": "open", "summary": "too few", "advice": "look", "opened_at": "2026-01-31T12:00:00+00:00"}
    alert["note"] = None
    report = {"reasons": [{"code": "pool_below_minimum", "level": "degraded", "message": "1 of at least 2 workers"}]}
    queues: dict[str, Any] = {"paused": [], "dead_letters_last_hour": 0}
    sight = Sight(report=report, queues=queues, fleet={}, alerts=[alert])
    (item,) = attention(sight)
    assert (item.level, item.advice) == ("critical", "look")
    assert [button.action for button in item.buttons] == ["start-workers", "acknowledge-alert"]
    (item,) = attention(Sight(report=report, queues=queues, fleet={}, alerts=[alert | {"state": "acknowledged"}]))
    assert [button.action for button in item.buttons] == ["start-workers"]


@pytest.mark.parametrize(
    ("rule", "subject", "path"),
    [
        ("goal_budget", "@lab-a/to know & tell", "/goals/to%20know%20%26%20tell?namespace=lab-a"),
        ("goal_budget", "kepler", "/goals/kepler?namespace=default"),
        ("stuck_executing", "ranking", "/tasks?state=executing&agent_type=ranking"),
        ("breaker_open", "argo:gpt-4.1", "/models"),
        ("key_expiring", "argo:gpt-4.1", "/models"),
        ("llm_budget", "agent ranking", "/models"),
    ],
)
def test_an_alert_leads_to_the_page_where_its_advice_is_carried_out(rule: str, subject: str, path: str) -> None:
    alert: dict[str, Any] = {"id": 7, "rule": rule, "subject": subject, "severity": "critical", "state": "open"}
    alert |= {"summary": "bad", "advice": "mend it", "opened_at": "2026-01-31T12:00:00+00:00", "note": None}
    queues: dict[str, Any] = {"paused": [], "dead_letters_last_hour": 0}
    (item,) = attention(Sight(report={"reasons": []}, queues=queues, fleet={}, alerts=[alert]))
    assert [link.path for link in item.links] == [path]


class _Looks:
    """Counts the looks of feeds, and keeps the last viewers that they were for."""

    def __init__(self) -> None:
        self.viewers: list[Viewer] = []


@contextmanager
def _counted(monkeypatch: pytest.MonkeyPatch) -> Iterator[_Looks]:
    looks, look = _Looks(), Looker.look

    async def counted(self: Looker, viewer: Viewer, news: News = None) -> Any:
        looks.viewers.append(viewer)
        return await look(self, viewer, news)

    monkeypatch.setattr(Looker, "look", counted)
    yield looks


async def _viewers(service: Service, count: int) -> list[Viewer]:
    """Viewers with sessions of the same operator's key."""
    viewers = []
    for _ in range(count):
        async with browser(service, Role.OPERATOR) as somebody:
            scope: dict[str, Any] = {
                "type": "http",
                "headers": [(b"cookie", _cookie(somebody.client.cookies))],
                "method": "GET",
            }
            scope |= {"path": "/dashboard", "query_string": b"", "scheme": "http", "server": ("convener", 80)}
            viewers.append(await _viewer(service, scope))
    return viewers


def _cookie(cookies: Any) -> bytes:
    return "; ".join(f"{name}={value}" for name, value in cookies.items()).encode()


async def _viewer(service: Service, scope: dict[str, Any]) -> Viewer:
    async def receive() -> Any:
        await asyncio.Event().wait()

    return await viewer_of(Request({**scope, "app": service.app, "client": ("127.0.0.1", 1)}, receive))


async def test_all_viewers_share_one_look_and_hear_of_changes(
    service: Service, monkeypatch: pytest.MonkeyPatch
) -> None:
    with _counted(monkeypatch) as looks:
        viewers = await _viewers(service, 3)
        feed: Feed = now.feed_of(viewers[0])
        assert all(now.feed_of(viewer) is feed for viewer in viewers)
        streams = [feed.follow(viewer) for viewer in viewers]
        first = [await _until(stream, "agents", "") for stream in streams]
        assert CSRF_PLACE not in "".join(first)
        for viewer, html in zip(viewers, first, strict=True):
            assert viewer.csrf in html
        await service.post("/queues/ranking/pause", {"reason": "x"})
        for stream in streams:
            assert "paused" in await _until(stream, "agents", "paused")
        assert len(looks.viewers) < 60
        for stream in streams:
            await stream.aclose()
        assert feed._looking is None
        assert not feed._viewers


async def _until(stream: Any, kind: str, text: str) -> str:
    """The next region of this kind that has the text."""
    async with asyncio.timeout(60):
        async for batch in stream:
            for message in batch.messages:
                if message.kind == kind and text in message.data:
                    return str(message.data)
    raise AssertionError("the stream has ended")


async def test_regions_are_drawn_again_where_what_they_show_has_changed(
    service: Service, database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    drawn: list[str] = []

    def counted(template: str, values: Mapping[str, Any]) -> str:
        drawn.append(template)
        return render(template, values)

    monkeypatch.setattr(now, "render", counted)
    (viewer,) = await _viewers(service, 1)
    looker = Looker(database)
    look = now._look_by(looker)
    first = await look(viewer, None)
    assert drawn == [f"now/{name}.html" for name in first] == [f"now/{name}.html" for name in now.REGIONS]
    drawn.clear()
    await service.submitted(agent_type="ranking")
    second = await look(viewer, {notify.EVENTS})
    assert set(drawn) == {f"now/{name}.html" for name in first if second[name] != first[name]}
    assert "now/agents.html" in drawn
    assert "now/models.html" not in drawn
    # The database was away meanwhile: what the stream showed then is not what there is.
    monkeypatch.setattr(looker, "_look_into", AsyncMock(side_effect=Refused(503, {})))
    away = await look(viewer, {notify.EVENTS})
    assert list(away) == ["verdict"]
    monkeypatch.undo()
    assert (await look(viewer, {notify.EVENTS}))["verdict"] == second["verdict"]


@pytest.mark.parametrize("name", now.REGIONS)
def test_a_region_shows_what_it_is_drawn_again_for(name: str) -> None:
    environment = rendering._environment()
    assert environment.loader is not None
    source, _, _ = environment.loader.get_source(environment, f"now/{name}.html")
    shown = meta.find_undeclared_variables(environment.parse(source)) - set(environment.globals)
    # The same for all viewers of a feed, or the time, from which ages go on by themselves.
    assert shown - {"csrf", "here", "may", "at"} == set(now.REGIONS[name])


async def test_a_stream_ends_with_its_session(service: Service) -> None:
    (viewer,) = await _viewers(service, 1)
    stream = now.feed_of(viewer).follow(viewer)
    await anext(stream)
    key_id = service.keys[Role.OPERATOR].split("_")[1]
    await service.ask("DELETE", f"/keys/{key_id}")
    async with asyncio.timeout(60):
        async for _ in stream:
            pass


def test_looks_take_a_hundred_and_fiftieth_of_the_time_and_a_change_after_quiet_waits_for_nothing() -> None:
    budget, now, taken = Budget(), 0.0, 0.0
    for _ in range(1000):
        now, taken = now + 0.1, taken + 0.1
        now += budget.pause(0.1, now)
    assert taken / now <= 0.0075
    # It has looked for as long as it may; after a while without any news it may again.
    assert budget.pause(0.01, now + 20) == 0
    quiet = Budget()
    assert [quiet.pause(0.03, 3.0 * number) for number in range(100)] == [0.0] * 100
    # Looks that were dear once do not come seldom for long.
    bounded = Budget(longest_seconds=5)
    assert bounded.pause(100.0, 0.0) == pytest.approx(5)
    assert bounded.pause(0.0, 5.0) == pytest.approx(0)
    # What counts elsewhere does not count here.
    dear = Budget()
    for number in range(100):
        dear.exempt(1.0)
        assert dear.pause(1.02, 3.0 * number) == 0.0


async def test_numbers_of_tasks_are_told_while_what_is_dear_to_read_rests(
    service: Service, database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else looks that come seldom would each read everything, cost much, and so go on coming seldom."""
    monkeypatch.setattr(Stopwatch, "cost", 10.0)
    (viewer,) = await _viewers(service, 1)
    budget = Budget()
    looker = Looker(database, budget)
    first = await looker.look(viewer)
    assert budget.pause(10.0, 0.0) == 0.0
    await service.submitted(agent_type="ranking")
    looker._read_at = dict.fromkeys(looker._read_at, float("-inf"))  # all of it would be due
    second = await looker.look(viewer, {notify.EVENTS})
    assert [look.queues["depth"]["total"] for look in (first, second)] == [0, 1]
    assert first.report is second.report
    # What somebody has ordered waits for no rest.
    pressed = await looker.look(viewer, {notify.STATUS})
    assert pressed.report is not first.report
    assert pressed.fleet is first.fleet
    # What was heard of is read once the rest is over.
    looker._rests_until = 0.0
    third = await looker.look(viewer, ())
    assert third.fleet is not first.fleet


async def test_a_part_is_read_seldom_while_nothing_is_announced(service: Service, database: Database) -> None:
    """What is announced is shown at once, and what is dear and may have changed with it at the next look."""
    (viewer,) = await _viewers(service, 1)
    looker = Looker(database)
    first = await looker.look(viewer)
    looker._read_at = {name: read_at - 20 for name, read_at in looker._read_at.items()}
    assert await looker.look(viewer, ()) is first
    await service.submitted(agent_type="ranking")
    second = await looker.look(viewer, {notify.EVENTS})
    assert second.queues["depth"]["total"] == 1
    assert second.fleet is first.fleet
    assert (await looker.look(viewer, {notify.EVENTS})).fleet is first.fleet
    third = await looker.look(viewer, ())
    assert third.fleet is not first.fleet
    assert third.agents is first.agents
    # Nothing is left to later looks for more than a minute.
    looker._read_at = {name: read_at - 60 for name, read_at in looker._read_at.items()}
    looker._last_hour.read_at -= 80
    fourth = await looker.look(viewer, {notify.EVENTS})
    assert fourth.fleet is not third.fleet
    assert fourth.agents is not third.agents
    assert fourth.hour is not third.hour
    # As numbers change, something has happened, though its announcement was lost.
    looker._read_at = {name: read_at - 20 for name, read_at in looker._read_at.items()}
    await service.submitted(agent_type="ranking")
    fifth = await looker.look(viewer, ())
    assert fifth.fleet is fourth.fleet
    assert (await looker.look(viewer, ())).fleet is not fifth.fleet


async def test_what_was_seen_before_a_look_that_failed_is_not_taken_for_the_present(
    service: Service, database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    (viewer,) = await _viewers(service, 1)
    looker = Looker(database)
    await looker.look(viewer)
    await service.submitted(agent_type="ranking")
    with monkeypatch.context() as patch:
        patch.setattr(looker, "_look_into", AsyncMock(side_effect=Refused(503, {})))
        with pytest.raises(Refused):
            await looker.look(viewer, {notify.EVENTS})
    assert (await looker.look(viewer, ())).queues["depth"]["total"] == 1


async def test_the_last_hour_is_read_once_a_minute_for_those_with_the_same_rights(
    service: Service, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It takes half of what the whole page takes, and each load of the page begins a stream, too."""
    readers: list[Role] = []
    look_back = sight._look_back

    async def counted(viewer: Viewer, queues: Any) -> Hour:
        readers.append(viewer.principal.role)
        return await look_back(viewer, queues)

    monkeypatch.setattr(sight, "_READS", {**sight._READS, "hour": counted})
    (operator,) = await _viewers(service, 1)
    for viewer in (operator, operator):
        assert (await now.show(viewer)).status_code == 200
    stream = now.feed_of(operator).follow(operator)
    await _until(stream, "figures", "")
    await stream.aclose()
    assert readers == [Role.OPERATOR]
    async with browser(service, Role.READER) as reader:
        await reader.page("/dashboard")
    assert readers == [Role.OPERATOR, Role.READER]
    service.app.state.services[LastHours].of(operator.rights).read_at -= 60
    await now.show(operator)
    assert readers == [Role.OPERATOR, Role.READER, Role.OPERATOR]


async def test_a_last_hour_of_which_a_part_was_refused_is_kept_for_nobody_else(
    service: Service, monkeypatch: pytest.MonkeyPatch
) -> None:
    (operator,) = await _viewers(service, 1)
    get = Api.get

    async def refusing(self: Api, path: str, *query: Any, **options: Any) -> Any:
        if path == "/metrics/utilisation":
            raise Refused(429, {})
        return await get(self, path, *query, **options)

    last_hour = service.app.state.services[LastHours].of(operator.rights)
    with monkeypatch.context() as patch:
        patch.setattr(Api, "get", refusing)
        assert (await now.show(operator)).status_code == 200
    assert last_hour.read_at == float("-inf")
    await now.show(operator)
    assert last_hour.hour.is_complete
    assert last_hour.read_at > 0


async def test_agents_have_the_age_of_their_oldest_task_and_their_last_hour(
    service: Service, database: Database
) -> None:
    for agent in ("ranking", "ranking", "evolution"):
        await service.submitted(agent_type=agent)
    minutes_ago = datetime.now(UTC).replace(second=0, microsecond=0) - timedelta(minutes=30)
    await execute(
        database,
        "INSERT INTO queue_minutes VALUES ($1, 'ranking', 2, 'task.submitted', 2, 0, 0, '{}')",
        minutes_ago,
    )
    async with browser(service, Role.READER) as reader:
        page = await reader.page("/dashboard")
    row = page.split("agent_type=ranking")[1].split("</tr>")[0]
    assert 'aria-label="last hour: 0 to 2 waiting, now 2"' in row
    since = (await service.get("/tasks"))["items"][-1]["created_at"]
    assert re.findall(r'data-since="([^"]+)"', row) == [
        datetime.fromisoformat(since).replace(microsecond=0).isoformat()
    ]
