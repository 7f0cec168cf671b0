"""The service on a real port, for browsers."""

from collections.abc import AsyncIterator

import pytest

from app.db.database import Database
from tests.support.streams import Port, on_a_port


@pytest.fixture
async def port(database: Database) -> AsyncIterator[Port]:
    """A service of the test's own."""
    async with on_a_port(database) as port:
        yield port
