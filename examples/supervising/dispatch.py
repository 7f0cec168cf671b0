"""Numbered tasks out, results back: each exactly once, whatever order they end in."""

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from uuid import NAMESPACE_URL, uuid5

from examples.supervising.client import Convener, EventsMissing, Page
from examples.supervising.task import Json

FINISHED = frozenset({"completed", "failed", "cancelled"})
# A displaced task has failed too: the queue was full.
ENDS = frozenset({"task.completed", "task.failed", "task.cancelled", "task.displaced"})
LONGEST_WAIT_SECONDS = 10.0
# A language model may be slow, and its limits may make a task wait.
LONGEST_TASK_SECONDS = 300


@dataclass(frozen=True, slots=True, kw_only=True)
class Order:
    """A task to be done. Its number makes its id, so that a repeated submit cannot do it twice."""

    number: int
    agent_type: str
    payload: Json
    priority: str = "medium"


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """Result of an order; `result` is None for a task that failed for good."""

    order: Order
    result: Json | None
    compute_seconds: float


class Dispatch:
    """Submits the orders of one goal and follows its events from a stored cursor."""

    def __init__(self, service: Convener, *, goal_id: str) -> None:
        self._service, self._goal_id = service, goal_id
        self._pending: dict[str, Order] = {}
        self._ended_ids: list[str] = []
        self._cursor: str | None = None
        self.submitted: Counter[str] = Counter()
        self.done: Counter[str] = Counter()

    def submit(self, orders: Sequence[Order]) -> None:
        if not orders:
            return
        # From before the first task on: all that the service keeps of other goals would take hours to read.
        self._cursor = self._cursor or self._service.events(self._goal_id, "now", 0).next
        tasks = {task_id(self._goal_id, order.number): order for order in orders}
        self._send(tasks)
        self._pending |= tasks
        self.submitted.update(order.agent_type for order in orders)

    def outcomes(self) -> Iterator[Outcome]:
        """Every result as it arrives, until nothing is out; more may be submitted meanwhile."""
        while self._pending:
            while self._ended_ids:
                if order := self._pending.pop(key := self._ended_ids.pop(0), None):
                    yield self._collect(key, order)
            if self._pending:
                self._listen()

    def _send(self, tasks: dict[str, Order]) -> None:
        states = self._service.submit([self._body(key, order) for key, order in tasks.items()])
        # A supervisor that starts again finds earlier answers waiting, perhaps older than the events that are kept.
        self._ended_ids += [key for key in tasks if states[key] in FINISHED]

    def _listen(self) -> None:
        page = self._next_page()
        self._cursor = page.next
        self._ended_ids += [event["task_id"] for event in page.items if event["kind"] in ENDS]
        if not page.items:
            # A restore of an older state takes tasks away, of which no event tells, and some events are missing then;
            # these ids make each task once, and what is sent again is answered with its state.
            self._send(self._pending)

    def _next_page(self) -> Page:
        """What has happened since; an empty page where the service cannot tell, as after a restore."""
        try:
            return self._service.events(self._goal_id, self._cursor, LONGEST_WAIT_SECONDS)
        except EventsMissing:
            return self._service.events(self._goal_id, "now", 0)

    def _collect(self, key: str, order: Order) -> Outcome:
        task = self._service.task(key)
        self.done[order.agent_type] += 1
        usage = task.get("usage") or {}
        seconds = usage.get("cpu_seconds") or usage.get("wall_seconds") or 0.0
        return Outcome(order=order, result=task["result"], compute_seconds=float(seconds))

    def _body(self, key: str, order: Order) -> Json:
        return {
            "id": key,
            "agent_type": order.agent_type,
            "goal_id": self._goal_id,
            "priority": order.priority,
            "payload": order.payload,
            "labels": {"number": str(order.number)},
            "timeout_seconds": LONGEST_TASK_SECONDS,
            "retry": {"max_attempts": 5, "delays_seconds": [0.5, 1, 2]},
        }


def task_id(goal_id: str, number: int) -> str:
    return str(uuid5(NAMESPACE_URL, f"{goal_id}/{number}"))
