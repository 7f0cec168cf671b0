"""The page for Prometheus: bounded whatever callers send, behind a key, and made once for all who scrape."""

import asyncio
from typing import Any
from unittest.mock import patch

import httpx
from prometheus_client import generate_latest

from app.health.api import prometheus
from app.health.service.snapshot_cache import CachePolicy, SnapshotCache
from app.http.openapi import DocumentPage
from app.kernel.access import Role
from tests.support.service import Service, serving


async def _page(service: Service) -> str:
    answer = await service.ask("GET", "/metrics", key=Role.MONITOR)
    assert answer.status_code == 200
    return answer.text


async def test_methods_and_paths_that_callers_make_up_add_no_lines(service: Service) -> None:
    for method in ("GET", "POST", "XA"):
        await service.ask(method, "/nowhere", key=None)
        await service.ask(method, "/tasks", key=None)
    before = len((await _page(service)).splitlines())
    for number in range(50):
        for method, path in ((f"X{number}", "/tasks"), (f"Y{number}", "/nowhere"), ("GET", f"/nowhere/{number}")):
            answer = await service.ask(method, path, key=None)
            assert answer.status_code in (401, 404, 405)
    text = await _page(service)
    # Only the few counts of the scrape itself, and of statuses that are new.
    assert len(text.splitlines()) <= before + 20
    assert 'method="other"' in text
    assert "X1" not in text


async def test_it_needs_a_key_unless_it_is_open(service: Service) -> None:
    assert (await service.ask("GET", "/metrics", key=None)).status_code == 401
    assert (await service.ask("GET", "/metrics", key=Role.POOL)).status_code == 403
    for role in (Role.MONITOR, Role.READER, Role.OPERATOR, Role.ADMIN):
        assert (await service.ask("GET", "/metrics", key=role)).status_code == 200
    async with serving(service.app.state.services.database.url, metrics_open=True) as open_service:
        assert (await open_service.ask("GET", "/metrics", key=None)).status_code == 200


async def test_all_who_scrape_within_a_second_share_a_page(service: Service) -> None:
    service.app.state.services[SnapshotCache].policy = CachePolicy(fresh_seconds=60)
    with patch.object(prometheus, "generate_latest", wraps=generate_latest) as render:
        pages = await asyncio.gather(*(_page(service) for _ in range(20)))
    assert render.call_count <= 1
    assert len(set(pages)) == 1


async def test_the_description_is_written_once() -> None:
    calls: list[int] = []

    def describe() -> dict[str, Any]:
        calls.append(1)
        return {"openapi": "3.1.0"}

    transport = httpx.ASGITransport(DocumentPage(describe))
    async with httpx.AsyncClient(transport=transport, base_url="http://convener") as client:
        answers = await asyncio.gather(*(client.get("/") for _ in range(20)))
    assert [answer.json() for answer in answers] == [{"openapi": "3.1.0"}] * 20
    assert len(calls) == 1
