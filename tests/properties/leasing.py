"""Workers that ask for tasks: one alone, or many at both replicas at once."""

import asyncio
import json
from collections.abc import Sequence
from dataclasses import dataclass
from uuid import UUID

from app.kernel.agents import AgentType
from app.kernel.errors import Locked, WorkerGone
from app.kernel.ids import WorkerId
from app.kernel.states import WorkerState
from app.queue.broker.calls import LeaseCall
from app.queue.errors import WorkerBusy, WorkerNotReady
from app.queue.store.claims import Lease
from tests.properties.model import Model, Task
from tests.properties.service import Service, answer

EVERYTHING = frozenset(AgentType)


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """A lease or none, and whether it took a look through all lanes to find it."""

    lease: Lease | None
    is_late: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Ask:
    """A worker asks one replica, and takes what is there."""

    worker_id: WorkerId
    request_id: UUID
    replica: int = 0
    agents: frozenset[AgentType] = EVERYTHING
    acknowledge: bool = False

    async def run(self, service: Service) -> object:
        """What this replica believes may be out of date, and the second time it knows better.

        After a look through the lanes nothing is hidden from it. In return it says whether that was needed.
        """
        lease = await self.once(service) or await self.once(service)
        if lease is not None:
            return Answer(lease=lease)
        await service.replicas[self.replica].look_through()
        return Answer(lease=await self.once(service), is_late=True)

    async def once(self, service: Service) -> Lease | None:
        call = LeaseCall(
            worker_id=self.worker_id,
            request_id=self.request_id,
            agent_types=self.agents,
            acknowledge=self.acknowledge,
            follows=service.last_results.get(self.worker_id),
        )
        return await service.replicas[self.replica].broker.lease(call)

    def judge(self, model: Model, observed: object) -> None:
        expected = self.standing(model)
        if isinstance(expected, Task):
            assert isinstance(observed, Answer), f"should get its lease again, not {observed}"
            assert observed.lease is not None, "should get its lease again, not nothing"
            self.compare(expected, observed.lease)
            model.repeat(expected)
        elif expected is not None:
            assert observed is expected, f"should be refused with {expected}, not {observed}"
        else:
            assert isinstance(observed, Answer), f"was refused with {observed}"
            self._take(model, observed)

    def standing(self, model: Model) -> object:
        """The task that it gets once more, the refusal that it gets instead, or None when it may get a new one."""
        held = model.held_by(self.worker_id)
        if held is not None:
            return held if held.request_id == self.request_id else WorkerBusy
        worker = model.workers[self.worker_id]
        if worker.state is WorkerState.STARTING:
            return WorkerNotReady
        return None if worker.is_live else WorkerGone

    def _take(self, model: Model, observed: Answer) -> None:
        is_ready = model.workers[self.worker_id].is_ready
        eligible = model.eligible(self.worker_id, self.agents, alone=True) if is_ready else []
        if observed.lease is None:
            assert not eligible, f"got nothing, although {eligible[0]} may run"
            return
        self.take(model, observed.lease, eligible)
        task = model.tasks[observed.lease.task_id]
        assert model.is_excused(task) or not observed.is_late, f"only a look through the lanes has found {task}"

    def take(self, model: Model, observed: Lease, eligible: Sequence[Task]) -> None:
        """A new lease on one of the eligible tasks."""
        task = model.tasks[observed.task_id]
        assert task in eligible, f"got {task}, which may not be leased"
        model.assign(task, self.worker_id, self.request_id, acknowledge=self.acknowledge)
        self.compare(task, observed)

    def compare(self, task: Task, lease: Lease) -> None:
        """A lease says what the worker needs, and what former attempts have left behind."""
        assert (lease.task_id, lease.token, lease.attempt) == (task.id, task.token, task.failures + 1)
        assert (lease.agent_type, lease.priority) == (task.agent, task.priority)
        assert (lease.goal_id, lease.timeout_seconds) == (task.submission.goal_id, task.submission.timeout_seconds)
        assert json.loads(lease.checkpoint or "null") == json.loads(task.checkpoint or "null"), "checkpoint lost"
        assert json.loads(lease.payload) == json.loads(task.submission.payload)


@dataclass(frozen=True, slots=True, kw_only=True)
class AskTogether:
    """Several ask at once, at both replicas; one worker may ask both, for its first answer may be lost."""

    asks: Sequence[Ask]

    async def run(self, service: Service) -> object:
        return await asyncio.gather(*(answer(ask.once(service)) for ask in self.asks))

    def judge(self, model: Model, observed: object) -> None:
        """Whoever gets nothing may have looked while another held the row, so only what is given can be wrong."""
        assert isinstance(observed, list)
        eligible = {ask: model.eligible(ask.worker_id, ask.agents, alone=False) for ask in self.asks}
        standing = {ask: ask.standing(model) for ask in self.asks}
        given: dict[WorkerId, Lease] = {}
        for ask, lease in zip(self.asks, observed, strict=True):
            if not isinstance(lease, Lease) or standing[ask] is not None:
                continue
            if ask.worker_id not in given:
                assert model.workers[ask.worker_id].is_ready
                ask.take(model, lease, eligible[ask])
            former = given.setdefault(ask.worker_id, lease)
            assert (former.task_id, former.token) == (lease.task_id, lease.token), "two leases for one worker"
        for ask, answered in zip(self.asks, observed, strict=True):
            self._refused(model, ask, standing[ask], answered, is_busy=ask.worker_id in given)

    @staticmethod
    def _refused(model: Model, ask: Ask, standing: object, answered: object, *, is_busy: bool) -> None:
        if isinstance(standing, Task):
            # Where it asks both, one of them may find the lease locked by the other for long.
            assert isinstance(answered, Lease) or answered is Locked
            if isinstance(answered, Lease):
                ask.compare(standing, answered)
                model.repeat(standing)
        elif standing is not None:
            assert answered is standing, f"should be refused with {standing}, not {answered}"
        elif not isinstance(answered, Lease):
            assert answered is None or (is_busy and answered in (WorkerBusy, Locked)), f"refused with {answered}"
