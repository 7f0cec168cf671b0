"""The application over the database that is emptied after each test."""

from collections.abc import AsyncIterator
from typing import Any

import pytest

from app.store.database import Database
from tests.api.problems import everything
from tests.api.service import Service, Worker, make_keys, serving


@pytest.fixture
async def service(database: Database) -> AsyncIterator[Service]:
    """The application, and a key for every role."""
    async with serving(database.url, await make_keys(database)) as service:
        yield service


@pytest.fixture
async def worker(service: Service) -> Worker:
    return await service.worker()


@pytest.fixture
async def lease(service: Service, worker: Worker) -> Any:
    await service.submitted()
    return await worker.lease()


@pytest.fixture
async def unchanged(lease: Any, database: Database) -> AsyncIterator[None]:
    """The whole database is the same after the test as before."""
    before = await everything(database)
    yield
    assert await everything(database) == before
