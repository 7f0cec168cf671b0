"""The application over the database that is emptied after each test."""

from collections.abc import AsyncIterator

import pytest

from app.store.database import Database
from tests.api.service import Service, make_keys, serving


@pytest.fixture
async def service(database: Database) -> AsyncIterator[Service]:
    """The application, and a key for every role."""
    async with serving(database.url, await make_keys(database)) as service:
        yield service
