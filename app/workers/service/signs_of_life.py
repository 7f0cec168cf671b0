"""Signs of life of workers besides their heartbeats: every call with a worker's key, and a call that waits for a task.

Calls are remembered in memory. Now and then those of workers that do not beat are stored, so that a call costs nothing,
and nothing is written for a worker that beats as it should.
"""

import asyncio
import logging
import math
import time
from collections.abc import Callable
from dataclasses import dataclass, field

from app.db import hot_path
from app.db.database import Database
from app.http.callers import CallListener
from app.kernel.errors import DatabaseUnavailable
from app.kernel.ids import WorkerId
from app.queue.broker.broker import Broker
from app.workers.rules.workers import HealthPolicy
from app.workers.store.signs_of_life import Sign, store_signs

log = logging.getLogger(__name__)
# Workers that have not called for so long are forgotten, as far as they have not ended before.
_FORGET_SECONDS = 600.0
# Heartbeats during waits after which a worker is held to them: one may cross a wait that its worker has given up.
_BEATS = 2


@dataclass(slots=True, kw_only=True)
class _Calls:
    """Times by this process's clock of a worker's last call and its last stored sign of life."""

    called_at: float
    stored_at: float = field(default=-math.inf)
    beats_while_waiting: int = 0


class SignsOfLife(CallListener):
    """One per process of the API.

    A call that waits for a task is a sign of life for as long as its connection lasts, unless the worker beats
    meanwhile: from one that does, silence means that it hangs, or that its host is gone, and the connection lasts on.
    """

    def __init__(self, database: Database, broker: Broker, clock: Callable[[], float] = time.monotonic) -> None:
        self.lost_after_seconds = HealthPolicy().lost_after_seconds
        self._database = database
        self._broker = broker
        self._clock = clock
        self._workers: dict[WorkerId, _Calls] = {}

    def note(self, worker_id: WorkerId) -> None:
        """Remember a call."""
        calls = self._workers.get(worker_id)
        if calls is None:
            self._workers[worker_id] = _Calls(called_at=self._clock())
        else:
            calls.called_at = self._clock()

    def note_heartbeat(self, worker_id: WorkerId) -> None:
        """Remember that a heartbeat was stored."""
        calls = self._workers.get(worker_id)
        if calls is not None:
            calls.stored_at = self._clock()
            calls.beats_while_waiting += self._broker.is_waiting(worker_id)

    async def keep_storing(self) -> None:
        """Store what the sweep has to learn in time, until cancelled."""
        while True:
            # Several tries between the half of the time, when a sign becomes due, and its end.
            await asyncio.sleep(min(2.0, self.lost_after_seconds / 8))
            try:
                await self.store_due()
            except DatabaseUnavailable:
                continue
            except Exception:
                log.exception("could not store signs of life of workers, trying again")

    async def store_due(self) -> None:
        """Store signs of life of workers whose last stored one is half as old as it may become."""
        moment = self._clock()
        signs = [sign for worker_id in list(self._workers) if (sign := self._due(worker_id, moment)) is not None]
        if not signs:
            return
        stored = await hot_path.run(self._database, lambda c: store_signs(c, signs))
        # After the answer, so that nothing counts as stored before it was: a later time in the row is a heartbeat.
        answered_at = self._clock()
        for sign in signs:
            calls, answer = self._workers[sign.worker_id], stored.get(sign.worker_id)
            if answer is None:
                del self._workers[sign.worker_id]
            elif answer.is_stored:
                calls.stored_at = answered_at - sign.age
            else:
                silent_seconds = answer.silent_seconds or 0.0
                calls.stored_at = answered_at - silent_seconds
                # Stored by another process, while this one held a call that waits.
                calls.beats_while_waiting += sign.is_waiting and silent_seconds < sign.unseen

    def _due(self, worker_id: WorkerId, moment: float) -> Sign | None:
        """The sign of life to store of a worker, if any; forgets those that are long gone."""
        calls = self._workers[worker_id]
        is_waiting = self._broker.is_waiting(worker_id) and calls.beats_while_waiting < _BEATS
        if is_waiting:
            # A heartbeat that another process has stored meanwhile is told by its later time, but for small delays.
            age = 0.0
            unseen = moment - max(calls.called_at, calls.stored_at) - min(1.0, self.lost_after_seconds / 10)
        else:
            age = unseen = moment - calls.called_at
            if age > _FORGET_SECONDS and not self._broker.is_waiting(worker_id):
                del self._workers[worker_id]
                return None
        is_news = moment - age > calls.stored_at
        is_due = moment - calls.stored_at > self.lost_after_seconds / 2
        if not (is_news and is_due):
            return None
        return Sign(worker_id=worker_id, age=age, unseen=max(0.0, unseen), is_waiting=is_waiting)
