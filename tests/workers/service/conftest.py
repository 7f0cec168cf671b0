"""The host under test."""

import pytest

from tests.workers.service.host_pool import Host


@pytest.fixture
def host() -> Host:
    return Host()
