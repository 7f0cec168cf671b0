"""Chromium at the pages."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Literal

from playwright.async_api import Page

from tests.support.browser import chromium

Theme = Literal["light", "dark"]
_AXE = Path(__file__).parent / "axe" / "axe.min.js"


@asynccontextmanager
async def opened(address: str, *, with_scripts: bool = True, timezone_id: str | None = None) -> AsyncIterator[Page]:
    """A page of a browser for a service at this address, and nothing else."""
    async with chromium() as browser:
        # The policy of the pages would keep out the checker, which is no part of them.
        context = await browser.new_context(
            base_url=address, java_script_enabled=with_scripts, bypass_csp=with_scripts, timezone_id=timezone_id
        )
        yield await context.new_page()


async def log_in(page: Page, key: str) -> None:
    """Log in as a person does."""
    await page.goto("/dashboard/login")
    await page.fill("#key", key)
    await page.click("button.main")
    await page.wait_for_url("**/dashboard")


async def faults(page: Page) -> list[str]:
    """The errors of accessibility that axe finds on the page."""
    await page.add_script_tag(path=_AXE)
    result = await page.evaluate("axe.run(document, { resultTypes: ['violations'] })")
    return [f"{item['id']}: {node['html'][:150]}" for item in result["violations"] for node in item["nodes"]]


async def overflow(page: Page) -> int:
    """Pixels by which the page is wider than its window."""
    width = "document.documentElement.scrollWidth - document.documentElement.clientWidth"
    return int(await page.evaluate(width))


async def hide(page: Page, is_hidden: bool) -> None:
    """Put another tab in front of the page, or take it away."""
    script = "hidden => { Object.defineProperty(document, 'hidden', { value: hidden, configurable: true });"
    await page.evaluate(script + " document.dispatchEvent(new Event('visibilitychange')); }", is_hidden)
