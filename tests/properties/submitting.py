"""Submitting tasks, new ones and those that exist already."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from graphlib import CycleError, TopologicalSorter
from uuid import UUID

from app.kernel.errors import ConvenerError
from app.kernel.lanes import Priority
from app.kernel.states import TaskState
from app.queue.errors import DependencyCycle, DependencyMissing, IdempotencyMismatch, TaskConflict
from app.queue.service import tasks
from app.queue.service.tasks import Submission, Submitted
from tests.properties import policies
from tests.properties.model import Model, Task
from tests.properties.service import Service

_FAILED = (TaskState.FAILED, TaskState.CANCELLED)


@dataclass(frozen=True, slots=True, kw_only=True)
class Order:
    """A submission, and its moments as seconds on the model's clock."""

    submission: Submission
    run_at: float | None = None
    deadline: float | None = None

    @property
    def identity(self) -> object:
        """What makes it the same task as another; None when nothing does."""
        return self.submission.idempotency_key or self.submission.id

    @property
    def body(self) -> Submission:
        return replace(self.submission, id=None, idempotency_key=None)


@dataclass(frozen=True, slots=True, kw_only=True)
class Submit:
    """A batch, all or none."""

    orders: Sequence[Order]
    replica: int = 0

    async def run(self, service: Service) -> object:
        async with service.replicas[self.replica].database.transaction() as connection:
            return await tasks.submit(connection, [order.submission for order in self.orders])

    def judge(self, model: Model, observed: object) -> None:
        distinct = self._distinct()
        refusal = self._refusal(model, distinct)
        if refusal is not None:
            assert observed is refusal, f"should be refused with {refusal}, not {observed}"
            return
        assert isinstance(observed, list), f"refused with {observed}"
        assert len(observed) == len(distinct)
        created = [
            _enter(model, order, told.id)
            for order, told in zip(distinct, observed, strict=True)
            if _known(model, order) is None
        ]
        for task in created:
            for on in task.submission.depends_on:
                if task.is_live and model.tasks[on].state in _FAILED:
                    model.cancel(task)
        for order, told in zip(distinct, observed, strict=True):
            task = model.tasks[told.id]
            expected = Submitted(id=task.id, state=task.state, created=task in created)
            assert told == expected, f"{told} instead of {expected}"
            assert (_known(model, order) or task) is task, "another task for the same identity"

    def _distinct(self) -> list[Order]:
        first: dict[object, Order] = {}
        for order in self.orders:
            first.setdefault(order.identity or object(), order)
        return list(first.values())

    def _refusal(self, model: Model, distinct: list[Order]) -> type[ConvenerError] | None:
        bodies = {order.identity: order.body for order in distinct}
        for order in self.orders:
            if order.identity is not None and bodies[order.identity] != order.body:
                return _conflict(order)
        if _has_cycle(distinct):
            return DependencyCycle
        chosen = {order.submission.id for order in distinct}
        wanted = {on for order in distinct for on in order.submission.depends_on}
        if wanted - chosen - model.tasks.keys():
            return DependencyMissing
        for order in distinct:
            known = _known(model, order)
            if known is not None and replace(known.submission, id=None, idempotency_key=None) != order.body:
                return _conflict(order)
        return None


def _enter(model: Model, order: Order, task_id: UUID) -> Task:
    submission = order.submission
    assert task_id not in model.tasks, "a new task has the id of another"
    assert submission.id in (None, task_id)
    is_urgent = (
        order.deadline is not None and order.deadline - model.now < policies.AGEING.urgent_within.total_seconds()
    )
    task = Task(
        id=task_id,
        submission=submission,
        priority=Priority.CRITICAL if is_urgent else submission.priority,
        waiting_since=model.now,
        run_at=order.run_at if order.run_at is not None and order.run_at > model.now else None,
        deadline=order.deadline,
        waits_for={on for on in submission.depends_on if not _is_met(model, on)},
    )
    if task.waits_for:
        task.state = TaskState.BLOCKED
    model.tasks[task_id] = task
    if submission.idempotency_key is not None:
        model.keys[submission.idempotency_key] = task_id
    return task


def _is_met(model: Model, on: UUID) -> bool:
    return on in model.tasks and model.tasks[on].state is TaskState.COMPLETED


def _known(model: Model, order: Order) -> Task | None:
    if order.submission.idempotency_key is not None:
        return model.tasks.get(model.keys.get(order.submission.idempotency_key, UUID(int=0)))
    return model.tasks.get(order.submission.id) if order.submission.id else None


def _conflict(order: Order) -> type[ConvenerError]:
    return IdempotencyMismatch if order.submission.idempotency_key is not None else TaskConflict


def _has_cycle(orders: Sequence[Order]) -> bool:
    waits = {o.submission.id: o.submission.depends_on for o in orders if o.submission.id is not None}
    try:
        TopologicalSorter(waits).prepare()
    except CycleError:
        return True
    return False
