"""The other pages: each shows what is there, and its orders do what the API does."""

import asyncio
import contextlib
import json
import re
from collections.abc import AsyncIterator
from datetime import datetime
from html import unescape
from typing import Any

import pytest
from starlette.requests import Request

from app.dashboard import feed, tasks
from app.dashboard.access import Viewer, viewer_of
from app.dashboard.api_calls import Api, Refused
from app.dashboard.feed import CSRF_PLACE, Feed, Feeds, News
from app.dashboard.lists import LISTINGS
from app.db.database import Database
from app.health.rules.snapshot import WATCH
from app.kernel.access import Role
from tests.dashboard.browsers import Browser, browser
from tests.support.pools import decided
from tests.support.service import Service
from tests.support.sql import execute

_HOSTILE = '<b>"bold"</b>'


async def test_workers_are_shown_and_directed(service: Service) -> None:
    worker = await service.worker("<i>w</i>")
    await worker.beat(errors=[{"at": "2026-01-31T12:00:00Z", "message": _HOSTILE}])
    async with browser(service, Role.OPERATOR) as operator:
        page = await operator.page("/dashboard/workers")
        assert "&lt;i&gt;w&lt;/i&gt;" in page
        assert "&lt;b&gt;" in page
        assert "<b>" not in page
        assert "ends after its task" in await operator.do("drain-worker", worker_id=worker.id, reason="x")
        assert "told to drain" in await operator.page("/dashboard/workers?show=all")
        for show, is_shown in (("draining", True), ("busy", False), ("failed", False), ("nonsense", True)):
            assert (worker.id in await operator.page(f"/dashboard/workers?show={show}")) == is_shown, show
        assert (await operator.send("/dashboard/do/stop-worker", worker_id="start", reason="")).status_code == 422


async def test_a_key_of_a_namespace_sees_the_goals_of_its_own(service: Service) -> None:
    await service.post("/keys", {"role": "supervisor", "label": "x", "namespace": "theirs"})
    ours = await service.post("/keys", {"role": "supervisor", "label": "x", "namespace": "ours"})
    for namespace in ("theirs", "ours"):
        await service.post(f"/goals?namespace={namespace}", {"id": f"goal-{namespace}", "objective": "x"})
        task = {"agent_type": "ranking", "labels": {"of": namespace}}
        await service.post(f"/tasks?namespace={namespace}", task)
    async with browser(service, ours["key"]) as somebody:
        goals, tasks = await somebody.page("/dashboard/goals"), await somebody.page("/dashboard/tasks")
        assert "goal-ours" in goals
        assert "goal-theirs" not in goals
        assert len(re.findall(r"/dashboard/tasks/[0-9a-f-]{36}", tasks)) == 1
        assert 'name="namespace"' not in tasks
        assert (await somebody.get("/dashboard/goals/goal-theirs")).status_code == 404
        assert (await somebody.get("/dashboard/tasks?namespace=theirs")).status_code == 403
        for path in ("/workers", "/decisions", "/config", "/audit", "/agents"):
            assert (await somebody.get(f"/dashboard{path}")).status_code == 403, path


async def test_a_decision_is_explained_replayed_and_tried_otherwise(service: Service, database: Database) -> None:
    await service.worker()
    await decided(database)
    decision = (await service.get("/scaling/decisions"))["items"][0]
    path = f"/dashboard/decisions/{decision['id']}"
    async with browser(service, Role.READER) as somebody:
        assert path in await somebody.page("/dashboard/decisions?show=all")
        page = await somebody.page(path)
        assert decision["reasons"][0] in page
        replay = await somebody.send(f"{path}/replay")
        assert "decide exactly the same" in replay.text
        tried = await somebody.send(f"{path}/try", decision_id=str(decision["id"]), min_workers="4", max_workers="9")
        assert tried.status_code == 200
        assert "instead of" in tried.text
        wrong = await somebody.send(f"{path}/try", decision_id=str(decision["id"]), min_workers="many")
        assert wrong.status_code == 422


async def _values(somebody: Browser) -> dict[str, str]:
    """The values of the form of the configuration."""
    page = await somebody.page("/dashboard/config")
    return dict(re.findall(r'<input name="([a-z_]+\.[a-z_.]+)" value="([^"]*)"', page))


async def _max_workers(service: Service) -> Any:
    return (await service.get("/config"))["worker_pool"]["max_workers"]


async def test_a_change_of_the_configuration_is_shown_before_it_is_made(service: Service) -> None:
    former = await _max_workers(service)
    async with browser(service, Role.OPERATOR) as operator:
        values = await _values(operator)
        assert values["worker_pool.max_workers"] == str(former)
        nothing = await operator.send("/dashboard/config", of="/dashboard/config", **values)
        assert "Nothing differs" in nothing.text
        wrong = values | {"worker_pool.max_workers": "100000"}
        refused = await operator.send("/dashboard/config", of="/dashboard/config", **wrong)
        assert refused.status_code == 422
        assert 'value="100000"' in refused.text
        values["worker_pool.max_workers"] = "77"
        shown = await operator.send("/dashboard/config", of="/dashboard/config", **values)
        assert "worker_pool.max_workers" in shown.text
        assert await _max_workers(service) == former
        change = {"patch": '{"worker_pool": {"max_workers": 77}}', "version": "1", "reason": "x"}
        assert (await operator.send("/dashboard/config/apply", **change)).status_code == 303
        assert await _max_workers(service) == 77
        # Of what was in force before the change: somebody else has been quicker.
        stale = change | {"patch": '{"worker_pool": {"max_workers": 78}}'}
        assert (await operator.send("/dashboard/config/apply", **stale)).status_code == 412
        back = {"to": "1", "version": "2", "reason": "no use"}
        assert (await operator.send("/dashboard/config/rollback", **back)).status_code == 303
        assert await _max_workers(service) == former
        entry = (await service.get("/audit", action="config.rollback"))["items"][0]
        assert entry["reason"] == "no use"


async def test_a_form_of_the_configuration_changes_what_was_typed_in_it_alone(service: Service) -> None:
    async with browser(service, Role.OPERATOR) as operator:
        page = await operator.page("/dashboard/config")
        in_force = re.search(r'name="in_force" value="([^"]*)"', page)
        assert in_force
        values = await _values(operator) | {"in_force": unescape(in_force[1]), "worker_pool.max_workers": "77"}
        # Somebody else is quicker with another value.
        await service.ask("PATCH", "/config", {"worker_pool": {"min_workers": 3}}, headers={"If-Match": '"1"'})
        shown = await operator.send("/dashboard/config", of="/dashboard/config", **values)
        patch = re.search(r'name="patch" value="([^"]*)"', shown.text)
        assert patch
        assert unescape(patch[1]) == '{"worker_pool": {"max_workers": 77}}'
        # What is no number is said beside all that was typed, and what is in force now.
        wrong = values | {"worker_pool.wait_target_seconds": "soon"}
        refused = await operator.send("/dashboard/config", of="/dashboard/config", **wrong)
        assert refused.status_code == 422
        assert "soon is no number" in refused.text
        for name, value in (("max_workers", "77"), ("wait_target_seconds", "soon"), ("min_workers", "3")):
            assert f'name="worker_pool.{name}" value="{value}"' in refused.text
        for nonsense in ("", "[" * 5000, "[1]", '{"worker_pool.max_workers": [2]}'):
            answer = await operator.send("/dashboard/config", of="/dashboard/config", **values | {"in_force": nonsense})
            assert answer.status_code == 200


async def test_readers_see_the_configuration_and_cannot_change_it(service: Service) -> None:
    async with browser(service, Role.READER) as somebody:
        assert "Show what would change" not in await somebody.page("/dashboard/config")
        change = {"patch": '{"worker_pool": {"max_workers": 77}}', "version": "1", "reason": "x"}
        assert (await somebody.send("/dashboard/config/apply", **change)).status_code == 403


async def _never(viewer: Viewer, news: News) -> dict[str, str]:
    raise AssertionError("nobody follows it")


_LISTINGS = {listing.feed_path: listing for listing in LISTINGS}


async def _silence() -> Any:
    await asyncio.Event().wait()


@contextlib.asynccontextmanager
async def _stream(service: Service, role: Role, path: str) -> AsyncIterator[Any]:
    """The parts of the list at a feed, as its viewers get them."""
    scope: dict[str, Any] = {"type": "http", "method": "GET", "scheme": "http", "server": ("convener", 80)}
    address, _, query = path.partition("?")
    async with browser(service, role) as somebody:
        cookie = "; ".join(f"{name}={value}" for name, value in somebody.client.cookies.items())
        scope |= {"headers": [(b"cookie", cookie.encode())], "path": address, "query_string": query.encode()}
        viewer = await viewer_of(Request({**scope, "app": service.app, "client": ("127.0.0.1", 1)}, _silence))
        stream = tasks.stream if address.endswith("/tasks") else _LISTINGS[address].stream
        answer: Any = await stream(viewer)
        async with contextlib.aclosing(answer._parts[0]) as batches:
            yield batches


async def _until(batches: Any, text: str) -> str:
    async with asyncio.timeout(60):
        async for batch in batches:
            for message in batch.messages:
                if text in message.data:
                    return str(message.data)
    raise AssertionError("the stream has ended")


async def test_lists_of_tasks_change_without_reload_for_their_filter_alone(service: Service) -> None:
    async with _stream(service, Role.OPERATOR, "/dashboard/feeds/tasks?agent_type=ranking") as batches:
        await _until(batches, "No task matches")
        other = await service.submitted(agent_type="evolution")
        ours = await service.submitted(agent_type="ranking")
        assert other not in await _until(batches, ours)
        await service.post(f"/tasks/{ours}/cancel", {})
        await _until(batches, "cancelled")


async def test_workers_show_the_clock_of_their_lease(service: Service) -> None:
    worker = await service.worker("lab-1")
    async with _stream(service, Role.OPERATOR, "/dashboard/feeds/workers?show=live") as batches:
        assert CSRF_PLACE not in await _until(batches, "lab-1")
        task_id = await service.submitted(agent_type="ranking")
        await worker.lease()
        page = await _until(batches, task_id)
        shown = (await service.get("/workers"))["items"][0]
        moments = {datetime.fromisoformat(text) for text in re.findall(r'data-(?:since|until)="([^"]+)"', page)}
        assert moments >= {datetime.fromisoformat(shown[name]) for name in ("leased_at", "lease_expires_at")}


async def test_open_alerts_tell_when_they_were_last_looked_for(service: Service, database: Database) -> None:
    """The time stayed that of the load of the page, as if nobody had looked since."""
    moments = ["2026-01-31T12:00:00+00:00", "2026-01-31T12:05:00+00:00"]
    note = "INSERT INTO loop_ticks (duty, last_run_at, result) VALUES ($1, now(), $2) "
    note += "ON CONFLICT (duty) DO UPDATE SET result = excluded.result"
    await execute(database, note, WATCH, json.dumps({"looked_at": moments[0]}))
    async with _stream(service, Role.READER, "/dashboard/feeds/alerts") as batches:
        await _until(batches, "2026-01-31 12:00:00")
        await execute(database, note, WATCH, json.dumps({"looked_at": moments[1]}))
        await _until(batches, "2026-01-31 12:05:00")


async def test_what_an_open_page_repeats_is_recorded_once_and_refused_to_those_who_may_not(service: Service) -> None:
    config = await service.ask("GET", "/config")
    trusted = {"mode": "trusted_tester", "reason": "x"}
    await service.ask("POST", "/config/mode", trusted, headers={"If-Match": config.headers["etag"]})
    async with _stream(service, Role.OPERATOR, "/dashboard/feeds/tasks?agent_type=ranking") as batches:
        await _until(batches, "No task matches")
        for _ in range(2):
            await _until(batches, await service.submitted(agent_type="ranking"))
    assert len((await service.get("/audit", action="tasks.read"))["items"]) == 1
    async with browser(service, Role.MONITOR) as monitor:
        for path in ("/feeds/tasks", "/feeds/workers", "/feeds/alerts"):
            assert (await monitor.get(f"/dashboard{path}")).status_code == 403, path


async def test_a_feed_ends_when_its_viewer_may_see_less(service: Service) -> None:
    """It went on with signs of life, and showed for good what there was before."""
    await service.worker("lab-1")
    async with _stream(service, Role.READER, "/dashboard/feeds/workers?show=live") as batches:
        await _until(batches, "lab-1")
        await service.post("/keys", {"role": "supervisor", "label": "x", "namespace": "theirs"})
        async with asyncio.timeout(20):
            async for _ in batches:
                pass


@pytest.mark.parametrize("is_hung", [False, True])
async def test_a_list_gives_no_sign_of_life_while_it_cannot_be_looked_at(
    service: Service, monkeypatch: pytest.MonkeyPatch, is_hung: bool
) -> None:
    """Without the database pages passed for the present, with ages that went on, for as long as it was away."""
    monkeypatch.setattr(feed, "_ALIVE_SECONDS", 0.0)
    is_back = asyncio.Event()

    async def refuse(*_: Any, **__: Any) -> None:
        if is_hung:
            await is_back.wait()
        raise Refused(503, {})

    async with _stream(service, Role.OPERATOR, "/dashboard/feeds/workers?show=live") as batches, asyncio.timeout(60):
        while not await _is_alive(batches):
            pass
        with monkeypatch.context() as patch:
            patch.setattr(Api, "get", refuse)
            while await _is_alive(batches):
                pass
            assert not await _is_alive(batches)
        is_back.set()
        while not await _is_alive(batches):
            pass


async def _is_alive(batches: Any) -> bool:
    return any(message.kind == "alive" for message in (await anext(batches)).messages)


async def test_feeds_that_nobody_follows_are_not_kept_for_ever(service: Service) -> None:
    feeds = service.app.state.services[Feeds]
    async with _stream(service, Role.OPERATOR, "/dashboard/feeds/workers") as batches:
        await anext(batches)
        services = service.app.state.services
        feeds._feeds |= {
            n: Feed(services, lambda _: _never, topics=(), idle_seconds=1, slots=feeds._slots) for n in range(100)
        }
        async with _stream(service, Role.OPERATOR, "/dashboard/feeds/alerts"):
            assert [feed.is_followed for feed in feeds._feeds.values()] == [True, False]


async def test_a_change_of_the_configuration_is_tried_on_the_decisions_of_the_last_hour(
    service: Service, database: Database
) -> None:
    await service.worker()
    for _ in range(4):
        await decided(database)
    items = (await service.get("/scaling/decisions"))["items"]
    assert len(items) == 4
    async with browser(service, Role.OPERATOR) as somebody:
        answer = await somebody.send("/dashboard/config", of="/dashboard/config", **{"worker_pool.min_workers": "15"})
        assert answer.status_code == 200
        assert "4 of 4 decisions come out otherwise" in answer.text
        assert 'class="key c2">under the change' in answer.text
