"""Browsers at the pages, without scripts: they keep cookies, follow links and send forms."""

import re
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from html import unescape
from typing import Any

import httpx

from app.kernel.access import Role
from tests.support.service import Service

_FIELD = re.compile(r'<(?:input|textarea)[^>]*name="csrf"[^>]*value="([^"]*)"')


@dataclass(frozen=True, slots=True, kw_only=True)
class Browser:
    """Somebody's browser."""

    client: httpx.AsyncClient

    async def get(self, path: str, **options: Any) -> httpx.Response:
        """The answer of an address."""
        return await self.client.get(path, **options)

    async def page(self, path: str) -> str:
        """The text of a page, which must be there."""
        answer = await self.get(path)
        assert answer.status_code == 200, f"{path}: {answer.status_code} {answer.text[:500]}"
        return answer.text

    async def send(self, path: str, /, *, of: str = "/dashboard", **fields: str) -> httpx.Response:
        """Send a form of a page, with its word."""
        return await self.client.post(path, data={"csrf": await self.word(of)} | fields)

    async def do(self, action: str, **fields: str) -> str:
        """Carry out an action; the sentence that tells of it, or why it was refused."""
        answer = await self.send(f"/dashboard/do/{action}", **fields)
        following = answer if answer.status_code != 303 else await self.get(answer.headers["location"])
        sentence = re.search(r'<p class="(?:notice|refusal)"[^>]*>(.*?)</p>', following.text, re.DOTALL)
        return unescape(sentence[1]) if sentence else ""

    async def word(self, path: str = "/dashboard") -> str:
        """The word of the forms of a page."""
        text = (await self.get(path, follow_redirects=True)).text
        field = _FIELD.search(text)
        assert field, text[:500]
        return field[1]

    async def log_in(self, key: str) -> httpx.Response:
        """Send the form of the login."""
        return await self.send("/dashboard/login", of="/dashboard/login", key=key)


@asynccontextmanager
async def browser(service: Service, key: Role | str | None = None) -> AsyncIterator[Browser]:
    """A browser, logged in with the key of a role or another one."""
    transport = httpx.ASGITransport(app=service.app)
    async with httpx.AsyncClient(transport=transport, base_url="http://convener", timeout=60) as client:
        one = Browser(client=client)
        if key is not None:
            answer = await one.log_in(service.keys[key] if isinstance(key, Role) else key)
            assert answer.status_code == 303, answer.text
        yield one
