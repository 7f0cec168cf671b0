"""The keyring under test."""

import pytest

from app.admin.service.keyring import Keyring
from app.db.database import Database


@pytest.fixture
def keyring(database: Database) -> Keyring:
    return Keyring(database)
