"""Callers of language models, over HTTP."""

from typing import Any
from uuid import uuid4

from app.db.database import Database
from app.kernel.access import Role
from tests.support.service import Service
from tests.support.sql import execute


def permit_body(**fields: Any) -> dict[str, Any]:
    """The body of a request for a permit."""
    usual = {"request_id": str(uuid4()), "model": "gpt-4.1", "agent_type": "ranking", "estimated_tokens": 100}
    return usual | fields


async def allow_many(service: Service, database: Database) -> None:
    """List a model at 10 dollars for a million tokens that bears 100 calls at once."""
    prices = {"input_price_per_million_tokens": 10.0, "output_price_per_million_tokens": 10.0}
    answer = await service.ask("PUT", "/llm/models/gpt-4.1", prices, headers={"If-Match": '"0"'})
    assert answer.status_code == 200, answer.text
    await execute(database, "UPDATE llm_models SET concurrency = 100, ramping = false")


async def acquired(service: Service, key: Role | str = Role.SUPERVISOR, **fields: Any) -> Any:
    return await service.post("/llm/permits", permit_body(**fields), key=key)


async def settled(
    service: Service, permit: Any, outcome: str = "success", key: Role | str = Role.SUPERVISOR, **fields: Any
) -> Any:
    body = {"token": permit["token"], "outcome": outcome} | fields
    return await service.post(f"/llm/permits/{permit['permit_id']}/settle", body, key=key)


async def reported(service: Service, outcome: str, *keys: Role | str, **fields: Any) -> None:
    """Let holders of these keys call the model at once, and report this of it, one after the other."""
    permits = [await acquired(service, key) for key in keys]
    for key, permit in zip(keys, permits, strict=True):
        await settled(service, permit, outcome, key, **fields)
