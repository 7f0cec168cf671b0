"""Debian's Chromium; where it is missing a test is skipped, unless it is told that it must not be."""

import os
import shutil
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest
from playwright.async_api import Browser, async_playwright

REQUIRED = "CONVENER_TEST_BROWSER"


@asynccontextmanager
async def chromium() -> AsyncIterator[Browser]:
    """A browser without a window."""
    program = shutil.which("chromium")
    if program is None:
        assert not os.environ.get(REQUIRED), "chromium is missing, and these tests must not be skipped"
        pytest.skip("chromium is not installed (Debian: apt-get install chromium)")
    async with async_playwright() as playwright:
        # Root, as which CI runs, cannot have the browser's own sandbox.
        browser = await playwright.chromium.launch(executable_path=program, args=["--no-sandbox", "--disable-gpu"])
        yield browser
        await browser.close()
