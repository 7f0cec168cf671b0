"""A broker and a desk on a database of the test's own."""

from collections.abc import AsyncIterator

import pytest

from app.domain.fairness import FairQueue
from app.domain.leases import LeasePolicy
from app.operations.broker import Broker
from app.operations.leases import LeaseDesk
from app.operations.workers import Heartbeats
from app.store.database import Database


@pytest.fixture
async def broker(database: Database) -> AsyncIterator[Broker]:
    broker = Broker(database, LeasePolicy())
    broker.start()
    yield broker
    await broker.stop()


@pytest.fixture
async def desk(database: Database) -> AsyncIterator[LeaseDesk]:
    desk = LeaseDesk(database, LeasePolicy(), FairQueue())
    yield desk
    await desk.stop()


@pytest.fixture
async def heartbeats(database: Database) -> AsyncIterator[Heartbeats]:
    heartbeats = Heartbeats(database, LeasePolicy())
    yield heartbeats
    await heartbeats.stop()


@pytest.fixture
async def replica(database: Database) -> AsyncIterator[Database]:
    """The same database as another process of the service sees it."""
    replica = Database(database.url)
    replica.announcer.start()
    yield replica
    await replica.close()
