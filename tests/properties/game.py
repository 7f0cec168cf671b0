"""How a step is played: done to the service and to the model, and the whole database compared with what should be."""

import asyncio
from collections.abc import Iterable, Sequence
from itertools import permutations
from typing import TypeVar
from uuid import UUID

from hypothesis import note
from hypothesis.stateful import RuleBasedStateMachine

from app.kernel.errors import DatabaseUnavailable
from app.kernel.ids import WorkerId
from app.queue.errors import SubmitInFlight
from app.queue.service.leases import Fence
from tests.properties import announcing, views
from tests.properties.drafts import AGENTS, NAMES, Draft, orders_of, plain_order
from tests.properties.leasing import Ask
from tests.properties.model import Model, Worker
from tests.properties.pool import Beat, Register
from tests.properties.service import Service, answer
from tests.properties.steps import Step
from tests.properties.submitting import Order, Submit

T = TypeVar("T")
# What one of two callers may hear because of the other; then it has changed nothing.
_COME_AGAIN = (DatabaseUnavailable, SubmitInFlight)


class Game(RuleBasedStateMachine):
    """The service, the model, and all that was ever ordered, leased and asked for."""

    def __init__(self, service: Service) -> None:
        super().__init__()
        self.service = service
        self.model = Model()
        self.orders: list[Order] = []
        self.fences: list[Fence] = []
        self.asks: list[Ask] = []
        self.is_sound = True
        service.run(service.begin())

    def do(self, *steps: Step) -> None:
        """Do this, or all of these at once, and see that it went as it may go."""
        self.is_sound = False
        for step in steps:
            note(f"    {step}" if len(steps) == 1 else f"    at once: {step}")
        waited = announcing.waits(self.model)
        observed, seen = self.service.run(self._carry_out(steps))
        self.model = self._agreeing(steps, observed, seen)
        new = announcing.waits(self.model) - waited
        silence = announcing.unannounced(new, self.service.take_told(), seen["tag"])
        assert not silence, silence
        held = [task.fence for task in self.model.tasks.values()]
        self.fences += [fence for fence in held if fence is not None and fence not in self.fences]
        self.is_sound = True

    async def _carry_out(self, steps: Sequence[Step]) -> tuple[list[object], views.View]:
        observed = await asyncio.gather(*(answer(step.run(self.service)) for step in steps))
        return observed, await views.of_database(self.service)

    def _agreeing(self, steps: Sequence[Step], observed: Sequence[object], seen: views.View) -> Model:
        """The model after the steps in an order that explains everything. Raises AssertionError when none does."""
        complaints = []
        for order in permutations(zip(steps, observed, strict=True)):
            model = self.model.copy()
            complaint = _complaint(model, order, seen)
            if not complaint:
                return model
            complaints.append(complaint)
        raise AssertionError("\n -- or, in another order --\n".join(complaints))

    # What several rules do.

    def begin_worker(self, name: str, *, replica: int = 0, is_healthy: bool = True) -> None:
        """A worker comes, and passes its first health report or does not."""
        self.do(Register(name=name, replica=replica))
        if is_healthy:
            self.do(Beat(worker_id=[*self.model.workers][-1], replica=replica))

    def see_to_a_worker(self) -> None:
        """Where nobody may get a task, somebody comes."""
        if not any(worker.is_ready for worker in self.model.workers.values()):
            self.begin_worker(NAMES[len(self.model.workers) % len(NAMES)])

    def see_to_a_task(self) -> None:
        """Where no task may be leased, one comes."""
        free = [agent for agent in AGENTS if agent not in self.model.paused]
        if free and not announcing.waits(self.model):
            self.take_in([plain_order(free[0])])

    def take_in(self, orders: list[Order], replica: int = 0) -> None:
        """Submit, and keep what was accepted to submit it again."""
        self.do(Submit(orders=orders, replica=replica))
        accepted = [task.submission for task in self.model.tasks.values()]
        self.orders += [order for order in orders if order not in self.orders and order.submission in accepted]

    def orders_of(self, batch: Sequence[Draft]) -> list[Order]:
        """What was drawn, as orders for now."""
        return orders_of(batch, now=self.model.now, known=self.known())

    # What there is to choose from, the likeliest first.

    def workers(self) -> list[WorkerId]:
        """Those that live come first."""
        return [worker.id for worker in sorted(self.model.workers.values(), key=lambda worker: not worker.is_live)]

    def asker(self, pick: int) -> WorkerId:
        """Those that may get a task come first, those that are over come last."""

        def merit(worker: Worker) -> tuple[bool, ...]:
            return (not worker.is_live, not worker.is_ready, self.model.held_by(worker.id) is not None)

        latest = list(self.model.workers.values())[::-1]
        return sorted(latest, key=merit)[pick % len(latest)].id

    def fence(self, pick: int) -> Fence | None:
        """Those that are held come first, then those that were, the latest first."""
        latest = self.fences[::-1]
        return picked(sorted(latest, key=lambda fence: not self.is_held(fence)), pick)

    def is_held(self, fence: Fence) -> bool:
        """Whether the task is still under this lease."""
        return self.model.tasks[fence.task_id].fence == fence

    def known(self) -> list[UUID]:
        """All tasks, the newest first."""
        return list(reversed(self.model.tasks))


def picked(some: Iterable[T], pick: int) -> T | None:
    """One of these, None when there are none."""
    listed = list(some)
    return listed[pick % len(listed)] if listed else None


def _complaint(model: Model, order: Iterable[tuple[Step, object]], seen: views.View) -> str:
    """What is wrong about these outcomes in this order; empty when nothing is."""
    steps = list(order)
    for step, outcome in steps:
        if len(steps) > 1 and outcome in _COME_AGAIN:
            continue
        try:
            step.judge(model, outcome)
        except AssertionError as error:
            return f"{step}\n{error}"
    return views.disagreement(views.of_model(model), seen)
