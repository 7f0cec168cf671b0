"""Debian's Chromium; where it is missing or does not start a test is skipped, unless it is told that it must not be."""

import os
import shutil
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest
from playwright.async_api import Browser, Error, async_playwright

REQUIRED = "CONVENER_TEST_BROWSER"
# Root, as which CI runs, cannot have the browser's own sandbox; containers have little shared memory.
_OPTIONS = ["--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage"]


@asynccontextmanager
async def chromium() -> AsyncIterator[Browser]:
    """A browser without a window."""
    program = shutil.which("chromium")
    if program is None:
        assert not os.environ.get(REQUIRED), "chromium is missing, and these tests must not be skipped"
        pytest.skip("chromium is not installed (Debian: apt-get install chromium)")
    async with async_playwright() as playwright:
        try:
            browser = await playwright.chromium.launch(executable_path=program, args=_OPTIONS)
        except Error as error:
            if os.environ.get(REQUIRED):
                raise
            pytest.skip(f"chromium does not start here: {error}")
        yield browser
        await browser.close()
