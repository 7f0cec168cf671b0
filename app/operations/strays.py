"""Finding tasks that lie below where a broker believes their lane to stand, and that nobody announced.

A notification may be lost, or a task be locked while a claim passes over it. Such a task became ready lately, which is
how it is found; now and then a look goes through every lane from its bottom, at whatever that costs.
"""

from collections.abc import Mapping
from datetime import datetime, timedelta

from app.domain.lanes import Lane
from app.operations.backlog import LANES
from app.store import claims, hot
from app.store.database import Database

# Longer than a transaction usually takes between the time that it writes into a row and its commit.
_OVERLAP = timedelta(seconds=15)
_FROM_THE_BOTTOM_EVERY = 60


class Strays:
    """Remembers how far it has looked."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self._looked_at: datetime | None = None
        self._turn = 0

    async def find(self, stood: Mapping[Lane, float]) -> dict[Lane, float]:
        """Lane -> lowest tag of what lies below where the lane stood, as far as it became ready since the last look."""
        since, self._looked_at = self._looked_at, await hot.run(self._database, claims.moment)
        self._turn += 1
        if since is None or self._turn % _FROM_THE_BOTTOM_EVERY == 0:
            return await hot.run(self._database, lambda c: claims.look(c, LANES))
        return await hot.run(self._database, lambda c: claims.strays(c, stood, since - _OVERLAP))
