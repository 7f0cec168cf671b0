"""The pages by the keyboard alone, as they are spoken, magnified, and in colours that somebody else chooses."""

import re
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest
from playwright.async_api import Locator, Page, expect

from app.kernel.access import Role
from tests.dashboard.chromium import log_in, opened, overflow
from tests.support.service import Service, Worker
from tests.support.streams import Port

pytestmark = pytest.mark.slow
expect.set_options(timeout=30_000)


@asynccontextmanager
async def _first_page(port: Port, role: Role = Role.OPERATOR, *, is_live: bool = True) -> AsyncIterator[Page]:
    """The first page; one that is not live changes only as the test has it."""
    async with opened(f"http://127.0.0.1:{port.number}") as page:
        if not is_live:
            await page.route("**/dashboard/stream", lambda route: route.abort())
        await log_in(page, port.service.keys[role])
        yield page


def _row(page: Page, agent: str) -> Locator:
    return page.locator("#agents tr", has_text=agent)


async def _contrast(place: Locator, inside: str, outside: str) -> float:
    """The ratio of two colours of an element, as https://www.w3.org/TR/WCAG22/#dfn-contrast-ratio has it."""
    colours = "(it, names) => names.map((name) => getComputedStyle(it)[name] )"
    luminances = []
    for colour in await place.evaluate(colours, [inside, outside]):
        parts = [int(part) / 255 for part in re.findall(r"\d+", colour)[:3]]
        linear = [part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts]
        luminances.append(0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2])
    return (max(luminances) + 0.05) / (min(luminances) + 0.05)


async def test_focus_stays_near_where_its_control_was_when_a_change_takes_that_away(port: Port) -> None:
    service = port.service
    async with _first_page(port) as page:
        await _row(page, "evolution").locator("summary").focus()
        await service.post("/queues/evolution/pause", {"reason": "somebody else"})
        await expect(_row(page, "evolution")).to_contain_text("paused")
        await expect(page.locator("#agents .scroll")).to_be_focused()
        item = page.locator("#attention .item", has_text="evolution is paused")
        await item.locator("summary").focus()
        await service.post("/queues/evolution/resume", {"reason": "somebody else"})
        await expect(item).to_have_count(0)
        await expect(page.locator("#attention")).to_be_focused()


async def test_focus_stays_on_the_same_one_of_several_equal_links(port: Port) -> None:
    async with _first_page(port, is_live=False) as page:
        region = page.locator("#agents")
        text = "".join(f'<a href="/dashboard/alerts">{name}</a>' for name in ("first", "second", "third"))
        show = "([region, html]) => { region.dispatchEvent(new CustomEvent('htmx:sseBeforeMessage', "
        show += "{ bubbles: true, cancelable: true, detail: { data: html } })); region.innerHTML = html;"
        show += " region.dispatchEvent(new CustomEvent('htmx:sseMessage', { bubbles: true })); }"
        element = await region.element_handle()
        await page.evaluate(show, [element, text])
        await region.locator("a", has_text="second").focus()
        await page.evaluate(show, [element, text])
        await expect(region.locator("a", has_text="second")).to_be_focused()


async def test_focus_is_not_lost_with_the_line_that_tells_of_silence(port: Port) -> None:
    async with opened(f"http://127.0.0.1:{port.number}") as page:
        await page.clock.install()
        await log_in(page, port.service.keys[Role.OPERATOR])
        # At once, as the service may be heard again within a moment.
        await page.evaluate("""() => new MutationObserver((_, observer) => {
            observer.disconnect();
            document.querySelector("#stale a").focus();
            window.isThere = document.activeElement.closest("#stale") !== null;
        }).observe(document.querySelector("#stale"), { attributeFilter: ["hidden"] })""")
        await page.clock.fast_forward(60_000)
        await page.wait_for_function("window.isThere")
        await expect(page.locator("#stale")).to_be_hidden()
        await expect(page.locator("main")).to_be_focused()


async def test_escape_leaves_an_open_form_for_the_button_that_opened_it(port: Port) -> None:
    async with _first_page(port) as page:
        summary = _row(page, "evolution").locator("summary")
        await summary.focus()
        await page.keyboard.press("Enter")
        await page.keyboard.press("Tab")
        await expect(_row(page, "evolution").locator("input[name=reason]")).to_be_focused()
        await page.keyboard.press("Escape")
        await expect(_row(page, "evolution").locator("form")).to_be_hidden()
        await expect(summary).to_be_focused()
        # What came meanwhile is shown then, and takes the focus from nobody.
        await port.service.submitted(agent_type="evolution")
        await expect(_row(page, "evolution").locator("td").first).to_have_text("1")
        await expect(summary).to_be_focused()


async def test_what_came_of_an_action_has_the_focus(port: Port) -> None:
    async with _first_page(port) as page:
        await _row(page, "evolution").locator("summary").click()
        await _row(page, "evolution").locator("button", has_text="Pause").click()
        await expect(page.locator(".notice")).to_contain_text("evolution is paused")
        await expect(page.locator(".notice")).to_be_focused()
        await page.keyboard.press("Tab")
        assert await page.evaluate("document.querySelector('main').contains(document.activeElement)")


async def test_an_order_for_all_tasks_of_a_filter_is_given_without_going_through_the_list(port: Port) -> None:
    for _ in range(3):
        await port.service.submitted(agent_type="ranking")
    async with _first_page(port) as page:
        await page.goto("/dashboard/tasks?state=pending")
        await page.locator("button", has_text="Show").focus()
        for _ in range(2):
            await page.keyboard.press("Tab")
        await expect(page.locator("button", has_text="Cancel…")).to_be_focused()
        await page.keyboard.press("Enter")
        await expect(page.locator("h1")).to_have_text("Cancel 3 tasks?")
        await page.locator("input[name=reason]").focus()
        await page.keyboard.press("Enter")
        await expect(page.locator(".notice")).to_be_focused()


async def test_a_refusal_has_the_focus(port: Port) -> None:
    async with _first_page(port) as page:
        await page.goto("/dashboard/workers")
        await page.locator("summary", has_text="Start workers").click()
        await page.locator("input[name=count]").fill("many")
        await page.locator("button", has_text="Start workers").click()
        await expect(page.locator(".refusal")).to_be_focused()


async def test_a_verdict_is_spoken_once_it_is_another_and_not_with_each_figure(port: Port) -> None:
    async with _first_page(port, is_live=False) as page:
        spoken = page.locator("#spoken")
        assert (
            await page.locator("#verdict, #verdict *").evaluate_all("all => all.some((one) => one.ariaLive)") is False
        )
        await expect(spoken).to_have_attribute("role", "status")
        show = """([health, text]) => {
            const region = document.querySelector("#verdict");
            const fresh = region.querySelector("[data-verdict]").cloneNode(true);
            fresh.dataset.verdict = health;
            fresh.querySelector("strong").textContent = text;
            const tell = (name) => region.dispatchEvent(new CustomEvent(name, { bubbles: true, cancelable: true }));
            tell("htmx:sseBeforeMessage");
            region.replaceChildren(fresh);
            tell("htmx:sseMessage");
        }"""
        for health, text, said in (
            ("degraded cpu_short", "Degraded: 90 % in use.", "Degraded: 90 % in use."),
            ("degraded cpu_short", "Degraded: 91 % in use.", "Degraded: 90 % in use."),
            ("healthy", "All is well.", "All is well."),
        ):
            await page.evaluate(show, [health, text])
            assert await spoken.inner_text() == said


async def test_a_page_that_is_held_changes_only_once_it_is_let_go(port: Port) -> None:
    service = port.service
    async with _first_page(port) as page:
        button, queued = page.locator("#hold"), _row(page, "evolution").locator("td").first
        await button.focus()
        await page.keyboard.press("Enter")
        await expect(button).to_have_attribute("aria-pressed", "true")
        await service.submitted(agent_type="evolution")
        await expect(page.locator("#agents")).to_have_class("held")
        await expect(queued).to_have_text("0")
        await page.keyboard.press("Enter")
        await expect(queued).to_have_text("1")
        await expect(button).to_have_attribute("aria-pressed", "false")
        await page.goto("/dashboard/config")
        await expect(page.locator("#hold")).to_be_hidden()


async def _running(service: Service) -> tuple[Worker, str, dict[str, object]]:
    task_id = await service.submitted()
    worker = await service.worker()
    return worker, task_id, await worker.lease()


async def test_a_task_that_ends_takes_away_neither_what_is_typed_nor_the_focus(port: Port) -> None:
    worker, task_id, lease = await _running(port.service)
    async with _first_page(port) as page:
        await page.goto(f"/dashboard/tasks/{task_id}")
        await page.locator("summary", has_text="Cancel").click()
        reason = page.locator("input[name=reason]").first
        await reason.fill("half a sent")
        async with page.expect_response(lambda answer: "hx-refresh" in answer.headers):
            await worker.on_lease(lease, "complete", result={"n": 1})
        await expect(page.locator("main")).to_have_class("held")
        await expect(reason).to_have_value("half a sent")
        await page.locator("pre[aria-label=Input]").focus()
        await page.evaluate("document.querySelector('details.act[open]').open = false")
        await expect(page.locator("h1")).to_contain_text("completed")
        await expect(page.locator("pre[aria-label=Input]")).to_be_focused()


async def test_output_is_not_spoken_over_everything_else_and_keeps_the_focus(port: Port) -> None:
    worker, task_id, lease = await _running(port.service)
    async with _first_page(port, Role.READER) as page:
        await page.goto(f"/dashboard/tasks/{task_id}")
        await expect(page.locator("#output")).to_have_attribute("aria-live", "off")
        await page.locator("#output a").focus()
        piece = {"stream": "stdout", "start": 0, "text": "a line\n"}
        await worker.ask(f"/leases/{task_id}/logs", {"token": lease["token"], "pieces": [piece]})
        await expect(page.locator("#output")).to_contain_text("a line")
        await expect(page.locator("#output a")).to_be_focused()


async def test_values_that_are_refused_say_so_at_their_fields(port: Port) -> None:
    service = port.service
    task_id = await service.submitted(agent_type="ranking")
    async with opened(f"http://127.0.0.1:{port.number}") as page:
        await page.goto("/dashboard/login")
        await page.fill("#key", "nonsense")
        await page.keyboard.press("Enter")
        await expect(page.locator("#key")).to_have_accessible_description(re.compile("a key looks like"))
        await expect(page.locator("#key")).to_have_attribute("aria-invalid", "true")
        await log_in(page, service.keys[Role.ADMIN])
        await page.goto("/dashboard/config")
        # Whoever cannot point at a label reads the hint as well.
        await expect(page.get_by_text("below scale_up_threshold")).to_be_visible()
        hinted = page.locator("[name='worker_pool.scale_down_threshold']")
        await expect(hinted).to_have_accessible_description("below scale_up_threshold")
        field = page.locator("[name='worker_pool.max_workers']")
        await field.fill("0")
        await expect(field).to_have_accessible_name(re.compile("outside 1 to 1,000"))
        await page.locator("button", has_text="Show what would change").click()
        await expect(field).to_have_accessible_description(re.compile("max_workers: must be 1 or more"))
        await expect(page.locator("[aria-invalid=true]")).to_have_count(1)
        await page.goto(f"/dashboard/tasks/{task_id}/edit")
        await page.locator("[name=labels]").fill("{")
        await page.locator("button", has_text="Submit").click()
        await expect(page.locator("[name=labels]")).to_have_accessible_description(re.compile("labels: .*is not JSON"))
        await expect(page.locator("[aria-invalid=true]")).to_have_count(1)


async def test_every_table_has_its_name_and_every_button_of_a_row_that_of_the_row(port: Port) -> None:
    service = port.service
    await service.post("/goals", {"id": "kepler", "objective": "why"})
    await service.worker("lab-1")
    await service.ask("PUT", "/llm/models/argo:gpt-4.1", {"max_concurrency": 3}, headers={"If-Match": '"0"'})
    nameless: list[str] = []
    async with _first_page(port, Role.ADMIN) as page:
        for path in ("", "/tasks", "/workers", "/goals", "/goals/kepler", "/agents", "/models", "/config", "/audit"):
            await page.goto(f"/dashboard{path}")
            for table in await page.locator("table").all():
                nameless += [] if await table.locator("caption").count() == 1 else [path]
        assert nameless == []
        await page.goto("/dashboard")
        # Chromium gives what opens a form no role that Playwright knows, and names it by its text.
        assert (await _row(page, "ranking").locator("summary").inner_text()).split() == ["Pause", "ranking"]
        await page.goto("/dashboard/workers")
        summary = page.locator("summary", has_text="Drain or stop")
        assert (await summary.inner_text()).split() == ["Drain", "or", "stop", "lab-1"]
        await summary.click()
        for name in ("Drain", "Restart", "Stop"):
            await expect(page.get_by_role("button", name=f"{name} lab-1")).to_be_visible()


@pytest.mark.parametrize(("width", "height"), [(1024, 768), (512, 384), (390, 844), (320, 640)])
async def test_all_pages_are_in_sight_of_the_navigation(port: Port, width: int, height: int) -> None:
    async with _first_page(port) as page:
        await page.set_viewport_size({"width": width, "height": height})
        for path in ("/models", "/config"):
            await page.goto(f"/dashboard{path}")
            assert await page.locator("nav").evaluate("nav => nav.scrollWidth - nav.clientWidth") == 0
            for link in await page.locator("nav a").all():
                await expect(link).to_be_in_viewport(ratio=1)
            assert await overflow(page) == 0


async def test_the_buttons_of_the_first_page_and_of_workers_are_in_sight_on_a_laptop(port: Port) -> None:
    await port.service.worker("lab-1")
    async with _first_page(port) as page:
        await page.set_viewport_size({"width": 1024, "height": 1200})
        await page.goto("/dashboard")
        for summary in await page.locator("#agents summary").all():
            await expect(summary).to_be_in_viewport(ratio=1)
        await page.goto("/dashboard/workers")
        for summary in await page.locator("#list summary").all():
            await expect(summary).to_be_in_viewport(ratio=1)


@pytest.mark.parametrize("theme", ["light", "dark"])
async def test_fields_stand_out_from_what_is_around_them(port: Port, theme: str) -> None:
    async with _first_page(port) as page:
        await page.emulate_media(color_scheme=theme)  # type: ignore[arg-type]
        await page.goto("/dashboard/config")
        for field in (page.locator("fieldset input").first, page.locator("fieldset select").first):
            assert await _contrast(field, "borderTopColor", "backgroundColor") >= 3


async def test_forced_colours_leave_the_present_page_and_what_is_used_of_a_limit_visible(port: Port) -> None:
    service = port.service
    await service.post("/goals", {"id": "kepler", "objective": "why"})
    async with _first_page(port) as page:
        await page.emulate_media(forced_colors="active")
        await page.goto("/dashboard/goals/kepler")
        borders = "all => [...new Set(all.map((one) => getComputedStyle(one).borderBottomColor))]"
        present = await page.locator("nav a[aria-current]").evaluate_all(borders)
        others = await page.locator("nav a:not([aria-current])").evaluate_all(borders)
        assert present != others
        assert others == [await page.evaluate("getComputedStyle(document.body).backgroundColor")]
        bar = page.locator("progress").first
        pictures = set()
        for share in (0, 0.5, 1):
            await bar.evaluate("(bar, share) => { bar.value = share; }", share)
            pictures.add(await bar.screenshot())
        assert len(pictures) == 3


async def test_words_from_right_to_left_are_ordered_among_themselves(port: Port) -> None:
    service = port.service
    goal = "\u05e9\u05dc\u05d5\u05dd"
    await service.post("/goals", {"id": goal, "objective": f"{goal} (Kepler)."})
    async with _first_page(port) as page:
        for path, place in ((f"/goals/{goal}", ".objective"), ("/goals", "td.text >> nth=0")):
            await page.goto(f"/dashboard{path}")
            style = "it => getComputedStyle(it).unicodeBidi"
            assert await page.locator(place).evaluate(style) == "plaintext", path
