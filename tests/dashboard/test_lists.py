"""The other pages: each shows what is there, and its orders do what the API does."""

import re
from typing import Any

from app.db.database import Database
from app.kernel.access import Role
from tests.dashboard.browsers import Browser, browser
from tests.support.pools import decided
from tests.support.service import Service

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


async def test_readers_see_the_configuration_and_cannot_change_it(service: Service) -> None:
    async with browser(service, Role.READER) as somebody:
        assert "Show what would change" not in await somebody.page("/dashboard/config")
        change = {"patch": '{"worker_pool": {"max_workers": 77}}', "version": "1", "reason": "x"}
        assert (await somebody.send("/dashboard/config/apply", **change)).status_code == 403
