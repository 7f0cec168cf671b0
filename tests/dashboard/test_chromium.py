"""The pages in a real browser: in both themes and on a phone, live, without scripts, and for those who hear them."""

import re

import pytest
from playwright.async_api import expect

from app.db.database import Database
from app.kernel.access import Role
from tests.dashboard.chromium import Theme, faults, hide, log_in, opened, overflow
from tests.support.permit_calls import permit_body
from tests.support.pools import decided
from tests.support.service import Service
from tests.support.sql import until
from tests.support.streams import Port

pytestmark = pytest.mark.slow
_MILLISECONDS = 30_000
# Names may be this long, and have no blank.
_GOAL, _WORKER, _REASON = "kepler" * 20, "lab-1-" + 90 * "w", 300 * "r"


async def _fill(service: Service, database: Database) -> list[str]:
    """Something to see on every page; the addresses of the pages."""
    await service.ask("PUT", "/llm/models/argo:gpt-4.1", {"max_concurrency": 3}, headers={"If-Match": '"0"'})
    await service.post("/goals", {"id": _GOAL, "objective": "Rediscover the third law"})
    for number in (1, 2, 3):
        await service.post(f"/goals/{_GOAL}/iterations", {"iteration": number, "quality": number / 4})
    await service.ask("PUT", "/weights/override", {"weights": {"ranking": 0.3}, "expires_in_seconds": 600})
    await service.post("/llm/permits", permit_body(model="argo:gpt-4.1", goal_id=_GOAL))
    worker = await service.worker(_WORKER)
    await service.post("/queues/ranking/pause", {"reason": _REASON})
    waiting = await service.submitted(
        agent_type="ranking", goal_id=_GOAL, payload={"topic": "orbits"}, labels={"k" * 60: "v"}
    )
    failed = await service.submitted(agent_type="evolution")
    lease = await worker.lease()
    piece = {"stream": "stderr", "start": 0, "text": "an error on stderr\n"}
    await worker.ask(f"/leases/{failed}/logs", {"token": lease["token"], "pieces": [piece]})
    error = {"code": "bad_input", "message": "no numbers", "retryable": False, "detail": {"traceback": _REASON}}
    await worker.on_lease(lease, "fail", error=error)
    await decided(database)
    decision = (await service.get("/scaling/decisions"))["items"][0]["id"]
    pages = ["", "/tasks", f"/tasks/{waiting}", f"/tasks/{failed}", f"/tasks/{failed}/edit", "/workers", "/goals"]
    pages += [f"/goals/{_GOAL}?namespace=default", "/agents", "/models", "/decisions?show=all"]
    return [f"/dashboard{page}" for page in [*pages, f"/decisions/{decision}", "/config", "/alerts", "/audit"]]


@pytest.mark.parametrize("theme", ["light", "dark"])
async def test_every_page_is_sound_in_both_themes_and_on_a_phone(port: Port, database: Database, theme: Theme) -> None:
    pages = await _fill(port.service, database)
    troubles: list[str] = []
    async with opened(f"http://127.0.0.1:{port.number}") as page:
        page.on("pageerror", lambda error: troubles.append(str(error)))
        await page.emulate_media(color_scheme=theme)
        await page.goto("/dashboard/login")
        troubles += await faults(page)
        await log_in(page, port.service.keys[Role.OPERATOR])
        for address in pages:
            answer = await page.goto(address)
            assert answer is not None
            assert answer.status == 200, address
            await page.set_viewport_size({"width": 1280, "height": 900})
            troubles += [f"{address}: {fault}" for fault in await faults(page)]
            await page.set_viewport_size({"width": 390, "height": 800})
            troubles += [f"{address} is wider than a phone"] if await overflow(page) > 0 else []
    assert not troubles, "\n".join(troubles)


async def test_the_first_page_changes_without_reload_and_acts(port: Port) -> None:
    service = port.service
    async with opened(f"http://127.0.0.1:{port.number}") as page:
        await log_in(page, service.keys[Role.OPERATOR])
        row = page.locator("#agents tr", has_text="evolution")
        await service.submitted(agent_type="evolution")
        await expect(row.locator("td").first).to_have_text("1", timeout=_MILLISECONDS)
        await service.post("/queues/evolution/pause", {"reason": "a look"})
        item = page.locator("#attention .item", has_text="evolution is paused")
        await expect(item).to_be_visible(timeout=_MILLISECONDS)
        await item.locator("summary", has_text="Resume").click()
        await item.locator("input[name=reason]").fill("seen")
        await item.locator("button", has_text="Resume").click()
        await expect(page.locator(".notice")).to_have_text("evolution is leased again.", timeout=_MILLISECONDS)
        entry = (await service.get("/audit", action="queues.resume"))["items"][0]
        assert entry["reason"] == "seen"


async def test_times_of_a_list_are_in_the_readers_zone_before_it_is_painted(port: Port) -> None:
    service = port.service
    async with opened(f"http://127.0.0.1:{port.number}") as page:
        await log_in(page, service.keys[Role.OPERATOR])
        await page.goto("/dashboard/tasks")
        # Added after the listener of the page, which it follows within the same turn of the browser.
        await page.evaluate("""() => document.addEventListener("htmx:sseMessage", (event) => {
            window.times = event.target.querySelectorAll("time[datetime]").length;
            window.foreign = event.target.querySelectorAll("time[datetime]:not([title])").length;
        })""")
        await service.submitted(agent_type="evolution")
        await page.wait_for_function("window.times > 0")
        assert await page.evaluate("window.foreign") == 0


async def test_a_page_names_the_zone_of_its_times_once_also_on_a_phone(port: Port) -> None:
    async with opened(f"http://127.0.0.1:{port.number}", timezone_id="America/Argentina/Buenos_Aires") as page:
        await page.set_viewport_size({"width": 390, "height": 800})
        await log_in(page, port.service.keys[Role.OPERATOR])
        await port.service.submitted(agent_type="ranking")
        await page.goto("/dashboard/tasks")
        await expect(page.locator("footer")).to_have_text(re.compile("Times are those of America/.*Buenos_Aires."))
        assert await overflow(page) == 0
        shown, written = await page.locator("tbody time").first.evaluate("it => [it.textContent, it.title]")
        assert shown != written


async def test_nobody_is_told_of_changes_while_the_page_is_hidden(port: Port) -> None:
    async with opened(f"http://127.0.0.1:{port.number}") as page:
        await log_in(page, port.service.keys[Role.READER])
        await until(lambda: _listens(port, True))
        await hide(page, True)
        await until(lambda: _listens(port, False))
        await hide(page, False)
        await until(lambda: _listens(port, True))


async def _listens(port: Port, is_there: bool) -> bool:
    listeners = port.service.app.state.services.database.announcer._listeners
    return any("Feed._hear" in getattr(listener, "__qualname__", "") for listener in listeners) == is_there


async def test_pages_are_read_and_used_without_scripts(port: Port) -> None:
    task_id = await port.service.submitted(agent_type="ranking")
    async with opened(f"http://127.0.0.1:{port.number}", with_scripts=False) as page:
        await log_in(page, port.service.keys[Role.OPERATOR])
        await page.locator("#agents tr", has_text="ranking").locator("summary").click()
        await page.locator("#agents tr", has_text="ranking").locator("button", has_text="Pause").click()
        await expect(page.locator(".notice")).to_contain_text("ranking is paused", timeout=_MILLISECONDS)
        await page.goto(f"/dashboard/tasks/{task_id}")
        await expect(page.locator("main")).to_contain_text(re.compile("the queue of ranking is paused"))


async def test_what_is_shown_is_said_to_be_old_once_the_service_is_silent_or_the_session_over(port: Port) -> None:
    service = port.service
    async with opened(f"http://127.0.0.1:{port.number}") as page:
        await page.clock.install()
        await log_in(page, service.keys[Role.READER])
        line = page.locator("#stale")
        await until(lambda: _listens(port, True))
        # As where something in between has forgotten the connection: no error tells of it.
        await page.clock.fast_forward(60_000)
        await expect(line).to_contain_text("the service has not been heard", timeout=_MILLISECONDS)
        await expect(line).to_be_hidden(timeout=_MILLISECONDS)
        await page.context.clear_cookies()
        await hide(page, True)
        await hide(page, False)
        await expect(line).to_contain_text("or the session has ended", timeout=_MILLISECONDS)
        await line.locator("a").click()
        await page.wait_for_url("**/dashboard/login**")


async def test_a_change_leaves_focus_and_place_and_is_shown_once_a_form_is_closed(port: Port) -> None:
    service = port.service
    async with opened(f"http://127.0.0.1:{port.number}") as page:
        await page.set_viewport_size({"width": 390, "height": 800})
        await log_in(page, service.keys[Role.OPERATOR])
        row = page.locator("#agents tr", has_text="evolution")
        queued, pause = row.locator("td").first, row.locator("summary")
        table = page.locator("#agents .scroll")
        await service.submitted(agent_type="evolution")
        await expect(queued).to_have_text("1", timeout=_MILLISECONDS)
        await pause.focus()
        await page.evaluate("new Promise((go) => requestAnimationFrame(() => requestAnimationFrame(go)))")
        await table.evaluate("table => { table.scrollLeft = 40; }")
        await service.submitted(agent_type="evolution")
        await expect(queued).to_have_text("2", timeout=_MILLISECONDS)
        await expect(pause).to_be_focused()
        assert await table.evaluate("table => table.scrollLeft") == 40
        await page.keyboard.press("Enter")
        await expect(row.locator("form")).to_be_visible()
        await page.evaluate("""() => document.addEventListener("htmx:sseBeforeMessage", (event) => {
            window.prevented = event.defaultPrevented && event.target.id === "agents"; })""")
        await service.submitted(agent_type="evolution")
        await page.wait_for_function("window.prevented")
        await expect(queued).to_have_text("2")
        await page.keyboard.press("Enter")
        await expect(queued).to_have_text("3", timeout=_MILLISECONDS)
        await expect(pause).to_be_focused()


async def test_on_paper_nothing_is_cut_off(port: Port, database: Database) -> None:
    pages = await _fill(port.service, database)
    async with opened(f"http://127.0.0.1:{port.number}") as page:
        await log_in(page, port.service.keys[Role.OPERATOR])
        await page.emulate_media(media="print")
        for address in pages:
            await page.goto(address)
            assert (
                await page.evaluate("""() => [...document.querySelectorAll("main .scroll, main pre")].filter((it) =>
                getComputedStyle(it).overflow !== "visible" || getComputedStyle(it).maxHeight !== "none").length""")
                == 0
            )


async def test_no_name_and_no_long_time_pushes_the_buttons_of_a_table_out_of_sight(port: Port) -> None:
    service = port.service
    await service.post("/goals", {"id": "g" * 200, "objective": "why"})
    await service.submitted(agent_type="evolution", goal_id="g" * 200)
    await service.ask("PUT", f"/llm/models/{'m' * 200}", {"max_concurrency": 2}, headers={"If-Match": '"0"'})
    async with opened(f"http://127.0.0.1:{port.number}") as page:
        await page.set_viewport_size({"width": 1280, "height": 800})
        await log_in(page, service.keys[Role.OPERATOR])
        hidden: dict[str, int] = {}
        for address in ("/dashboard", "/dashboard/goals", "/dashboard/tasks"):
            await page.goto(address)
            hidden |= await page.evaluate("""() => {
                for (const age of document.querySelectorAll(".age")) age.textContent = "59 min 59 s";
                const tables = [...document.querySelectorAll(".scroll")];
                return Object.fromEntries(tables.map((one) => [one.ariaLabel, one.scrollWidth - one.clientWidth]));
            }""")
        assert hidden == dict.fromkeys(("Agents", "Language models", "Goals", "Tasks"), 0)
