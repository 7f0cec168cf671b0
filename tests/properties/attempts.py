"""What workers do with leases, their own and those that they should not have."""

import hashlib
import json
from dataclasses import dataclass

from app.kernel.states import TaskState
from app.queue.service import leases
from app.queue.service.leases import EndedLease, Failure, Fence
from app.queue.store.completions import Completion
from app.queue.store.completions import Renewal as Signal
from tests.properties.model import Model
from tests.properties.service import Service


def _refused(model: Model, fence: Fence, observed: object) -> None:
    expected = model.refusal(fence)
    assert observed is expected, f"should be refused with {expected}, not {observed}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Sign:
    """A start, or progress with or without a checkpoint."""

    fence: Fence
    replica: int = 0
    progress: str | None = None
    checkpoint: str | None = None

    async def run(self, service: Service) -> object:
        signal = Signal(
            task_id=self.fence.task_id,
            token=self.fence.token,
            worker_id=self.fence.worker_id,
            progress=self.progress,
            checkpoint=self.checkpoint,
        )
        await service.replicas[self.replica].desk.renew(signal)
        return None

    def judge(self, model: Model, observed: object) -> None:
        task = model.open(self.fence)
        if task is None:
            _refused(model, self.fence, observed)
            return
        assert observed is None, f"refused with {observed}"
        model.execute(task)
        task.progress = self.progress or task.progress
        task.checkpoint = self.checkpoint or task.checkpoint


@dataclass(frozen=True, slots=True, kw_only=True)
class Complete:
    """A result."""

    fence: Fence
    result: str
    replica: int = 0

    async def run(self, service: Service) -> object:
        completion = Completion(
            task_id=self.fence.task_id,
            token=self.fence.token,
            worker_id=self.fence.worker_id,
            result=self.result,
            result_hash=hashlib.sha256(self.result.encode()).digest(),
            usage=None,
        )
        await service.replicas[self.replica].desk.complete(completion)
        service.last_results[self.fence.worker_id] = self.fence.task_id
        return None

    def judge(self, model: Model, observed: object) -> None:
        task = model.open(self.fence)
        if task is not None:
            assert observed is None, f"refused with {observed}"
            model.complete(task, self.result)
        elif self._is_repeated(model):
            assert observed is None, f"the same result again was refused with {observed}"
        else:
            _refused(model, self.fence, observed)

    def _is_repeated(self, model: Model) -> bool:
        task = model.tasks.get(self.fence.task_id)
        return (
            task is not None
            and task.state is TaskState.COMPLETED
            and (task.token, task.worker, task.result) == (self.fence.token, self.fence.worker_id, self.result)
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Fail:
    """An attempt that failed."""

    fence: Fence
    retryable: bool = True
    replica: int = 0

    async def run(self, service: Service) -> object:
        failure = Failure(code="wrong", message="it went wrong", retryable=self.retryable)
        async with service.replicas[self.replica].database.transaction() as connection:
            return await leases.fail(connection, self.fence, failure)

    def judge(self, model: Model, observed: object) -> None:
        task = model.open(self.fence)
        if task is not None:
            model.fail(task, "failed", retryable=self.retryable)
            _stands(observed, task.state, is_delayed=task.run_at is not None)
        else:
            _ended(model, self.fence, observed, "failed")


@dataclass(frozen=True, slots=True, kw_only=True)
class Release:
    """A task handed back unharmed."""

    fence: Fence
    replica: int = 0

    async def run(self, service: Service) -> object:
        async with service.replicas[self.replica].database.transaction() as connection:
            return await leases.release(connection, self.fence, json.dumps("no time"))

    def judge(self, model: Model, observed: object) -> None:
        task = model.open(self.fence)
        if task is not None:
            model.release(task)
            _stands(observed, TaskState.PENDING, is_delayed=False)
        else:
            _ended(model, self.fence, observed, "released")


def _ended(model: Model, fence: Fence, observed: object, outcome: str) -> None:
    """A call on a lease that is over: answered as before when it was this very call that ended it."""
    task = model.tasks.get(fence.task_id)
    if task is None or task.attempts.get((fence.token, fence.worker_id)) != outcome:
        _refused(model, fence, observed)
        return
    is_given_up = task.state is TaskState.FAILED and (task.token, task.worker) == (fence.token, fence.worker_id)
    state = TaskState.FAILED if is_given_up else TaskState.PENDING
    _stands(observed, state, is_delayed=task.is_live and task.run_at is not None)


def _stands(observed: object, state: TaskState, *, is_delayed: bool) -> None:
    assert isinstance(observed, EndedLease), f"refused with {observed}"
    assert observed.state is state
    assert (observed.run_at is not None) == is_delayed
