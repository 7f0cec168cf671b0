"""The list of tasks: filters in the address, pages, and orders for all that match."""

import re
from html import unescape
from typing import Any

import pytest

from app.dashboard import tasks
from app.dashboard.api_calls import Api, Refused
from app.db.database import Database
from app.kernel.access import Role
from tests.dashboard.browsers import Browser, browser
from tests.support.service import Service
from tests.support.sql import execute, fetch


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
        # A goal of another namespace is selected together with that alone.
        assert 'name="namespace"' in page
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
        assert 'name="reason" value="no use"' in answer.text
        assert await fetch(database, "SELECT FROM task_history") == []
        answer = await somebody.send("/dashboard/tasks/order", count="4", **order)
        page = await somebody.page(answer.headers["location"])
        assert "4 tasks of 4 cancelled." in page
    assert len(await fetch(database, "SELECT FROM task_history WHERE state = 'cancelled'")) == 4
    assert len(await fetch(database, "SELECT FROM tasks")) == 1
    assert (await service.get("/audit", action="tasks.cancel"))["items"][0]["reason"] == "no use"


async def test_an_order_for_fewer_tasks_than_were_agreed_to_is_carried_out(
    service: Service, database: Database
) -> None:
    """Else a queue that workers empty could not be cancelled: the number would change before each confirmation."""
    for _ in range(3):
        await service.submitted(agent_type="ranking")
    order = {"order": "cancel", "agent_type": "ranking", "state": "waiting"}
    async with browser(service, Role.SUPERVISOR) as somebody:
        assert await _count(somebody, "cancel", agent_type="ranking", state="waiting") == 3
        await (await service.worker()).lease()
        answer = await somebody.send("/dashboard/tasks/order", count="3", **order)
        assert "2 tasks of 2 cancelled." in await somebody.page(answer.headers["location"])
        for count in ("3", "many", "9" * 5000):
            assert "Nothing matches" in (await somebody.send("/dashboard/tasks/order", count=count, **order)).text
    assert [row["state"] for row in await fetch(database, "SELECT state FROM tasks")] == ["executing"]


async def test_an_order_that_is_refused_halfway_tells_of_what_it_has_done(
    service: Service, database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The page said that nothing was changed."""
    for _ in range(3):
        await service.submitted(agent_type="ranking")
    monkeypatch.setattr(tasks, "_BATCH", 2)
    orders, send = 0, tasks._send

    async def refusing(*place: Any, **options: Any) -> Any:
        nonlocal orders
        orders += not options["dry_run"]
        if orders == 3:
            raise Refused(503, {"detail": "the database is away"})
        return await send(*place, **options)

    monkeypatch.setattr(tasks, "_send", refusing)
    order = {"order": "cancel", "agent_type": "ranking", "state": "waiting", "count": "3", "reason": "x"}
    async with browser(service, Role.SUPERVISOR) as somebody:
        answer = await somebody.send("/dashboard/tasks/order", **order)
        page = await somebody.page(answer.headers["location"])
    assert "2 tasks of 3 cancelled. Then that was refused: the database is away." in page
    assert len(await fetch(database, "SELECT FROM task_history WHERE state = 'cancelled'")) == 2


@pytest.mark.parametrize(("status", "is_certain"), [(409, True), (503, False)])
async def test_nothing_is_said_to_be_unchanged_where_that_is_not_known(
    service: Service, monkeypatch: pytest.MonkeyPatch, status: int, is_certain: bool
) -> None:
    ask = Api.ask

    async def refuse(self: Api, method: str, *call: Any, **options: Any) -> Any:
        answer = await ask(self, method, *call, **options)
        if method == "POST":
            raise Refused(status, {"detail": "no"})
        return answer

    async with browser(service, Role.OPERATOR) as operator:
        with monkeypatch.context() as patch:
            patch.setattr(Api, "ask", refuse)
            answer = await operator.send("/dashboard/do/pause-queue", agent="ranking", reason="x")
        assert answer.status_code == status
        assert ("nothing was changed" in answer.text) == is_certain
        assert ("look before you repeat it" in answer.text) != is_certain


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


async def test_a_task_tells_its_story_and_why_it_waits(service: Service) -> None:
    hostile = "<b>x</b>"
    task_id = await service.submitted(agent_type="ranking", payload={"topic": hostile})
    await service.post("/queues/ranking/pause", {"reason": "a look"})
    async with browser(service, Role.OPERATOR) as operator:
        path = f"/dashboard/tasks/{task_id}"
        page = await operator.page(path)
        assert "the queue of ranking is paused" in page
        # The advice has its button.
        assert "/dashboard/do/resume-queue" in page
        assert "&lt;b&gt;" in page
        assert "<b>" not in page
        assert await operator.do("resume-queue", agent="ranking", reason="") == "ranking is leased again."
        worker = await service.worker()
        lease = await worker.lease()
        piece = {"stream": "stderr", "start": 0, "text": hostile}
        await worker.ask(f"/leases/{task_id}/logs", {"token": lease["token"], "pieces": [piece]})
        page = await operator.page(path)
        assert 'class="stderr"' in page
        assert "<b>" not in page
        assert f"{path}/output?after=" in page
        error = {"code": "bad_input", "message": hostile, "retryable": False}
        await worker.on_lease(lease, "fail", error=error)
        page = await operator.page(path)
        assert "bad_input" in page
        assert "<b>" not in page
        assert page.count('action="/dashboard/do/requeue-task"') == 1, "beside the advice to do it"
        async with browser(service, Role.READER) as reader:
            assert 'class="acts' not in await reader.page(path), "an empty box"
        assert "in the queue again" in await operator.do("requeue-task", task_id=task_id, reason="x")
        assert "is cancelled" in await operator.do("cancel-task", task_id=task_id, reason="x")
        assert (await operator.get("/dashboard/tasks/00000000-0000-0000-0000-000000000007")).status_code == 404


async def test_each_attempt_shows_the_details_of_its_error(service: Service) -> None:
    """A traceback as lines, not as a string of JSON."""
    task_id = await service.submitted()
    worker = await service.worker()
    detail = {"traceback": 'Traceback:\n  File "<x>", line 1', "exit": {"code": 3}}
    error = {"code": "handler_error", "message": "KeyError", "retryable": False, "detail": detail}
    await worker.on_lease(await worker.lease(), "fail", error=error)
    async with browser(service, Role.READER) as reader:
        timeline = (await reader.page(f"/dashboard/tasks/{task_id}")).partition('aria-label="Timeline"')[2]
    shown = re.findall(r"<summary>(.*?)</summary><pre[^>]*>\n(.*?)</pre>", timeline.partition("</ol>")[0], re.DOTALL)
    assert {name: unescape(text) for name, text in shown} == {
        "traceback": detail["traceback"],
        "exit": '{\n  "code": 3\n}',
    }


async def test_the_output_goes_on_until_the_end(service: Service) -> None:
    task_id = await service.submitted()
    worker = await service.worker()
    lease = await worker.lease()
    async with browser(service, Role.READER) as somebody:
        page = await somebody.page(f"/dashboard/tasks/{task_id}")
        following = re.search(r'hx-get="([^"]+)"', page)
        assert following
        piece = {"stream": "stdout", "start": 0, "text": "hello"}
        await worker.ask(f"/leases/{task_id}/logs", {"token": lease["token"], "pieces": [piece]})
        more = await somebody.get(following[1].replace("&amp;", "&"))
        assert "hello" in more.text
        await worker.on_lease(lease, "complete", result={})
        following = re.search(r'hx-get="([^"]+)"', more.text)
        assert following
        last = await somebody.get(following[1].replace("&amp;", "&"))
        assert last.headers["hx-refresh"] == "true"
        assert "hx-get" not in last.text
        # It would load itself again and again.
        assert "hx-get" not in await somebody.page(f"/dashboard/tasks/{task_id}")


async def test_output_is_shown_as_it_was_written(service: Service) -> None:
    """Also a line of which a half came later, and the lines of which each came by itself."""
    task_id = await service.submitted()
    worker = await service.worker()
    token = (await worker.lease())["token"]
    texts = ['{"a": ', '"b"}\n', "next\n"]
    async with browser(service, Role.READER) as reader:
        seen = ""
        page = await reader.page(f"/dashboard/tasks/{task_id}")
        for number, (stream, text) in enumerate(zip(("stdout", "stderr", "stdout"), texts, strict=True)):
            start = len(texts[0]) if number == 2 else 0
            piece = {"stream": stream, "start": start, "text": text}
            await worker.ask(f"/leases/{task_id}/logs", {"token": token, "pieces": [piece]})
            following = re.search(r'hx-get="([^"]+)"', page)
            assert following
            page = await reader.page(unescape(following[1]))
            seen += _text(page)
        assert seen == "".join(texts)
        whole = (await reader.page(f"/dashboard/tasks/{task_id}")).split('role="log">')[1].split("</pre>")[0]
    assert sorted(_text(whole)) == sorted("".join(texts))


def _text(html: str) -> str:
    """What a browser shows of an output, but for the link that waits for more."""
    return unescape(re.sub(r"<[^>]+>", "", re.sub(r"<a .*?</a>", "", html)))


@pytest.mark.parametrize(("pieces", "is_cut"), [(400, False), (700, True)])
async def test_of_a_long_output_the_page_says_that_there_is_more(
    service: Service, database: Database, pieces: int, is_cut: bool
) -> None:
    task_id = await service.submitted()
    await service.post(f"/tasks/{task_id}/cancel")
    insert = "INSERT INTO task_logs (task_id, token, attempt, stream, start, ending, text, at)"
    rows = "SELECT CAST($1 AS uuid), 1, 1, 'stdout', n, n + 1, '.', now() FROM generate_series(0, $2::int - 1) n"
    await execute(database, f"{insert} {rows}", task_id, pieces)
    async with browser(service, Role.READER) as reader:
        page = await reader.page(f"/dashboard/tasks/{task_id}")
    assert (f"<code>convener tasks logs {task_id}</code>" in page) == is_cut


async def test_the_input_is_edited_and_submitted_again_once(service: Service, database: Database) -> None:
    task_id = await service.submitted(agent_type="ranking", payload={"n": 1}, labels={"team": "a"}, priority="high")
    async with browser(service, Role.SUPERVISOR) as somebody:
        page = await somebody.page(f"/dashboard/tasks/{task_id}/edit")
        once = re.search(r'name="once" value="([^"]+)"', page)
        assert once
        fields = {"once": once[1], "agent_type": "ranking", "priority": "high", "labels": '{"team": "a"}'}
        wrong = await somebody.send(f"/dashboard/tasks/{task_id}/submit", payload='{"n": ', **fields)
        assert wrong.status_code == 422
        assert "is not JSON" in wrong.text
        for _ in range(2):
            answer = await somebody.send(f"/dashboard/tasks/{task_id}/submit", payload='{"n": 2}', **fields)
            assert answer.status_code == 303, answer.text
        task = await service.get(answer.headers["location"].replace("/dashboard", ""))
        assert (task["payload"], task["labels"], task["priority"]) == ({"n": 2}, {"team": "a"}, "high")
    assert len(await fetch(database, "SELECT FROM tasks")) == 2
