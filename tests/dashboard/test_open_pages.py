"""Pages that stay open: while nobody looks, over sleep and silence, failures, and the end of a session."""

import asyncio
import re
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from urllib.parse import parse_qs

import pytest
from playwright.async_api import Page, Request, Route, expect

from app.dashboard.assets import edition
from app.kernel.access import Role
from tests.dashboard.chromium import hide, log_in, opened
from tests.support.service import Worker
from tests.support.streams import Port

pytestmark = pytest.mark.slow
expect.set_options(timeout=30_000)
# In place of the streams of the service: what comes, and when, is up to the test.
_SOURCES = """window.sources = [];
window.EventSource = class extends EventTarget {
    static CLOSED = 2;
    readyState = 1;
    constructor(url) { super(); window.sources.push(this); }
    close() { this.readyState = 2; }
};"""
_HOUR = 3_600_000


@asynccontextmanager
async def _first_page(port: Port) -> AsyncIterator[Page]:
    """The first page with a clock and a stream of the test's own."""
    async with opened(f"http://127.0.0.1:{port.number}") as page:
        await page.clock.install()
        await page.add_init_script(_SOURCES)
        await log_in(page, port.service.keys[Role.OPERATOR])
        yield page


@asynccontextmanager
async def _task_page(port: Port, task_id: str) -> AsyncIterator[Page]:
    """The page of a running task that waits for its output."""
    async with opened(f"http://127.0.0.1:{port.number}") as page:
        await log_in(page, port.service.keys[Role.READER])
        async with page.expect_request("**/output?*"):
            await page.goto(f"/dashboard/tasks/{task_id}")
        yield page


async def _tell(page: Page, region: str, text: str) -> None:
    script = "([region, text]) => sources.at(-1).dispatchEvent(new MessageEvent(region, { data: text }))"
    await page.evaluate(script, [region, text])


async def _open_streams(page: Page) -> int:
    return int(await page.evaluate("sources.filter((source) => source.readyState === 1).length"))


async def test_a_page_that_wakes_is_not_said_to_be_old_before_it_has_listened(port: Port) -> None:
    async with _first_page(port) as page:
        line = page.locator("#stale")
        await hide(page, True)
        assert await _open_streams(page) == 0
        await page.clock.fast_forward(_HOUR)
        await hide(page, False)
        await page.clock.run_for(10_000)
        await expect(line).to_be_hidden()
        await page.clock.run_for(10_000)
        await expect(line).to_contain_text("the service has not been heard")


async def test_whatever_comes_is_a_sign_of_life(port: Port) -> None:
    async with _first_page(port) as page:
        line = page.locator("#stale")
        for seconds, is_told in ((10, True), (10, True), (10, False), (10, False)):
            await expect(line).to_be_hidden()
            await page.clock.run_for(1000 * seconds)
            if is_told:
                await _tell(page, "verdict", "well")
        await expect(line).to_be_visible()
        await _tell(page, "verdict", "well again")
        await expect(page.locator("#verdict")).to_have_text("well again")
        await expect(line).to_be_hidden()


async def test_a_page_says_that_the_service_has_other_scripts_than_it(port: Port) -> None:
    async with _first_page(port) as page:
        line = page.locator("#other-edition")
        for sign, is_visible in ((edition(), False), ("later", True), (edition(), False)):
            await _tell(page, "alive", sign)
            await expect(line).to_be_visible(visible=is_visible)
        await _tell(page, "alive", "later")
        await line.locator("a").click()
        await expect(line).to_be_hidden()


async def test_a_page_that_connects_names_what_it_shows(port: Port) -> None:
    async with opened(f"http://127.0.0.1:{port.number}") as page:
        await log_in(page, port.service.keys[Role.OPERATOR])
        for address, names in (("/dashboard", 4), ("/dashboard/tasks?agent_type=ranking", 1)):
            for is_loaded in (True, False):
                async with page.expect_request(re.compile("/(stream|feeds/tasks)[?]")) as connected:
                    if is_loaded:
                        await page.goto(address)
                    else:
                        await hide(page, True)
                        await hide(page, False)
                marks = parse_qs((await connected.value).url.partition("?")[2])["mark"]
                assert len(marks) >= names
                script = "mark => document.querySelector(`[sse-swap=${mark[0]}] > [data-mark='${mark[1]}']`) !== null"
                assert all([await page.evaluate(script, mark.split(":")) for mark in marks])
                await port.service.submitted(agent_type="ranking")
                await page.wait_for_function(script.replace("!==", "==="), arg=marks[-1].split(":"))


async def test_a_region_that_waits_for_a_form_says_so(port: Port) -> None:
    async with _first_page(port) as page:
        agents, summary = page.locator("#agents"), page.locator("#agents tr", has_text="evolution").locator("summary")
        note = "getComputedStyle(document.querySelector('#agents'), '::before').content"
        await summary.click()
        assert await page.evaluate(note) == "none"
        await _tell(page, "agents", "later")
        await expect(agents).to_contain_text("evolution")
        assert "once the open form is closed" in await page.evaluate(note)
        await summary.click()
        await page.clock.run_for(1000)
        await expect(agents).to_have_text("later")
        assert await page.evaluate(note) == "none"


async def test_sleep_takes_away_no_form_that_is_filled_in(port: Port) -> None:
    async with _first_page(port) as page:
        row = page.locator("#agents tr", has_text="evolution")
        await row.locator("summary").click()
        await row.locator("input[name=reason]").fill("half a sent")
        streams = await page.evaluate("sources.length")
        await hide(page, True)
        await page.clock.fast_forward(_HOUR)
        await hide(page, False)
        await page.clock.run_for(20_000)
        await expect(row.locator("input[name=reason]")).to_have_value("half a sent")
        await expect(page.locator("[data-live]")).to_have_class("held")
        await expect(page.locator("#stale")).to_be_hidden()
        assert await page.evaluate("sources.length") == streams
        await row.locator("summary").click()
        await page.clock.run_for(1000)
        # All of it is told anew on a connection of its own, and what comes is shown.
        assert await page.evaluate("sources.length") == streams + 1
        await expect(page.locator("[data-live]")).not_to_have_class("held")
        await _tell(page, "agents", "all of them")
        await expect(page.locator("#agents")).to_have_text("all of them")


async def test_a_page_that_opens_behind_another_listens_once_it_is_in_front(port: Port) -> None:
    async with _first_page(port) as page:
        await page.add_init_script("Object.defineProperty(document, 'hidden', { value: true, configurable: true })")
        await page.goto("/dashboard/workers")
        assert await _open_streams(page) == 0
        await hide(page, False)
        assert await _open_streams(page) == 1


async def _running(port: Port) -> tuple[Worker, str, int]:
    """A worker, the task that it runs, and the token of the lease."""
    task_id = await port.service.submitted()
    worker = await port.service.worker()
    return worker, task_id, (await worker.lease())["token"]


async def _write(worker: Worker, task_id: str, token: int, text: str, start: int = 0) -> None:
    piece = {"stream": "stdout", "start": start, "text": text}
    answer = await worker.ask(f"/leases/{task_id}/logs", {"token": token, "pieces": [piece]})
    assert answer.status_code == 204, answer.text


async def test_output_is_not_waited_for_while_nobody_looks(port: Port) -> None:
    """A browser has six connections to a service: six tasks in the background would keep all other pages out."""
    worker, task_id, token = await _running(port)
    asked: list[Request] = []
    ended: list[Request] = []
    async with opened(f"http://127.0.0.1:{port.number}") as page:
        await log_in(page, port.service.keys[Role.READER])
        await page.add_init_script("Object.defineProperty(document, 'hidden', { value: true, configurable: true })")
        page.on("request", lambda request: asked.append(request) if "/output" in request.url else None)
        page.on("requestfailed", lambda request: ended.append(request) if "/output" in request.url else None)
        await page.goto(f"/dashboard/tasks/{task_id}")
        await hide(page, True)
        assert not asked
        async with page.expect_request("**/output?*"):
            await hide(page, False)
        async with page.expect_event("requestfailed"):
            await hide(page, True)
        assert (len(asked), len(ended)) == (1, 1)
        await _write(worker, task_id, token, "meanwhile")
        await hide(page, False)
        await expect(page.locator("#output")).to_contain_text("meanwhile")
        await expect(page.locator("#stale")).to_be_hidden()


async def test_output_goes_on_after_a_failure_and_is_said_to_be_old_meanwhile(port: Port) -> None:
    worker, task_id, token = await _running(port)
    failures = 0

    async def fail(route: Route) -> None:
        nonlocal failures
        failures += 1
        # As while the service starts anew, and as a proxy answers meanwhile.
        await (route.abort("connectionrefused") if failures == 1 else route.fulfill(status=502, body="<h1>no</h1>"))

    async with opened(f"http://127.0.0.1:{port.number}") as page:
        await log_in(page, port.service.keys[Role.READER])
        await page.clock.install()
        await page.route("**/output?*", fail, times=2)
        await page.goto(f"/dashboard/tasks/{task_id}")
        await expect(page.locator("#stale")).to_contain_text("the service has not been heard")
        await page.clock.run_for(10_000)
        await expect(page.locator("#stale")).to_be_visible()
        await _write(worker, task_id, token, "after all")
        await page.clock.run_for(60_000)
        await expect(page.locator("#output")).to_contain_text("after all")
        await expect(page.locator("#stale")).to_be_hidden()
        assert failures == 2


async def test_a_page_of_a_task_that_writes_for_a_day_does_not_grow_for_ever(port: Port) -> None:
    worker, task_id, token = await _running(port)
    async with _task_page(port, task_id) as page:
        await page.evaluate("""() => {
            const link = document.querySelector("#output a");
            for (let number = 0; number < 5000; number++) {
                const piece = document.createElement("span");
                piece.textContent = `piece ${number}\n`;
                link.before(piece);
            }
        }""")
        for number, text in enumerate(("newer\n", "newest\n")):
            await _write(worker, task_id, token, text, start=6 * number)
            await expect(page.locator("#output")).to_contain_text(text.strip())
            assert await page.locator("#output > *").count() <= 2002
        shown = await page.locator("#output").inner_text()
        assert shown.startswith("piece 0\n")
        assert shown.count("left out") == 1
        assert shown.index("left out") < shown.index("piece 4999") < shown.index("newer") < shown.index("newest")


async def test_the_end_of_a_session_is_no_output(port: Port) -> None:
    worker, task_id, token = await _running(port)
    async with _task_page(port, task_id) as page:
        await page.context.clear_cookies()
        await _write(worker, task_id, token, "the last that was seen")
        await expect(page.locator("#output")).to_contain_text("the last that was seen")
        await expect(page.locator("#stale")).to_contain_text("or the session has ended")
        await expect(page.locator("#output input")).to_have_count(0)
        await expect(page.locator("#output")).to_contain_text("the last that was seen")


async def test_what_is_pressed_stays_until_it_is_let_go(port: Port) -> None:
    """Of a click on what a change replaced between its two ends nothing came."""
    async with _first_page(port) as page:
        agents, row = page.locator("#agents"), page.locator("#agents tr", has_text="evolution")
        await row.locator("summary").hover()
        await page.mouse.down()
        await _tell(page, "agents", "later")
        await page.mouse.up()
        await expect(row.locator("form")).to_be_visible()
        await row.locator("summary").click()
        await page.clock.run_for(1000)
        await expect(agents).to_have_text("later")
        # Also where the second end is lost to a menu.
        await page.evaluate("""() => {
            const send = (kind) => document.querySelector("#agents").dispatchEvent(new Event(kind, { bubbles: true }));
            send("pointerdown");
            send("contextmenu");
        }""")
        await page.clock.run_for(1000)
        await _tell(page, "agents", "latest")
        await expect(agents).to_have_text("latest")


async def test_text_that_is_marked_to_be_copied_stays(port: Port) -> None:
    async with _first_page(port) as page:
        agents = page.locator("#agents")
        name = agents.locator("th[scope=row]", has_text="evolution")
        await name.evaluate("name => getSelection().selectAllChildren(name)")
        await _tell(page, "agents", "later")
        await _tell(page, "verdict", "others change")
        await expect(page.locator("#verdict")).to_have_text("others change")
        assert (await page.evaluate("getSelection().toString()")).strip() == "evolution"
        await page.evaluate("getSelection().removeAllRanges()")
        await page.clock.run_for(1000)
        await expect(agents).to_have_text("later")


async def test_what_is_said_of_a_region_that_waits_moves_nothing(port: Port) -> None:
    """A button moved down by a line as somebody was about to press it."""
    async with _first_page(port) as page:
        row = page.locator("#agents tr", has_text="evolution")
        await row.locator("summary").click()
        button = row.locator("form button")
        before = await button.bounding_box()
        await _tell(page, "agents", "later")
        await expect(page.locator("#agents")).to_have_class("held")
        assert await button.bounding_box() == before


async def test_a_stream_that_falls_silent_is_opened_anew(port: Port) -> None:
    """Where a proxy or a sleeping computer has lost the connection no end of it is seen, and pages stayed old."""
    async with _first_page(port) as page:
        opened = "sources.length"
        for seconds, count in ((5, 1), (15, 2), (15, 2), (30, 3)):
            await page.clock.run_for(1000 * seconds)
            assert await page.evaluate(opened) == count, (seconds, count)
            assert await _open_streams(page) == 1
        await expect(page.locator("#stale")).to_be_visible()
        await _tell(page, "agents", "all of them")
        await expect(page.locator("#agents")).to_have_text("all of them")
        await expect(page.locator("#stale")).to_be_hidden()
        # What is filled in meanwhile is left alone.
        await page.goto("/dashboard")
        row = page.locator("#agents tr", has_text="evolution")
        await row.locator("summary").click()
        await row.locator("input[name=reason]").fill("half a sent")
        await page.clock.run_for(20_000)
        await expect(row.locator("input[name=reason]")).to_have_value("half a sent")
        assert await page.evaluate(opened) == 1
        await row.locator("summary").click()
        await page.clock.run_for(2000)
        assert await page.evaluate(opened) == 2


async def test_a_page_connects_once_though_it_was_about_to_try_again(port: Port) -> None:
    """Each time that somebody looked elsewhere during an outage the page had one more connection, of six in all."""
    async with _first_page(port) as page:
        await page.evaluate("""() => {
            const source = sources.at(-1);
            source.readyState = EventSource.CLOSED;
            source.onerror(new Event("error"));
            source.dispatchEvent(new Event("error"));
        }""")
        await hide(page, True)
        await hide(page, False)
        assert await page.evaluate("sources.length") == 2
        await page.clock.run_for(5000)
        assert await page.evaluate("sources.length") == 2
        assert await _open_streams(page) == 1


async def test_a_form_is_sent_once_however_often_its_button_is_pressed(port: Port) -> None:
    sent: list[str] = []

    async def answer_late(route: Route) -> None:
        sent.append(route.request.url)
        await asyncio.sleep(0.5)
        await route.continue_()

    async with opened(f"http://127.0.0.1:{port.number}") as page:
        await log_in(page, port.service.keys[Role.OPERATOR])
        await page.route("**/dashboard/do/*", answer_late)
        row = page.locator("#agents tr", has_text="evolution")
        await row.locator("summary").click()
        await row.locator("form button").hover()
        for _ in range(3):
            await page.mouse.down()
            await page.mouse.up()
            await asyncio.sleep(0.1)
        await expect(page.locator(".notice")).to_contain_text("evolution is paused")
        assert len(sent) == 1
    assert len((await port.service.get("/audit", action="queues.pause"))["items"]) == 1
