"""Callers of language models, and how many calls there may be."""

from dataclasses import replace
from typing import Any
from uuid import uuid4

from app.domain.agents import AgentType
from app.domain.calls import Outcome, Report
from app.domain.config import ConfigAction
from app.domain.permits import Ask, AskId
from app.domain.scaling import Mode
from app.domain.tasks import Priority
from app.operations import config
from app.operations.config import Order
from app.operations.granting import Request
from app.operations.settling import Settlement
from app.store.database import Database
from app.store.permits import Permit
from tests.sql import execute


def request(model: str = "m", **changes: Any) -> Request:
    ask = Ask(id=AskId("key", uuid4()), model=model, agent_type=AgentType.RANKING, priority=Priority.MEDIUM, tokens=100)
    return Request(ask=replace(ask, **changes))


def settlement(permit: Permit, outcome: Outcome = Outcome.SUCCESS, **told: Any) -> Settlement:
    report = Report(outcome=outcome, **told)
    return Settlement(permit_id=permit.id, token=permit.token, report=report, digest=repr(report).encode())


async def set_most(database: Database, calls: int, *, service_bears: float = 100) -> None:
    """Let the configuration allow so many calls, and let the service of model m bear so many."""
    await execute(
        database,
        "INSERT INTO llm_models (model, concurrency) VALUES ('m', $1)"
        " ON CONFLICT (model) DO UPDATE SET concurrency = $1",
        service_bears,
    )
    await configure(database, calls)


async def configure(database: Database, calls: int) -> None:
    """Let the configuration allow so many calls."""
    async with database.transaction() as connection:
        now = await config.current(connection, Mode.PRODUCTION)
        limits = replace(now.document.resource_limits, max_concurrent_llm_calls=calls)
        order = Order(expected=now.version, by="test")
        document = replace(now.document, resource_limits=limits)
        await config.change(connection, Mode.PRODUCTION, order, ConfigAction.SET, document)
