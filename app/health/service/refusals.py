"""Counts of refused requests, written together every few seconds: no single request causes a write."""

import asyncio
import logging
from collections import Counter
from typing import Protocol

from app.db.database import Database
from app.health.store import refusals
from app.kernel.access import RefusalReason
from app.kernel.errors import DatabaseUnavailable

log = logging.getLogger(__name__)
_WRITE_SECONDS = 10.0


class RefusalCounts(Protocol):
    """Counts of this process that have not been written yet."""

    def take_unwritten(self) -> Counter[RefusalReason]:
        """Counts since the last call."""
        ...

    def put_back(self, counts: Counter[RefusalReason]) -> None:
        """Keep counts that could not be written for the next time."""
        ...


async def write_counts(database: Database, counts: RefusalCounts) -> None:
    """Write what has been counted since the last time. Raises DatabaseUnavailable, and then keeps the counts."""
    unwritten = counts.take_unwritten()
    if not unwritten:
        return
    try:
        async with database.transaction() as connection:
            await refusals.add(connection, unwritten)
    except BaseException:
        counts.put_back(unwritten)
        raise


async def keep_writing(database: Database, counts: RefusalCounts) -> None:
    """Write counts until canceled."""
    while True:
        await asyncio.sleep(_WRITE_SECONDS)
        try:
            await write_counts(database, counts)
        except DatabaseUnavailable:
            continue
        except Exception:
            log.exception("could not write the counts of refused requests, trying again")
