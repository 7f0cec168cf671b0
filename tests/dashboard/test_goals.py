"""Goals: their list, what one has reached against what it cost, why it goes on or not, and the orders for it."""

import re
from html import unescape
from typing import Any

import pytest

from app.dashboard.charts import axis
from app.dashboard.goals import quality_chart
from app.db.database import Database
from app.goals.service.budget_enforcement import enforce_budgets
from app.kernel.access import Role
from tests.dashboard.browsers import browser
from tests.support.permit_calls import acquired, allow_many, settled
from tests.support.service import Service

_HOSTILE = "<img src=x onerror=alert(1)>\"'"


async def _goal(service: Service, goal_id: str, **fields: Any) -> None:
    await service.post("/goals", {"id": goal_id, "objective": f"to know {goal_id}"} | fields)


async def _reported(service: Service, goal_id: str, *qualities: float) -> None:
    for number, quality in enumerate(qualities, 1):
        await service.post(f"/goals/{goal_id}/iterations", {"iteration": number, "quality": quality, "money": 1.5})


async def test_the_list_leads_through_all_goals_by_state(service: Service) -> None:
    names = [f"goal-{number:02}" for number in range(53)]
    for name in names:
        await _goal(service, name)
    await service.post("/goals/goal-07/pause", {"reason": "the cluster is needed"})
    async with browser(service, Role.READER) as somebody:
        first = await somebody.page("/dashboard/goals")
        following = re.search(r'href="([^"]+)" rel="next"', first)
        assert following
        second = await somebody.page(following[1].replace("&amp;", "&"))
        shown = [re.findall(r'/dashboard/goals/(goal-\d+)"', page) for page in (first, second)]
        assert [len(page) for page in shown] == [50, 3]
        assert shown[0] + shown[1] == names
        paused = await somebody.page("/dashboard/goals?state=paused")
        assert re.findall(r'/dashboard/goals/(goal-\d+)"', paused) == ["goal-07"]
        assert "the cluster is needed" in paused
        assert (await somebody.get("/dashboard/goals?state=lost")).status_code == 422


async def test_a_task_leads_to_its_goal_and_the_goal_to_its_tasks(service: Service) -> None:
    await _goal(service, "kepler")
    task = await service.submitted(goal_id="kepler")
    async with browser(service, Role.READER) as somebody:
        for path in ("/dashboard/tasks", f"/dashboard/tasks/{task}"):
            assert '<a href="/dashboard/goals/kepler">kepler</a>' in await somebody.page(path)
        assert "/dashboard/tasks?goal_id=kepler" in await somebody.page("/dashboard/goals/kepler")
        # One that nobody has created is no goal yet, but its tasks are there.
        await service.submitted(goal_id="tycho")
        answer = await somebody.get("/dashboard/goals/tycho")
        assert (answer.status_code, answer.headers["location"]) == (303, "/dashboard/tasks?goal_id=tycho")
        assert (await somebody.get("/dashboard/goals/nobody")).status_code == 404


async def test_the_page_of_a_goal_says_what_it_reached_and_what_is_left(service: Service) -> None:
    await _goal(service, "kepler", constraints={"money_budget": 5, "max_iterations": 30})
    await _reported(service, "kepler", 1200, 1260, 1240)
    async with browser(service, Role.READER) as somebody:
        page = await somebody.page("/dashboard/goals/kepler")
    assert "to know kepler" in page
    assert "quality of 3 iterations: from 1,200.00 to 1,240.00; the best in iteration 2" in page
    assert "$4.50" in page
    assert "$5.00" in page
    assert ">90 %<" in page
    # The notice is that of the API.
    goal = await service.get("/goals/kepler")
    for notice in goal["notices"]:
        assert notice in page
    assert goal["last_decision"]["reason"].replace("'", "&#39;") in page
    assert len(re.findall(r'<path class="dot main"', page)) == 3


async def test_a_goal_that_waits_for_its_budget_says_so_of_the_budget(service: Service, database: Database) -> None:
    """It said that it waits for its budget, as it had improved by so much."""
    await allow_many(service, database)
    await _goal(service, "kepler", constraints={"money_budget": 0.001})
    for number in (1, 2):
        await service.post("/goals/kepler/iterations", {"iteration": number, "quality": number})
    await settled(service, await acquired(service, goal_id="kepler"), prompt_tokens=400, completion_tokens=500)
    async with database.transaction() as connection:
        await enforce_budgets(connection)
    goal = await service.get("/goals/kepler")
    async with browser(service, Role.READER) as somebody:
        verdict = (await somebody.page("/dashboard/goals/kepler")).split('aria-label="Why">')[1].split("</section>")[0]
    assert re.findall("<p>(.*?)</p>", verdict) == ["<strong>It waits for its budget</strong>"]
    lines = [unescape(line) for line in re.findall("<li>(.*?)</li>", verdict)]
    assert lines[0] == f"After the last iteration: continue, {goal['last_decision']['reason']}"
    assert goal["notices"]
    assert [line.partition("</span> ")[2] for line in lines[1:]] == goal["notices"]


async def test_many_iterations_are_drawn_and_the_last_are_listed(service: Service) -> None:
    await _goal(service, "long", constraints={"max_iterations": 1000, "patience": 1000})
    await _reported(service, "long", *range(1000, 1030))
    async with browser(service, Role.READER) as somebody:
        page = await somebody.page("/dashboard/goals/long")
        assert len(re.findall(r'<th scope="row" class="n">', page)) == 25
        assert (
            len(re.findall(r'<th scope="row" class="n">', await somebody.page("/dashboard/goals/long?iterations=all")))
            == 30
        )


async def test_orders_for_a_goal_are_carried_out_with_their_reasons(service: Service) -> None:
    await _goal(service, "kepler")
    async with browser(service, Role.SUPERVISOR) as somebody:
        on = {"goal_id": "kepler", "namespace": "default"}
        assert await somebody.do("pause-goal", **on, reason="a look") == "kepler is paused; running tasks go on."
        page = await somebody.page("/dashboard/goals/kepler")
        assert "<strong>It is paused</strong>: a look" in page
        assert "/do/resume-goal" in page
        assert "/do/pause-goal" not in page
        assert (await somebody.do("resume-goal", **on, reason="on")).startswith("kepler goes on")
        assert "name at least one limit" in await somebody.do("extend-goal", **on, reason="x")
        assert "must be a number" in await somebody.do("extend-goal", **on, money_budget="much")
        limits = {"compute_budget_seconds": "3600", "max_iterations": "12", "reason": "nearly there"}
        assert "has other limits" in await somebody.do("extend-goal", **on, **limits)
        assert "has stopped" in await somebody.do("stop-goal", **on, reason="answered")
        stopped = await somebody.page("/dashboard/goals/kepler")
        assert "<strong>It has stopped</strong>: answered" in stopped
        assert "/do/" not in stopped.split('id="main"')[1].replace("/do/log", "")
    goal = await service.get("/goals/kepler")
    assert goal["constraints"] == {"compute_budget_seconds": 3600.0, "max_iterations": 12}
    reasons = {entry["action"]: entry["reason"] for entry in (await service.get("/audit"))["items"]}
    assert (reasons["goal.paused"], reasons["goal.extended"]) == ("a look", "nearly there")
    assert (reasons["goal.resumed"], reasons["goal.stopped"]) == ("on", "answered")


async def test_who_may_only_read_is_offered_no_orders(service: Service) -> None:
    await _goal(service, "kepler")
    async with browser(service, Role.READER) as reader:
        assert "/do/" not in await reader.page("/dashboard/goals/kepler")
        assert "does not include" in await reader.do("stop-goal", goal_id="kepler", namespace="default", reason="x")
    assert (await service.get("/goals/kepler"))["state"] == "running"


async def test_words_about_goals_are_text(service: Service) -> None:
    name = "<b>&?#'\""
    await _goal(service, name, objective=_HOSTILE)
    async with browser(service, Role.ADMIN) as admin:
        listing = await admin.page("/dashboard/goals")
        (address,) = re.findall(r'href="(/dashboard/goals/[^"]+)"', listing)
        page = await admin.page(address)
        assert "<b>" not in listing + page
        assert "<img" not in listing + page
        assert "is paused" in await admin.do("pause-goal", goal_id=name, namespace="default", reason=_HOSTILE)
        assert "<img" not in await admin.page(address)
        assert (await admin.get("/dashboard/goals/none")).status_code == 404


async def test_goals_of_another_namespace_are_reached_by_those_of_the_whole_service_alone(service: Service) -> None:
    theirs = await service.post("/keys", {"role": "supervisor", "label": "x", "namespace": "theirs"})
    ours = await service.post("/keys", {"role": "supervisor", "label": "x", "namespace": "ours"})
    await service.post("/goals", {"id": "kepler", "objective": "to know theirs"}, key=theirs["key"])
    async with browser(service, Role.ADMIN) as admin, browser(service, ours["key"]) as other:
        (address,) = re.findall(r'href="(/dashboard/goals/[^"]+)"', await admin.page("/dashboard/goals"))
        assert "to know theirs" in await admin.page(address)
        assert "kepler" not in await other.page("/dashboard/goals")
        assert (await other.get("/dashboard/goals/kepler")).status_code == 404
        assert (await other.get(address)).status_code == 403
        assert "is paused" in await admin.do("pause-goal", goal_id="kepler", namespace="theirs", reason="x")
    async with browser(service, theirs["key"]) as owner:
        assert "It is paused" in await owner.page("/dashboard/goals/kepler")


@pytest.mark.parametrize(
    ("low", "high", "labels"),
    [
        (0, 10, ["0.0", "2.5", "5.0", "7.5", "10.0"]),
        (1183, 1291, ["1,150", "1,200", "1,250", "1,300"]),
        (0, 0, ["0.00", "0.25"]),
        (0.81, 0.83, ["0.810", "0.815", "0.820", "0.825", "0.830"]),
        (-1e12, 1e12, ["-1,000,000,000,000", "-500,000,000,000", "0", "500,000,000,000", "1,000,000,000,000"]),
        (5, 5, ["4", "6"]),
    ],
)
def test_axes_have_round_labels_and_both_ends(low: float, high: float, labels: list[str]) -> None:
    scale = axis(low, high)
    assert scale.low <= low <= high <= scale.high
    assert list(scale.labels) == labels


def test_numbers_that_floats_hardly_tell_apart_have_an_axis() -> None:
    scale = axis(1e12, 1e12 + 1e-4)
    assert scale.low <= 1e12 < scale.high
    assert 2 <= len(scale.labels) <= 10


def test_the_budget_is_drawn_where_it_is_near() -> None:
    iterations = [
        {"iteration": number, "quality": 1.0, "top_quality": None, "compute_seconds": 60.0 * number}
        for number in (1, 2)
    ]
    for budget, is_drawn in ((200.0, True), (1000.0, False), (None, False)):
        chart = quality_chart({"constraints": {"compute_budget_seconds": budget}}, iterations)
        assert chart
        assert (chart.limit is not None) == is_drawn
    assert quality_chart({"constraints": {}}, iterations[:1]) is None
