"""Releases of leases whose workers have hung up while they were claimed."""

from collections.abc import Mapping
from functools import partial

from app.db import hot_path
from app.db.database import Database
from app.db.notify import EVENTS, work
from app.kernel.ids import WorkerId
from app.queue.broker.retries import Retries
from app.queue.store import releases
from app.queue.store.claims import Lease


class Releases:
    """Releases leases beside the claims, those of one claim together."""

    def __init__(self, database: Database, retries: Retries) -> None:
        self._database = database
        self._retries = retries

    def start(self, leases: Mapping[WorkerId, Lease]) -> None:
        """Begin to release leases of which these workers never heard, unless one is told of its lease elsewhere."""
        self._retries.start(partial(self._release, dict(leases)), "release the leases", leases.keys())

    async def _release(self, remaining: dict[WorkerId, Lease]) -> bool:
        """Release what is not locked, and take it out of `remaining`; return whether that was all."""
        locked, tags = await hot_path.run(
            self._database, lambda c: releases.release(c, remaining, "its worker had hung up")
        )
        if tags:
            self._database.announcer.announce({EVENTS: 0.0} | {work(lane): tag for lane, tag in tags.items()})
        for worker_id in remaining.keys() - locked:
            del remaining[worker_id]
        return not remaining
