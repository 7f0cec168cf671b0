"""Callers of language models, and how many calls there may be."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from typing import Any
from uuid import uuid4

from app.admin.rules.config import ConfigAction
from app.admin.service import config
from app.admin.service.config import ChangeRequest
from app.db.database import Database
from app.kernel.agents import AgentType
from app.kernel.lanes import Priority
from app.kernel.modes import Mode
from app.llm.rules.outcomes import CallReport, Outcome
from app.llm.rules.permits import RequestId
from app.llm.service.grant import AcquireRequest
from app.llm.service.permits import PermitService
from app.llm.service.settle import Settlement
from app.llm.store import models
from app.llm.store.cache import NewAnswer
from app.llm.store.permits import Permit
from app.queue.rules.fair_queueing import FairQueue
from tests.support.sql import execute


def request(model: str = "m", **changes: Any) -> AcquireRequest:
    """The request of a key that is no worker's, unless it names a worker, whose task says the rest."""
    stated = {} if "worker_id" in changes else {"agent_type": AgentType.RANKING, "priority": Priority.MEDIUM}
    return AcquireRequest(**{"id": RequestId("key", uuid4()), "model": model, "tokens": 100, **stated, **changes})


def settlement(
    permit: Permit, outcome: Outcome = Outcome.SUCCESS, answer: NewAnswer | None = None, **reported: Any
) -> Settlement:
    """The settlement of whoever holds the permit."""
    report = CallReport(outcome=outcome, **reported)
    return Settlement(
        permit_id=permit.id,
        token=permit.token,
        worker_id=permit.request.worker_id,
        report=report,
        digest=repr(report).encode(),
        answer=answer,
    )


@asynccontextmanager
async def opened(database: Database) -> AsyncIterator[PermitService]:
    """A permit service as a process of the service has it."""
    permit_service = PermitService(database, FairQueue())
    yield permit_service
    await permit_service.stop()


async def list_models(database: Database, *names: str) -> None:
    """List models, so that permits are granted for them."""
    async with database.transaction() as connection:
        await models.add(connection, names)


async def allow_calls(database: Database, calls: int, *, service_bears: float = 100) -> None:
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
        order = ChangeRequest(expected_version=now.version, by="test")
        document = replace(now.document, resource_limits=limits)
        await config.change(connection, Mode.PRODUCTION, order, ConfigAction.SET, document)
