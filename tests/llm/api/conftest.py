"""Models that callers may ask for."""

import pytest

from app.db.database import Database
from tests.support.permit_callers import list_models


@pytest.fixture(autouse=True)
async def _listed(database: Database) -> None:
    await list_models(database, "gpt-4.1", "small", "smaller", "broken", "new", "a", "b")
