"""The lease broker: hands one task each to all workers that wait, with one statement and one commit for all.

Nothing here holds a connection while a call waits. A wait ends when a submit in this process or a notification
from another rings; a jittered poll stands behind both.
"""

import asyncio
import logging
import random
from collections import Counter
from dataclasses import dataclass
from uuid import UUID

from app.db import hot_path
from app.db.database import Database
from app.db.notify import News, work
from app.kernel.agents import AgentType
from app.kernel.errors import ConvenerError, DatabaseUnavailable, ShuttingDown
from app.kernel.ids import WorkerId
from app.kernel.lanes import Lane
from app.kernel.states import WorkerState
from app.queue.broker.dispatch import OnFirstLeases, Preferences, Served, Turns
from app.queue.broker.lane_view import Backlog, Strays, keep_in_step
from app.queue.errors import WorkerBusy, WorkerGone, WorkerNotFound, WorkerNotReady
from app.queue.rules.fair_queueing import FairQueue
from app.queue.rules.tasks import LeasePolicy
from app.queue.service.leases import Fence, release
from app.queue.store import claims
from app.queue.store.claims import ClaimOutcome, ClaimRequest, Lease
from app.queue.store.lanes import TagIssuer

log = logging.getLogger(__name__)
_BATCH = 64


@dataclass(frozen=True, slots=True, kw_only=True)
class LeaseCall:
    """A worker asks for a task."""

    worker_id: WorkerId
    request_id: UUID
    agent_types: frozenset[AgentType]
    acknowledge: bool = False


@dataclass(slots=True, eq=False)
class _Waiter:
    call: LeaseCall
    answer: asyncio.Future[Lease | None]
    patient: bool
    idle_since: float
    is_new: bool = True
    in_flight: bool = False
    unserved: bool = False
    asked: Lane | None = None
    charge: float = 0.0


class Broker:
    """One per process; `start` it in a running event loop and `stop` it to release everybody who waits."""

    def __init__(
        self,
        database: Database,
        policy: LeasePolicy,
        fairness: FairQueue | None = None,
        on_first_leases: OnFirstLeases | None = None,
    ) -> None:
        self._database = database
        self._policy = policy
        self.fairness = fairness or FairQueue()
        self.preferences = Preferences()
        self._waiters: dict[WorkerId, _Waiter] = {}
        self._backlog = Backlog()
        self._strays = Strays(database)
        self._turns = Turns(self._backlog, self.fairness, database.shared(TagIssuer), self.preferences)
        self.degradation = self._turns.degradation
        self._wake = asyncio.Event()
        self._served = Served(database, on_first_leases)
        self._tasks: list[asyncio.Task[None]] = []
        self._stopping = False
        self._was_asked = False
        database.announcer.subscribe(self._hear)

    @property
    def waiting(self) -> int:
        """How many workers wait for a task right now."""
        return len(self._waiters)

    def start(self) -> None:
        """Begin to serve."""
        self._tasks = [
            asyncio.create_task(self._run(), name="lease-broker"),
            asyncio.create_task(keep_in_step(self._database, self._look_everywhere), name="lease-broker-lanes"),
        ]

    async def stop(self) -> None:
        """Answer everybody who waits with nothing, and take no more calls."""
        self._stopping = True
        for waiter in list(self._waiters.values()):
            if not waiter.in_flight:
                self._settle(waiter, None)
            waiter.patient = False
        self._wake.set()
        if self._tasks:
            serving, keeping = self._tasks
            await serving
            keeping.cancel()
            await asyncio.gather(keeping, return_exceptions=True)

    async def lease(self, call: LeaseCall, wait_seconds: float = 0.0) -> Lease | None:
        """A task for this worker, or None when there is none within the wait.

        Raises WorkerNotFound, WorkerNotReady, WorkerGone, WorkerBusy, ShuttingDown, DatabaseUnavailable.
        """
        if self._stopping:
            raise ShuttingDown
        waiter = self._enter(call, wait_seconds)
        timer = asyncio.get_running_loop().call_later(wait_seconds, self._time_is_up, waiter) if wait_seconds else None
        self._wake.set()
        try:
            return await waiter.answer
        finally:
            if timer is not None:
                timer.cancel()
            if self._waiters.get(call.worker_id) is waiter:
                del self._waiters[call.worker_id]

    def _enter(self, call: LeaseCall, wait_seconds: float) -> _Waiter:
        former = self._waiters.get(call.worker_id)
        if former is not None:
            # The worker has evidently given up on its former call; the answer goes to the newer one.
            self._settle(former, None)
        waiter = _Waiter(
            call=call,
            answer=asyncio.get_running_loop().create_future(),
            patient=wait_seconds > 0,
            idle_since=self._served.at(call.worker_id),
        )
        self._waiters[call.worker_id] = waiter
        self._was_asked = True
        return waiter

    def _time_is_up(self, waiter: _Waiter) -> None:
        """A lease may be on its way: then the answer of that round counts."""
        waiter.patient = False
        if not waiter.in_flight and not waiter.is_new:
            self._settle(waiter, None)

    def _hear(self, news: News) -> None:
        if self._backlog.hear(news):
            self._wake.set()

    async def _look_everywhere(self) -> None:
        if self._waiters or self._was_asked:
            self._was_asked = False
            self._backlog.ring(await self._strays.find(self._backlog.stood()))
            self._wake.set()

    async def _run(self) -> None:
        while not (self._stopping and not self._waiters):
            woken = await self._rest()
            try:
                if not woken and self._waiters:
                    await self._look_for_work()
                await self._serve()
            except DatabaseUnavailable as error:
                self._give_up_impatient(error)
                await asyncio.sleep(0.2)
            except Exception as error:
                log.exception("the lease broker stumbled")
                self._give_up_impatient(error)
                await asyncio.sleep(0.2)

    async def _rest(self) -> bool:
        """Until somebody rings, or a second or so while workers wait; whether somebody rang."""
        if self._stopping:
            return True
        try:
            await asyncio.wait_for(self._wake.wait(), random.uniform(0.5, 1.5))  # noqa: S311 - jitter, not a secret
        except TimeoutError:
            return False
        self._wake.clear()
        return True

    async def _look_for_work(self) -> None:
        self._backlog.ring(await hot_path.run(self._database, lambda c: claims.ready_lanes(c, self._backlog.stood())))

    async def _serve(self) -> None:
        while True:
            newcomers = [waiter for waiter in self._waiters.values() if waiter.is_new]
            if any(not (waiter.call.agent_types & self._backlog.agents()) for waiter in newcomers):
                await self._look_for_work()
            batch = self._next_batch()
            if not batch:
                self._give_up_impatient(None)
                return
            await self._claim(batch)

    def _next_batch(self) -> list[_Waiter]:
        """Those to serve now, longest idle first, each with the lane whose turn it is."""
        batch: list[_Waiter] = []
        asked: Counter[Lane] = Counter()
        for waiter in sorted(self._waiters.values(), key=lambda waiter: waiter.idle_since):
            if waiter.in_flight or waiter.unserved:
                continue
            waiter.asked = self._turns.choose(waiter.call.worker_id, waiter.call.agent_types, asked)
            if waiter.asked is not None:
                waiter.charge = self.fairness.charge(waiter.asked.agent_type)
                asked[waiter.asked] += 1
            elif not waiter.is_new:
                continue
            batch.append(waiter)
            if len(batch) == _BATCH:
                break
        return batch

    async def _claim(self, batch: list[_Waiter]) -> None:
        for waiter in batch:
            waiter.in_flight, waiter.is_new = True, False
        asks = [self._ask(waiter) for waiter in batch]
        self._backlog.about_to_look()
        try:
            found = await hot_path.run(
                self._database,
                lambda c: claims.claim(c, asks, self._policy),
                undone=lambda: self._let_go(asks),
            )
            self._turns.learn(asks, found)
            await self._served.note([a.worker_id for a, claim in zip(asks, found, strict=True) if claim.lease])
            for waiter, claim in zip(batch, found, strict=True):
                await self._answer(waiter, claim)
        finally:
            # Not before the last is answered: a wait that ended meanwhile would throw away the lease it was given.
            for waiter in batch:
                waiter.in_flight = False

    def _let_go(self, asks: list[ClaimRequest]) -> None:
        """What a claim that fails had locked is free again; meanwhile others may have passed over it."""
        self._database.announcer.announce({work(ask.lane): ask.floor for ask in asks if ask.lane is not None})

    def _ask(self, waiter: _Waiter) -> ClaimRequest:
        call, lane = waiter.call, waiter.asked
        return ClaimRequest(
            worker_id=call.worker_id,
            request_id=call.request_id,
            lane=lane,
            acknowledge=call.acknowledge,
            floor=self._backlog.floor(lane) if lane else claims.BOTTOM,
        )

    async def _answer(self, waiter: _Waiter, claim: ClaimOutcome) -> None:
        if claim.lease is not None:
            await self._hand_over(waiter, claim.lease)
            return
        if waiter.asked is not None:
            self.fairness.refund(waiter.asked.agent_type, waiter.charge)
        try:
            if claim.holds_another:
                self._settle(waiter, await self._repeat(waiter.call, claim))
            elif claim.worker_state == WorkerState.DRAINING:
                waiter.unserved = True
            elif claim.worker_state != WorkerState.READY:
                raise _standing(claim.worker_state)
        except ConvenerError as error:
            self._settle(waiter, error)

    async def _hand_over(self, waiter: _Waiter, lease: Lease) -> None:
        """To the worker; back to the queue when it hung up while its lease was on the way, and has not called again."""
        worker_id = waiter.call.worker_id
        if waiter.answer.cancelled() and worker_id not in self._waiters:
            fence = Fence(task_id=lease.task_id, token=lease.token, worker_id=worker_id)
            async with self._database.transaction() as connection:
                await release(connection, fence, "its worker had hung up")
        self._settle(waiter, lease)

    async def _repeat(self, call: LeaseCall, claim: ClaimOutcome) -> Lease:
        """The same request again gets the same lease again: its answer was lost."""
        if claim.is_repeat:
            lease = await hot_path.run(
                self._database, lambda c: claims.lease_of_request(c, call.worker_id, call.request_id)
            )
            if lease is not None:
                return lease
        raise WorkerBusy

    def _give_up_impatient(self, error: Exception | None) -> None:
        for waiter in list(self._waiters.values()):
            if not waiter.patient and not (waiter.is_new and error is None):
                self._settle(waiter, error)

    def _settle(self, waiter: _Waiter, outcome: Lease | Exception | None) -> None:
        if self._waiters.get(waiter.call.worker_id) is waiter:
            del self._waiters[waiter.call.worker_id]
        if waiter.answer.done():
            return
        if isinstance(outcome, Exception):
            waiter.answer.set_exception(outcome)
        else:
            waiter.answer.set_result(outcome)


def _standing(state: str | None) -> ConvenerError:
    if state is None:
        return WorkerNotFound()
    if state == WorkerState.STARTING:
        return WorkerNotReady()
    return WorkerGone(f"this worker is {state}", reason=state)
