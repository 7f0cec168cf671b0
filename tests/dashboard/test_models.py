"""Models: the state and limits of each, what calls came to by model, agent and goal, and the orders for them."""

import re
from html import unescape
from typing import Any

from app.dashboard.rendering import NOTHING
from app.db.database import Database
from app.kernel.access import Role
from tests.dashboard.browsers import browser
from tests.support.permit_calls import acquired, settled
from tests.support.service import Service
from tests.support.sql import execute

_MODEL = "argo:gpt/4.1"
_HOSTILE = "<img src=x onerror=alert(1)>\"'"


async def _listed(service: Service, model: str = _MODEL, **limits: Any) -> None:
    answer = await service.ask("PUT", f"/llm/models/{model}", limits, headers={"If-Match": '"0"'})
    assert answer.status_code == 200, answer.text


def _table(page: str, label: str) -> list[list[str]]:
    """The cells of each row of a table."""
    body = page.split(f'<section class="panel" aria-label="{label}">')[1].split("</section>")[0].split("<tbody>")[1]
    rows = [re.findall(r"<t[hd][^>]*>(.*?)</t[hd]>", row, re.DOTALL) for row in body.split("</tr>") if "<td" in row]
    return [[re.sub(r"<[^>]+>", "", cell).strip() for cell in row] for row in rows]


async def test_calls_are_told_by_model_agent_and_goal_with_429s_and_costs(service: Service) -> None:
    prices: dict[str, Any] = {"input_price_per_million_tokens": 1_000_000, "output_price_per_million_tokens": 0}
    await _listed(service, max_concurrency=30, **prices)
    for outcome, goal in (("success", "kepler"), ("success", None), ("rate_limited", "kepler"), ("timeout", "kepler")):
        permit = await acquired(service, model=_MODEL, goal_id=goal)
        await settled(service, permit, outcome, prompt_tokens=2, completion_tokens=1)
    await acquired(service, Role.OPERATOR, model=_MODEL, goal_id="kepler", estimated_tokens=77)
    async with browser(service, Role.READER) as reader:
        page = await reader.page("/dashboard/models")
    usage = {by: (await service.get("/llm/usage", by=by))["items"] for by in ("model", "agent", "goal")}
    assert [row[:5] for row in _table(page, "Calls by model")] == [[_MODEL, "4", "50 %", "1", "1"]]
    assert [row[:5] for row in _table(page, "Calls by agent")] == [["ranking", "4", "50 %", "1", "1"]]
    goals = {row[0]: row[1:5] for row in _table(page, "Calls by goal")}
    assert goals == {"kepler": ["3", "33 %", "1", "1"], "none": ["1", "100 %", "0", "0"]}
    assert 'href="/dashboard/goals/kepler?namespace=default"' in page
    for by, items in usage.items():
        assert [row[7] for row in _table(page, f"Calls by {by}")] == [f"${item['cost_usd']:,.2f}" for item in items]
    assert re.search(r">1 . 429<", page)
    (model,) = (await service.get("/llm/models"))["items"]
    assert f"of {model['limit']:,} that its service was seen to bear, 30 allowed" in page
    (permit,) = _table(page, "Permits")
    assert permit[:6] == [_MODEL, "ranking", "medium", "kepler", NOTHING, "77"]


async def test_a_model_was_last_used_when_it_was_called(service: Service) -> None:
    await _listed(service)
    model = await service.get(f"/llm/models/{_MODEL}")
    assert (model["is_listed"], model["used_at"]) == (True, None)
    async with browser(service, Role.READER) as reader:
        assert "last used never" in await reader.page("/dashboard/models")
        permit = await acquired(service, model=_MODEL)
        under_way = (await service.get(f"/llm/models/{_MODEL}"))["used_at"]
        assert under_way is not None
        assert "last used never" not in await reader.page("/dashboard/models")
    await settled(service, permit)
    assert (await service.get("/llm/models"))["items"][0]["used_at"] > under_way


async def test_the_state_of_a_key_is_told_and_reset_with_the_reason(service: Service) -> None:
    await _listed(service)
    permit = await acquired(service, model=_MODEL)
    await settled(service, permit, "client_error", status=401)
    async with browser(service, Role.OPERATOR) as operator, browser(service, Role.READER) as reader:
        assert '<span class="state key_expired">' in await operator.page("/dashboard/models")
        assert "/do/" not in await reader.page("/dashboard/models")
        assert "does not include" in await reader.do("reset-model", model=_MODEL, reason="x")
        assert await operator.do("reset-model", model=_MODEL, reason="a new key") == f"{_MODEL} starts as a new one."
        assert '<span class="state ok">' in await operator.page("/dashboard/models")
    assert (await service.get("/audit", action="llm_model.reset"))["items"][0]["reason"] == "a new key"


async def test_a_model_is_allowed_limited_and_removed(service: Service) -> None:
    async with browser(service, Role.OPERATOR) as operator:
        assert "no permit is granted" in await operator.page("/dashboard/models")
        limits = {"max_concurrency": "4", "window_seconds": "60", "fallback_models": "b, c", "reason": "a new gateway"}
        allowed = {"model": _MODEL, "version": "0"} | limits
        assert "Permits are granted" in await operator.do("set-model", **allowed)
        model = await service.get(f"/llm/models/{_MODEL}")
        assert (model["max_concurrency"], model["fallback_models"], model["burst"]) == (4, ["b", "c"], None)
        # Somebody else has set them since the page was loaded.
        assert "/do/set-model" in await operator.page("/dashboard/models")
        assert "version" in await operator.do("set-model", **allowed | {"max_concurrency": "9"})
        assert (await service.get(f"/llm/models/{_MODEL}"))["max_concurrency"] == 4
        later = allowed | {"version": str(model["version"]), "max_concurrency": "9"}
        assert "Permits are granted" in await operator.do("set-model", **later)
        assert "must be a whole number" in await operator.do("set-model", **later | {"burst": "many"})
        assert "No permits" in await operator.do("remove-model", model=_MODEL, reason="gone")
    assert (await service.get("/llm/models"))["items"] == []
    actions = {entry["action"]: entry["reason"] for entry in (await service.get("/audit"))["items"]}
    assert (actions["llm_model.set"], actions["llm_model.remove"]) == ("a new gateway", "gone")


async def test_pages_lead_to_every_budget(service: Service, database: Database) -> None:
    insert = "INSERT INTO llm_budgets (scope, name, money_budget, period) SELECT 'key', 'key-' || n, 3, 'total'"
    await execute(database, f"{insert} FROM generate_series(100, 159) n")
    seen: list[str] = []
    async with browser(service, Role.READER) as reader:
        address: str | None = "/dashboard/models?span=day"
        while address:
            page = await reader.page(address)
            seen += [row[0] for row in _table(page, "Budgets")]
            following = re.search(r'href="([^"]+)" rel="next">More budgets', page)
            address = unescape(following[1]) if following else None
    assert seen == [f"key key-{n}" for n in range(100, 160)]


async def test_a_model_in_trouble_is_on_the_first_page_however_many_there_are(
    service: Service, database: Database
) -> None:
    insert = "INSERT INTO llm_models (model, version, concurrency, cause, open_until)"
    rows = "SELECT 'model-' || n, 1, 1, CASE WHEN n = 159 THEN 'quota_exhausted' END, CASE WHEN n = 159 THEN now() END"
    await execute(database, f"{insert} {rows} FROM generate_series(100, 159) n")
    await execute(database, "UPDATE llm_models SET open_until = now() + interval '1 h' WHERE model = 'model-159'")
    async with browser(service, Role.READER) as reader:
        page = await reader.page("/dashboard")
    attention, models = page.split('id="attention"')[1].split('id="agents"')[0], page.split('id="models"')[1]
    assert "the model model-159: quota exhausted" in attention
    assert re.findall(r'<th scope="row">(.*?)</th>', models) == ["model-159", *(f"model-{n}" for n in range(100, 149))]
    assert "50 of 60, those that are not ok first" in models


async def test_names_of_models_goals_and_budgets_are_text(service: Service) -> None:
    await _listed(service, "<b>m</b>", fallback_models=[_HOSTILE])
    permit = await acquired(service, model="<b>m</b>", goal_id=_HOSTILE)
    await acquired(service, model="<b>m</b>", goal_id=_HOSTILE)
    await settled(service, permit)
    async with browser(service, Role.ADMIN) as admin:
        page = await admin.page("/dashboard/models?span=week")
        assert "<b>" not in page
        assert "<img" not in page
        assert "&lt;img src=x" in page
