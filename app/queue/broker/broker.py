"""The lease broker: serves all waiting workers together, with one statement and one commit, one task each.

Nothing here holds a connection while a call waits. A wait ends with an announcement of work, by a submit in this
process or a notification from another; a jittered poll covers lost ones.
"""

import asyncio
import logging
import random
import time
from collections.abc import Callable, Mapping, Sequence
from datetime import datetime
from operator import attrgetter

from app.db import hot_path
from app.db.database import Database
from app.db.notify import EVENTS, RESOURCES, News, work
from app.kernel.agents import AgentType
from app.kernel.errors import DatabaseUnavailable, ShuttingDown
from app.kernel.ids import WorkerId
from app.kernel.lanes import Lane
from app.kernel.states import WorkerState
from app.queue.broker import calls
from app.queue.broker.calls import Answer, LeaseCall, Waiter, reconsider
from app.queue.broker.dispatch import BatchLanes, Dispatcher, IdleTimes, LeaseHistory, OnFirstLeases, WorkerPreferences
from app.queue.broker.lane_view import LaneScanner, LaneView, synchronize_lanes
from app.queue.broker.refusals import refusal
from app.queue.broker.releases import Releases
from app.queue.broker.retries import Retries
from app.queue.errors import WorkerBusy
from app.queue.rules.fair_queueing import FairQueue
from app.queue.rules.tasks import LeasePolicy
from app.queue.service.task_traces import TaskTraces
from app.queue.store import claims, ready_lanes, resource_classes
from app.queue.store.claims import ClaimOutcome, ClaimRequest, Lease

log = logging.getLogger(__name__)
_IDLE_SINCE = attrgetter("idle_since")


class Broker:
    """One per process; `start` it in a running event loop, and `stop` it to answer all waiting calls."""

    def __init__(
        self,
        database: Database,
        policy: LeasePolicy,
        fairness: FairQueue | None = None,
        on_first_leases: OnFirstLeases | None = None,
        traces: TaskTraces | None = None,
    ) -> None:
        self._database = database
        self.policy = policy
        self.fairness = fairness or FairQueue()
        self.preferences = WorkerPreferences()
        self._waiters: dict[WorkerId, Waiter] = {}
        self._lanes = LaneView()
        self._scanner = LaneScanner(database)
        self._dispatcher = Dispatcher(self._lanes, self.fairness, self.preferences, database)
        self.degradation, self._classes = self._dispatcher.degradation, self._dispatcher.classes
        self._known_classes = {0}
        self._wake = asyncio.Event()
        self._retries = Retries()
        self._history = LeaseHistory(database, self._retries, on_first_leases)
        self._releases = Releases(database, self._retries)
        self._idle = IdleTimes()
        self._traces = traces
        self._tasks: list[asyncio.Task[None]] = []
        self._is_stopping = False
        self._had_calls = False
        database.announcer.subscribe(self._on_announcement)

    @property
    def waiting_count(self) -> int:
        """Number of workers that wait for a task."""
        return len(self._waiters)

    def is_waiting(self, worker_id: WorkerId) -> bool:
        """Whether a call of this worker waits for a task; it does no longer once its client has hung up."""
        return worker_id in self._waiters

    def start(self) -> None:
        """Begin to serve calls."""
        self._tasks = [
            asyncio.create_task(self._run(), name="lease-broker"),
            asyncio.create_task(synchronize_lanes(self._database, self._scan_lanes), name="lease-broker-lanes"),
        ]

    async def stop(self) -> None:
        """Answer all waiting calls without a task, and take no more. Claims in flight are finished first."""
        self._is_stopping = True
        for waiter in list(self._waiters.values()):
            # A claim in flight may have committed a lease already; its outcome answers the call.
            if not waiter.in_flight:
                self._settle(waiter, None)
            waiter.may_wait = False
        self._wake.set()
        if self._tasks:
            serving, synchronizing = self._tasks
            await serving
            synchronizing.cancel()
            await asyncio.gather(synchronizing, return_exceptions=True)
            await self._retries.finish()

    async def lease(self, call: LeaseCall, wait_seconds: float = 0.0) -> Lease | None:
        """Lease a task to this worker; None when there is none within the wait.

        Raises WorkerNotFound, WorkerNotReady, WorkerGone, WorkerBusy, ShuttingDown, DatabaseUnavailable.
        """
        loop = asyncio.get_running_loop()
        answer: asyncio.Future[Lease | None] = loop.create_future()
        waiter = self.join(call, answer, may_wait=wait_seconds > 0)
        timer = loop.call_later(wait_seconds, self.end_wait, waiter) if wait_seconds else None
        try:
            return await answer
        except asyncio.CancelledError:
            # The caller may have hung up after it was answered, and before it took the answer.
            if answer.done() and not (answer.cancelled() or answer.exception()) and (lease := answer.result()):
                self.give_back(call.worker_id, lease)
            raise
        finally:
            if timer is not None:
                timer.cancel()
            self.leave(waiter)

    def give_back(self, worker_id: WorkerId, lease: Lease) -> None:
        """Begin to release a lease of which this worker never heard, unless it is told of it elsewhere."""
        self._releases.start({worker_id: lease})

    def join(
        self, call: LeaseCall, answer: Answer, *, may_wait: bool, on_try: Callable[[], None] | None = None
    ) -> Waiter:
        """Let a call wait until it is answered, or its wait ends. Raises ShuttingDown."""
        if self._is_stopping:
            raise ShuttingDown
        earlier_waiter = self._waiters.get(call.worker_id)
        if earlier_waiter is not None:
            # The worker has evidently given up on its earlier call; the answer goes to the newer one.
            if earlier_waiter.call.result is not None:
                earlier_waiter.call.result.is_superseded = True
            self._settle(earlier_waiter, None)
        waiter = Waiter(
            call=call,
            answer=answer,
            may_wait=may_wait,
            idle_since=self._idle.begin_call(call.worker_id, time.monotonic()),
            on_try=on_try,
        )
        self._waiters[call.worker_id] = waiter
        self._had_calls = True
        self._wake.set()
        return waiter

    def leave(self, waiter: Waiter) -> None:
        """Let a call wait no longer, because it is answered or nobody wants an answer."""
        worker_id = waiter.call.worker_id
        self._idle.end_call(worker_id, time.monotonic())
        if self._waiters.get(worker_id) is waiter:
            del self._waiters[worker_id]

    def end_wait(self, waiter: Waiter) -> None:
        """Answer a call whose time is up, unless a claim for it is in flight: then the outcome of that one counts."""
        waiter.may_wait = False
        if not waiter.in_flight and not waiter.is_new:
            self._settle(waiter, None)

    def _on_announcement(self, news: News) -> None:
        if RESOURCES in news:
            # Its lanes are not known yet, so the news of them wakes nobody.
            self._classes.is_stale = True
            self._wake.set()
        if lanes := self._lanes.receive(news):
            reconsider(self._waiters.values(), lanes)
            self._wake.set()

    async def _scan_lanes(self) -> None:
        # Without calls since the last scan there is nobody to serve, and idle replicas should not load the database.
        if self._waiters or self._had_calls:
            self._had_calls = False
            self._mark_ready(await self._scanner.scan(self._lanes))
            self._wake.set()

    async def _run(self) -> None:
        while not (self._is_stopping and not self._waiters):
            was_woken = await self._wait_for_wake()
            try:
                if not was_woken and self._waiters:
                    reconsider(self._waiters.values())
                    await self._refresh_lanes()
                await self._serve_waiters()
            except Exception as error:
                if not isinstance(error, DatabaseUnavailable):
                    log.exception("the lease broker stumbled")
                # Calls that still have time wait on: a short outage must not send all workers away at once.
                self._answer_expired(error)
                await asyncio.sleep(0.2)

    async def _wait_for_wake(self) -> bool:
        """Wait for a call or an announcement, but no longer than two seconds; return whether there was any."""
        if self._is_stopping:
            return True
        try:
            await asyncio.wait_for(self._wake.wait(), random.uniform(1.0, 2.0))  # noqa: S311 - jitter, not a secret
        except TimeoutError:
            return False
        self._wake.clear()
        return True

    async def _refresh_lanes(self) -> None:
        lane_tags = await hot_path.run(self._database, lambda c: ready_lanes.find(c, self._lanes.positions()))
        self._mark_ready(lane_tags)

    def _mark_ready(self, lane_tags: Mapping[Lane, float]) -> None:
        """Note that tasks may wait in these lanes; a class that is not known yet has its turn once it is."""
        known_lanes = {lane: tag for lane, tag in lane_tags.items() if lane.resource_class in self._known_classes}
        self._classes.is_stale |= len(known_lanes) < len(lane_tags)
        self._lanes.mark_ready(known_lanes)

    async def _refresh_classes(self) -> None:
        classes = await hot_path.run(self._database, resource_classes.read)
        self._classes.update(classes)
        self._known_classes = {0, *classes}
        self._lanes.know_classes(classes)
        if classes:
            await self._refresh_lanes()

    async def _serve_waiters(self) -> None:
        while True:
            if self._classes.is_stale and self._waiters:
                await self._refresh_classes()
            new_calls = {waiter.call.agent_types for waiter in self._waiters.values() if waiter.is_new}
            # Before a new call is answered with nothing, the lanes are read: an announcement may still be on its way.
            if any(agent_types.isdisjoint(self._lanes.agents()) for agent_types in new_calls):
                await self._refresh_lanes()
            batch = self._next_batch()
            if not batch:
                return
            await self._serve(batch)

    def _next_batch(self) -> list[Waiter]:
        """The waiters to serve now, longest idle first, each with a lane.

        A new one without a lane is included: the claim tells whether its worker may be served at all. One for which
        there is nothing is answered, where it may not wait, as others may keep the broker busy for long.
        """
        batch: list[Waiter] = []
        limit = self._dispatcher.next_limit(len(self._waiters))
        batch_lanes = BatchLanes()
        ends: dict[Lane, datetime | None] = {}
        plain_agents = self._lanes.agents()
        for waiter in sorted(self._waiters.values(), key=_IDLE_SINCE):
            if waiter.is_draining:
                self._end_try(waiter)
                continue
            # The lane is charged at once, so that the next worker of the batch goes by it; a refund follows where the
            # claim finds no task.
            call = waiter.call
            waiter.lane = self._dispatcher.choose_lane(
                call.worker_id, call.agent_types, batch_lanes, call.offer, waiter.unfit_lanes
            )
            if waiter.lane is not None and ends.setdefault(waiter.lane, call.ends_at) != call.ends_at:
                # Its turn is the next one: one claim goes through a lane once.
                continue
            if waiter.lane is not None:
                waiter.charge = self.fairness.charge(waiter.lane.agent_type)
            elif not waiter.is_new:
                # Where its lanes are only full, its turn is in a later claim, too.
                is_waiting = waiter.may_wait and waiter.is_tried and not waiter.renewed_lanes
                if not is_waiting and (waiter.unfit_lanes or call.agent_types.isdisjoint(plain_agents)):
                    self._end_try(waiter, call.agent_types)
                continue
            batch.append(waiter)
            if limit.is_reached_by(waiter):
                break
        return batch

    async def _serve(self, batch: list[Waiter]) -> None:
        for waiter in batch:
            waiter.in_flight, waiter.is_new = True, False
        try:
            await self._claim(batch)
        finally:
            # Not before the last is answered: a wait that ended meanwhile would throw away the lease it was given.
            for waiter in batch:
                waiter.in_flight = False
                # One without a lane, though there is work for it, has its turn when claims have grown wider.
                if waiter.lane is not None or waiter.call.agent_types.isdisjoint(self._lanes.agents()):
                    waiter.note_try()

    async def _claim(self, batch: list[Waiter]) -> None:
        requests = [self._dispatcher.request(waiter.call, waiter.lane) for waiter in batch]
        self._lanes.begin_claim()
        try:
            outcomes = await hot_path.run(
                self._database,
                lambda c: claims.claim(c, requests, self.policy),
                on_undone=lambda: self._prepare_again(requests),
            )
        except Exception as error:
            if not (handed_in := calls.refund_failed(batch, self.fairness, error)):
                raise
            for waiter in handed_in:
                self._settle(waiter, None)
            return
        # First of all, and at once: nothing that goes wrong with another call keeps a worker from its lease.
        if calls.accept_results(batch, outcomes, self.fairness):
            self._database.announcer.announce([EVENTS])
        self._deliver(batch, outcomes)
        ready_from = await calls.pass_over(self._database, batch, requests, outcomes)
        self._dispatcher.record_claims(requests, outcomes, ready_from)
        for waiter, outcome in zip(batch, outcomes, strict=True):
            if outcome.lease is None:
                calls.refund(waiter, self.fairness)
                await self._answer(waiter, outcome)

    def _prepare_again(self, requests: list[ClaimRequest]) -> None:
        """Announce the lanes of a claim that failed, as others have skipped its tasks, and trust no number any more."""
        self._database.announcer.announce({work(r.lane): r.floor for r in requests if r.lane is not None})
        requests[:] = [request._replace(last_number=None) for request in requests]

    def _deliver(self, batch: Sequence[Waiter], outcomes: Sequence[ClaimOutcome]) -> None:
        """Answer the calls for which there is a lease; one that no call takes any more is released."""
        leases: dict[WorkerId, Lease] = {}
        untaken: dict[WorkerId, Lease] = {}
        for waiter, outcome in zip(batch, outcomes, strict=True):
            if (lease := outcome.lease) is None:
                continue
            worker_id = waiter.call.worker_id
            leases[worker_id] = lease
            # The worker has hung up or called again, where this one is answered already.
            taker = self._repetition(waiter) if waiter.answer.done() else waiter
            self._settle(taker or waiter, lease)
            if taker is None:
                untaken[worker_id] = lease
        if untaken:
            self._releases.start(untaken)
        self._idle.end_idling(leases)
        self._history.record(leases)
        if self._traces is not None:
            self._traces.record_leases(list(leases.items()))

    def _repetition(self, waiter: Waiter) -> Waiter | None:
        """The newer call of the same worker with the same request, if it waits for an answer."""
        newer = self._waiters.get(waiter.call.worker_id)
        if newer is None or newer.answer.done() or newer.call.request_id != waiter.call.request_id:
            return None
        if newer.call.result is not None and waiter.call.result is not None:
            newer.call.result.note_repetition(waiter.call.result)
        return newer

    async def _answer(self, waiter: Waiter, outcome: ClaimOutcome) -> None:
        """Answer a call for which there is no new lease, unless it may wait for one."""
        try:
            if waiter.answer.done() or waiter.call.completion is not None:
                # To repeat a lease of which nobody wants to hear would keep it from being released.
                self._settle(waiter, None)
            elif outcome.is_repeat:
                lease = await calls.repeated_lease(self._database, waiter.call, self.policy)
                # Where it has ended meanwhile, the next claim may bring another.
                if lease is not None:
                    self._settle(waiter, lease)
            elif outcome.holds_another:
                raise WorkerBusy
            # No task, but no error either: the wait of a draining worker ends as if there were no work.
            elif outcome.worker_state == WorkerState.DRAINING:
                waiter.is_draining = True
            elif outcome.worker_state != WorkerState.READY:
                raise refusal(outcome.worker_state, outcome.not_ready_reason)
        except Exception as error:
            self._settle(waiter, error)

    def _answer_expired(self, error: Exception) -> None:
        """Answer the calls that may not wait any longer with an error."""
        for waiter in list(self._waiters.values()):
            if waiter.may_wait:
                waiter.note_try()
            else:
                self._settle(waiter, error)

    def _end_try(self, waiter: Waiter, agents: frozenset[AgentType] = frozenset()) -> None:
        """Note that there is no work of these agent types for a call, if so: where it may not wait, it is answered."""
        if waiter.try_renewed():
            self._wake.set()
        if self._dispatcher.is_open_to(agents, waiter.call.offer, waiter.unfit_lanes):
            return
        if waiter.may_wait:
            waiter.note_try()
        else:
            self._settle(waiter, None)

    def _settle(self, waiter: Waiter, outcome: Lease | Exception | None) -> None:
        if self._waiters.get(waiter.call.worker_id) is waiter:
            del self._waiters[waiter.call.worker_id]
        if waiter.answer.done():
            return
        if isinstance(outcome, Exception):
            waiter.answer.set_exception(outcome)
        else:
            waiter.answer.set_result(outcome)
