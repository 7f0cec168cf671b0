"""The list of tasks: filters in the address, pages, and orders for all that match."""

import re

import pytest

from app.db.database import Database
from app.kernel.access import Role
from tests.dashboard.browsers import Browser, browser
from tests.support.service import Service
from tests.support.sql import fetch


async def test_the_filter_in_the_address_selects(service: Service) -> None:
    ours = await service.submitted(agent_type="ranking", goal_id="kepler", labels={"team": "a"})
    other = await service.submitted(agent_type="generation")
    async with browser(service, Role.READER) as somebody:
        for query, is_shown in (
            ("", (True, True)),
            ("?agent_type=ranking", (True, False)),
            ("?goal_id=kepler", (True, False)),
            ("?label=team:a", (True, False)),
            ("?state=waiting", (True, True)),
            ("?state=running", (False, False)),
            ("?state=pending&agent_type=generation", (False, True)),
        ):
            page = await somebody.page(f"/dashboard/tasks{query}")
            assert tuple(f'/tasks/{task}"' in page for task in (ours, other)) == is_shown, query
        wrong = await somebody.get("/dashboard/tasks?label=x")
        assert wrong.status_code == 422
        assert "must be key:value" in wrong.text


async def test_pages_lead_to_every_task_once(service: Service) -> None:
    tasks = {await service.submitted() for _ in range(60)}
    async with browser(service, Role.READER) as somebody:
        first = await somebody.page("/dashboard/tasks?state=live")
        following = re.search(r'href="([^"]+)" rel="next"', first)
        assert following
        second = await somebody.page(following[1].replace("&amp;", "&"))
        shown = [re.findall(r'/dashboard/tasks/([0-9a-f-]{36})"', page) for page in (first, second)]
        assert [len(page) for page in shown] == [50, 10]
        assert set(shown[0] + shown[1]) == tasks


async def _count(somebody: Browser, name: str, **filters: str) -> int:
    """The number of tasks that the page for an order asks about."""
    answer = await somebody.send("/dashboard/tasks/order", order=name, **filters)
    assert answer.status_code == 200, answer.text
    count = re.search(r'name="count" value="(\d+)"', answer.text)
    return int(count[1]) if count else 0


async def test_the_number_shown_is_the_number_changed(service: Service, database: Database) -> None:
    for _ in range(3):
        await service.submitted(agent_type="ranking")
    await service.submitted(agent_type="proximity")
    async with browser(service, Role.SUPERVISOR) as somebody:
        order = {"order": "cancel", "agent_type": "ranking", "reason": "no use"}
        assert await _count(somebody, "cancel", agent_type="ranking", state="waiting") == 3
        await service.submitted(agent_type="ranking")
        answer = await somebody.send("/dashboard/tasks/order", count="3", **order)
        assert "The number has changed from 3 to 4" in answer.text
        assert await fetch(database, "SELECT FROM task_history") == []
        answer = await somebody.send("/dashboard/tasks/order", count="4", **order)
        page = await somebody.page(answer.headers["location"])
        assert "4 tasks of 4 cancelled." in page
    assert len(await fetch(database, "SELECT FROM task_history WHERE state = 'cancelled'")) == 4
    assert len(await fetch(database, "SELECT FROM tasks")) == 1
    assert (await service.get("/audit", action="tasks.cancel"))["items"][0]["reason"] == "no use"


@pytest.mark.parametrize(
    ("role", "query", "orders"),
    [
        (Role.READER, "", set()),
        (Role.SUPERVISOR, "", {"cancel"}),
        (Role.SUPERVISOR, "?state=failed", {"requeue", "forget"}),
        (Role.SUPERVISOR, "?state=completed", set()),
        # There is no such filter for cancelling: all others would be cancelled as well.
        (Role.SUPERVISOR, "?code=x", set()),
        (Role.SUPERVISOR, "?state=failed&priority=low", set()),
    ],
)
async def test_orders_are_offered_where_they_understand_the_whole_filter(
    service: Service, role: Role, query: str, orders: set[str]
) -> None:
    async with browser(service, role) as somebody:
        page = await somebody.page(f"/dashboard/tasks{query}")
        assert set(re.findall(r'name="order" value="(\w+)"', page)) == orders
        answer = await somebody.send("/dashboard/tasks/order", order="cancel", code="x")
        assert answer.status_code == 422
