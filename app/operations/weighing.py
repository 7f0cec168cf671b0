"""Keeping the shares of agent types at the weights in force."""

import asyncio
import logging
from collections.abc import Collection

from app.domain.errors import DatabaseUnavailable
from app.domain.fairness import FairQueue
from app.operations import weights
from app.operations.config import CurrentConfig
from app.operations.degradation import CurrentStep
from app.store import announcements
from app.store.database import Database

log = logging.getLogger(__name__)
# A change is announced; one that nobody heard of is seen after this long.
_LOOK_SECONDS = 1.0
_TOPICS = frozenset({announcements.WEIGHTS, announcements.CONFIG})


async def follow_weights(
    database: Database, config: CurrentConfig, fairness: FairQueue, degradation: CurrentStep
) -> None:
    """Until cancelled: weights and step of degradation, by which leases are shared, are those in force."""
    news = asyncio.Event()

    def hear(topics: Collection[str]) -> None:
        if not _TOPICS.isdisjoint(topics):
            news.set()

    database.announcer.subscribe(hear)
    try:
        while True:
            await take_weights(database, config, fairness, degradation)
            try:
                await asyncio.wait_for(news.wait(), _LOOK_SECONDS)
            except TimeoutError:
                continue
            news.clear()
    finally:
        database.announcer.unsubscribe(hear)


async def take_weights(
    database: Database, config: CurrentConfig, fairness: FairQueue, degradation: CurrentStep
) -> None:
    """Share by the weights in force, as far as the database tells them."""
    try:
        known = await config.read()
        async with database.transaction() as connection:
            found = await weights.in_force(connection, known)
        fairness.weights, degradation.step = found.shares, found.step
    except DatabaseUnavailable:
        pass
    except Exception:
        log.exception("could not read the weights, trying again")
