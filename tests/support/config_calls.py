"""Callers of `/config` for tests."""

from typing import Any

import httpx

from app.kernel.access import Role
from tests.support.service import Service

SECTIONS = ("worker_pool", "resource_limits", "agent_weights", "test_time_compute")


async def document(service: Service) -> dict[str, Any]:
    """The four sections that are in force, as PUT takes them."""
    found = await service.get("/config")
    return {name: found[name] for name in SECTIONS}


async def change(
    service: Service,
    method: str,
    body: Any,
    version: int | None,
    path: str = "/config",
    *,
    key: Role | str = Role.OPERATOR,
    **query: Any,
) -> httpx.Response:
    """A change that builds on this version; None sends no If-Match."""
    headers = {} if version is None else {"If-Match": f'"{version}"'}
    return await service.ask(method, path, body, key=key, headers=headers, params=query)


async def changed(service: Service, body: Any, version: int, **query: Any) -> Any:
    """The answer to a merge patch, which must be accepted."""
    answer = await change(service, "PATCH", body, version, **query)
    assert answer.status_code == 200, answer.text
    return answer.json()
