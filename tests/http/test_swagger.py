"""Swagger UI in a real browser: its key is checked and kept for the tab, its filter finds, and every answer ends."""

from pathlib import Path

import pytest
from playwright.async_api import BrowserContext, ConsoleMessage, Page, expect

from app.db.database import Database
from app.kernel.access import Role
from tests.support.browser import chromium
from tests.system.conftest import Api, api_process

pytestmark = pytest.mark.slow
_PATIENCE_MS = 60_000
# The page reads a stream for 10 s; a test need not wait for them.
_HURRY = (
    "const wait = setTimeout; window.setTimeout = (act, ms, ...more) => wait(act, ms === 10000 ? 300 : ms, ...more)"
)
expect.set_options(timeout=_PATIENCE_MS)


async def _open(context: BrowserContext, api: Api, complaints: list[str]) -> Page:
    """The page; what the browser complains of is noted."""

    def note(message: ConsoleMessage) -> None:
        if message.type == "error" and "401" not in message.text:
            complaints.append(message.text)

    page = await context.new_page()
    page.set_default_timeout(_PATIENCE_MS)
    page.on("console", note)
    page.on("pageerror", lambda error: complaints.append(str(error)))
    await page.add_init_script(_HURRY)
    await page.goto(f"{api.url}/docs")
    return page


async def _authorize(page: Page, key: str) -> None:
    await page.fill(".modal-ux input", key)
    await page.click(".modal-ux button.authorize")


async def _execute(page: Page, tag: str, operation_id: str) -> str:
    """Find the operation, send it as it is, and return what came: status and body."""
    operation = page.locator(f"#operations-{tag}-{operation_id}")
    await page.fill(".operation-filter-input", operation_id)
    await operation.locator(".opblock-summary-control").click()
    await operation.locator(".try-out__btn").click()
    await operation.locator(".execute").click()
    answer = operation.locator(".live-responses-table .response")
    await expect(answer).to_be_visible()
    return await answer.inner_text()


async def test_a_key_is_checked_kept_for_the_tab_and_used(own_database: Database, tmp_path: Path) -> None:
    complaints: list[str] = []
    async with api_process(own_database.url, tmp_path) as api, chromium() as browser:
        context = await browser.new_context()
        page = await _open(context, api, complaints)
        await page.click(".btn.authorize")
        await _authorize(page, "cvn_000000000000_wrong")
        await expect(page.locator(".modal-ux .errors")).to_contain_text("not valid here")
        assert await page.evaluate("sessionStorage.length + localStorage.length") == 0

        await _authorize(page, f" Bearer {api.keys[Role.OPERATOR]}\t")
        await expect(page.locator(".modal-ux")).to_contain_text("Logout")
        await page.reload()
        await expect(page.locator(".btn.authorize.locked")).to_be_visible()
        assert await page.evaluate("localStorage.length") == 0
        other_tab = await context.new_page()
        await other_tab.goto(f"{api.url}/livez")
        assert await other_tab.evaluate("sessionStorage.length") == 0

        await page.fill(".operation-filter-input", "POST /tasks/batch")
        await expect(page.locator(".opblock-summary-path")).to_have_text(["/tasks/batch"])
        assert "201" in await _execute(page, "tasks", "submit_task")
        assert "task.submitted" in await _execute(page, "events", "stream_events")
        await page.route("**/audit?*", lambda route: route.fulfill(json={"items": ["x" * 1000] * 1000}))
        assert "this page shows 512 KiB" in await _execute(page, "audit", "list_audit_entries")

        await page.click(".btn.authorize")
        await page.click(".modal-ux button:has-text('Logout')")
        assert await page.evaluate("sessionStorage.length") == 0
    assert complaints == []
