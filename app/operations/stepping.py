"""Keeping a broker in step with the others: what each knows of the lanes, and the work that nobody announced."""

import asyncio
import itertools
import logging
import random
from collections.abc import Awaitable, Callable

from app.domain.errors import DatabaseUnavailable
from app.store import hot, lanes
from app.store.database import Database

log = logging.getLogger(__name__)
_LOOK_EVERY = 3


async def keep_in_step(database: Database, look_everywhere: Callable[[], Awaitable[None]]) -> None:
    """About once a second until cancelled: exchange virtual times; every third time look for what nobody announced."""
    for turn in itertools.count(1):
        await asyncio.sleep(random.uniform(0.8, 1.2))  # noqa: S311 - jitter, not a secret
        try:
            await _exchange(database)
            if turn % _LOOK_EVERY == 0:
                await look_everywhere()
        except DatabaseUnavailable:
            continue
        except Exception:
            log.exception("could not keep in step with the lanes, trying again")


async def _exchange(database: Database) -> None:
    news = database.lanes.news()
    database.lanes.shared(await hot.run(database, lambda c: lanes.exchange(c, news)))
