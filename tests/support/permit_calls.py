"""Callers of language models, over HTTP."""

from typing import Any
from uuid import uuid4

from app.kernel.access import Role
from tests.support.service import Service


def permit_body(**fields: Any) -> dict[str, Any]:
    """The body of a request for a permit."""
    usual = {"request_id": str(uuid4()), "model": "gpt-4.1", "agent_type": "ranking", "estimated_tokens": 100}
    return usual | fields


async def acquired(service: Service, **fields: Any) -> Any:
    return await service.post("/llm/permits", permit_body(**fields), key=Role.SUPERVISOR)


async def settled(service: Service, permit: Any, outcome: str = "success", **fields: Any) -> Any:
    body = {"token": permit["token"], "outcome": outcome} | fields
    return await service.post(f"/llm/permits/{permit['permit_id']}/settle", body, key=Role.SUPERVISOR)
