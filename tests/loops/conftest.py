"""A second process of the service on the same database."""

from collections.abc import AsyncIterator

import pytest

from app.store.database import Database


@pytest.fixture
async def replica(database: Database) -> AsyncIterator[Database]:
    replica = Database(database.url)
    replica.announcer.start()
    yield replica
    await replica.close()
