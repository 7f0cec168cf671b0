"""The API's watch for alerts while no loops run: somebody has to tell that they are away, and of what goes on then."""

import asyncio
import logging
from collections.abc import Callable

from app.db import duties
from app.db.database import Database
from app.health.rules.snapshot import WATCH
from app.health.service import alerts, webhooks
from app.health.service.delivery import MessageSender
from app.kernel.errors import DatabaseUnavailable
from app.queue.rules.admission import CapacityPolicy

log = logging.getLogger(__name__)
_EVERY_SECONDS = 5.0
# Far more than the loops leave between two turns.
_PATIENCE_SECONDS = 30.0
# More than the loops leave between two turns, so that one that stands in notices when they are back, and less than the
# break after which alerts forget what they have seen.
_LOOK_SECONDS = 10.0


async def stand_in(database: Database, capacity: Callable[[], CapacityPolicy], sender: MessageSender | None) -> None:
    """Watch, until cancelled, whenever no loop has done so for long, and deliver meanwhile what the outbox holds."""
    is_away = asyncio.Event()
    async with asyncio.TaskGroup() as group:
        group.create_task(_keep_watching(database, capacity, is_away, with_webhooks=sender is not None))
        if sender is not None:
            group.create_task(_keep_delivering(database, sender, is_away))


async def _keep_watching(
    database: Database, capacity: Callable[[], CapacityPolicy], is_away: asyncio.Event, *, with_webhooks: bool
) -> None:
    # On a database where nobody ever had a turn, loops that begin together with the API have theirs by then.
    await asyncio.sleep(_PATIENCE_SECONDS)
    while True:
        try:
            patience = 0.8 * _LOOK_SECONDS if is_away.is_set() else _PATIENCE_SECONDS
            if await _watch(database, capacity(), patience, with_webhooks=with_webhooks):
                is_away.set()
            else:
                is_away.clear()
        except DatabaseUnavailable:
            pass
        except Exception:
            log.exception("could not watch for alerts, trying again")
        await asyncio.sleep(_LOOK_SECONDS)


async def _watch(database: Database, capacity: CapacityPolicy, patience: float, *, with_webhooks: bool) -> bool:
    """Take the turn of the duty where it is so late; return whether it was."""
    async with database.transaction() as connection:
        await duties.ensure(connection, WATCH)
        turn = await duties.claim(connection, WATCH, patience)
        if turn is None:
            return False
        result = await alerts.watch(connection, capacity, with_webhooks=with_webhooks)
        await duties.record(connection, WATCH, result, held_back=False, every_seconds=_EVERY_SECONDS)
        return True


async def _keep_delivering(database: Database, sender: MessageSender, is_away: asyncio.Event) -> None:
    while True:
        await is_away.wait()
        try:
            await webhooks.deliver(database, sender)
        except DatabaseUnavailable:
            pass
        except Exception:
            log.exception("could not deliver webhooks, trying again")
        await asyncio.sleep(_EVERY_SECONDS)
