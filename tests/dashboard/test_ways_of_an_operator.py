"""What an operator of many workers goes by: names, links between tasks and workers, and since when a page is so."""

import re

import pytest
from playwright.async_api import Page, expect

from app.db.database import Database
from app.kernel.access import Role
from tests.dashboard.browsers import browser
from tests.dashboard.chromium import faults, log_in, opened, overflow
from tests.support.service import Service
from tests.support.sql import execute
from tests.support.streams import Port

pytestmark = pytest.mark.slow
expect.set_options(timeout=30_000)
_MORE_THAN_A_PAGE = 120


async def _fill(database: Database, number: int) -> None:
    """So many live workers, by name before those that a test registers itself."""
    columns = "id, name, incarnation, state, labels, capabilities, requested_at, registered_at, last_seen_at"
    values = "gen_random_uuid(), 'lab-' || lpad(n::text, 4, '0'), 1, 'ready', '{}', '{ranking}', now(), now(), now()"
    await execute(
        database, f"INSERT INTO workers ({columns}) SELECT {values} FROM generate_series(1, $1::int) n", number
    )


async def _rows(page: Page) -> int:
    return await page.locator("tbody th[scope=row]").count()


async def test_a_worker_is_found_by_its_name_among_many(port: Port, database: Database) -> None:
    await _fill(database, _MORE_THAN_A_PAGE)
    name = "node 7 & <b>co</b>"
    worker = await port.service.worker(name)
    async with opened(f"http://127.0.0.1:{port.number}") as page:
        await page.set_viewport_size({"width": 390, "height": 800})
        await log_in(page, port.service.keys[Role.READER])
        await page.goto("/dashboard/workers")
        assert await _rows(page) == 100
        await expect(page.locator("tbody")).not_to_contain_text(name)
        field = page.get_by_label("Name of a worker")
        await field.fill(name)
        await field.press("Enter")
        await expect(page.locator("tbody th[scope=row]")).to_contain_text(name)
        assert await _rows(page) == 1
        assert await overflow(page) == 0
        assert await faults(page) == []
        # What comes by the stream is the same choice, and takes away nothing that is typed.
        await page.get_by_label("Name of a worker").fill("lab-00")
        await worker.beat(state="draining")
        await expect(page.locator("tbody .state")).to_have_text("draining")
        assert await _rows(page) == 1
        await expect(page.get_by_label("Name of a worker")).to_have_value("lab-00")
        await page.locator(".choices a", has_text="failed").click()
        await expect(page.locator("tbody")).to_contain_text(f"No worker of the name {name} is failed.")
        await page.locator("a", has_text="Clear").click()
        await expect(page.locator("tbody")).to_contain_text("No worker is failed.")


async def _failed_twice(service: Service) -> tuple[str, list[str]]:
    """A task of which the second worker has failed the last attempt, and the ids of its workers."""
    task_id = await service.submitted(retry={"max_attempts": 2, "delays_seconds": [0]})
    workers = []
    for name in ("lab & 1", "lab-2"):
        worker = await service.worker(name)
        error = {"code": "handler_error", "message": "no", "retryable": True}
        await worker.on_lease(await worker.lease(), "fail", error=error)
        await worker.beat(state="draining")
        workers.append(worker.id)
    return task_id, workers


async def test_a_task_leads_to_the_worker_of_each_attempt(port: Port, database: Database) -> None:
    task_id, (first, last) = await _failed_twice(port.service)
    await execute(
        database,
        "INSERT INTO workers (id, name, incarnation, state, labels, capabilities, requested_at, ended_at) "
        "SELECT gen_random_uuid(), name, 2, 'stopped', labels, capabilities, now(), now() "
        "FROM workers WHERE name = 'lab-2'",
    )
    async with opened(f"http://127.0.0.1:{port.number}") as page:
        await log_in(page, port.service.keys[Role.OPERATOR])
        path = f"/dashboard/tasks/{task_id}"
        for link, worker_id in (
            (page.locator(".timeline a", has_text="lab & 1"), first),
            (page.locator(".timeline a", has_text="lab-2").first, last),
            (page.locator(".facts a", has_text="lab-2"), last),
        ):
            await page.goto(path)
            assert await faults(page) == []
            await link.focus()
            await page.keyboard.press("Enter")
            marked = page.locator("tr[aria-current]")
            await expect(marked).to_have_id(f"worker-{worker_id}")
        # It stays so when the table is another.
        await expect(page.locator("tbody tr")).to_have_count(2)
        await execute(database, "UPDATE workers SET version = 'later' WHERE incarnation = 2")
        await expect(page.locator("tbody")).to_contain_text("later")
        await expect(marked).to_have_id(f"worker-{last}")
        assert await faults(page) == []


async def test_who_may_not_look_at_workers_is_not_led_there(port: Port, database: Database) -> None:
    ours = await port.service.post("/keys", {"role": "supervisor", "label": "x", "namespace": "ours"})
    await port.service.post("/goals?namespace=ours", {"id": "kepler", "objective": "why"})
    task = await port.service.post("/tasks?namespace=ours", {"agent_type": "ranking"})
    worker = await port.service.worker("lab-1")
    await worker.lease()
    async with browser(port.service, ours["key"]) as somebody:
        page = await somebody.page(f"/dashboard/tasks/{task['id']}")
        assert "on lab-1</span>" in page
        assert "/dashboard/workers" not in page
        await execute(database, "UPDATE tasks SET worker_id = gen_random_uuid()")
        page = await somebody.page(f"/dashboard/tasks/{task['id']}")
        assert "on a worker that is gone</span>" in page


async def test_a_page_that_stands_still_says_since_when(port: Port, database: Database) -> None:
    """Pages of an hour ago passed for the present, also while the service was away."""
    await port.service.post("/goals", {"id": "kepler", "objective": "why"})
    await _fill(database, _MORE_THAN_A_PAGE)
    still = ["goals", "goals/kepler?namespace=default", "agents", "models", "audit", "config"]
    still.append("workers?show=all&after=lab-0100%2F1")
    async with opened(f"http://127.0.0.1:{port.number}", timezone_id="Asia/Tokyo") as page:
        await log_in(page, port.service.keys[Role.ADMIN])
        for address in still:
            await page.goto(f"/dashboard/{address}")
            line = page.locator("main .still")
            await expect(line).to_contain_text("and does not change by itself")
            moment = await page.locator("body").get_attribute("data-now")
            assert moment is not None
            shown = await line.locator("time").get_attribute("datetime")
            assert shown == moment
            # In the zone of the reader.
            await expect(line.locator("time")).to_have_attribute("title", re.compile(".* UTC"))
            await line.locator("a").click()
            await page.wait_for_function("moment => document.body.dataset.now > moment", arg=moment)
            assert page.url.endswith(f"/dashboard/{address}")
        await page.goto("/dashboard/audit")
        await page.locator("button", has_text="Check the chain").click()
        await page.locator(".still a").click()
        await expect(page.locator("h1")).to_have_text("Audit log")
        for address in ("", "/workers", "/tasks", "/alerts", "/decisions"):
            await page.goto(f"/dashboard{address}")
            await expect(page.locator(".still")).to_have_count(0)


async def test_the_page_of_a_task_tells_when_it_is_leased_and_tried_again(port: Port) -> None:
    """It said that the task waits, and why, above the output of the worker that ran it."""
    service = port.service
    task_id = await service.submitted(retry={"max_attempts": 2, "delays_seconds": [0]})
    async with opened(f"http://127.0.0.1:{port.number}") as page:
        await log_in(page, service.keys[Role.OPERATOR])
        async with page.expect_request("**/output?*"):
            await page.goto(f"/dashboard/tasks/{task_id}")
        await expect(page.locator("main")).to_contain_text("Why it waits")
        for name in ("lab-1", "lab-2"):
            worker = await service.worker(name)
            lease = await worker.lease()
            piece = {"stream": "stdout", "start": 0, "text": f"of {name}\n"}
            answer = await worker.ask(f"/leases/{task_id}/logs", {"token": lease["token"], "pieces": [piece]})
            assert answer.status_code == 204, answer.text
            await expect(page.locator("#output")).to_contain_text(f"of {name}")
            await expect(page.locator(".facts a", has_text=name)).to_have_count(1)
            await expect(page.locator("main")).not_to_contain_text("Why it waits")
            await expect(page.locator("h1 .state")).to_have_text("executing")
            if name == "lab-1":
                error = {"code": "handler_error", "message": "no", "retryable": True}
                await worker.on_lease(lease, "fail", error=error)
                await worker.beat(state="draining")
        # A form that is open stays, and what is typed there.
        await page.locator("summary", has_text="Cancel").click()
        await page.locator("form input[name=reason]").fill("half a sent")
        await worker.on_lease(lease, "complete", result={})
        await expect(page.locator("#main")).to_have_class("held")
        await expect(page.locator("form input[name=reason]")).to_have_value("half a sent")
        await page.keyboard.press("Escape")
        await expect(page.locator("h1 .state")).to_have_text("completed")
