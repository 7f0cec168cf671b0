"""What is drawn for a submit, and how it becomes tasks when it is known what is there."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID, uuid4

from hypothesis import strategies as st

from app.kernel.agents import AgentType
from app.kernel.lanes import Priority
from app.queue.rules.tasks import RetryPolicy
from tests.properties import policies
from tests.properties.submitting import Order
from tests.support.factories import submission

AGENTS = (AgentType.GENERATION, AgentType.REFLECTION, AgentType.RANKING)
GOALS = (None, "a", "b")
NAMES = ("ada", "bob", "cleo")

# Which one of several: mostly one of the first. What is drawn never depends on what the service answers, so that
# Hypothesis can replay and shrink whatever the service does.
picks = st.sampled_from([0, 0, 0, 0, 0, 0, 1, 1, 1, 2, 2, 3, 4, 5, 7, 11])
replicas = st.integers(0, 1)
rarely = st.sampled_from([False, False, False, True])


def weighted(weights: Mapping[str, int]) -> st.SearchStrategy[str]:
    """One of these words, the more often the more it weighs."""
    return st.sampled_from([word for word, weight in weights.items() for _ in range(weight)])


@dataclass(frozen=True, slots=True, kw_only=True)
class Draft:
    """A task as it is drawn. It may wait for some that exist, and for the one before it in its batch."""

    agent: AgentType
    goal_id: str | None
    priority: Priority
    identity: str
    waits_for: Sequence[int]
    waits_for_previous: bool
    run_at: float | None
    deadline: float | None
    timeout_seconds: float
    max_attempts: int
    delays: Sequence[float]

    def order(self, *, now: float, known: Sequence[UUID], previous: UUID | None) -> Order:
        """The order of this task, at `now` by the model's clock, when these tasks are known, the newest first."""
        chosen = {known[pick % len(known)] for pick in self.waits_for if known}
        if self.waits_for_previous and previous is not None:
            chosen.add(previous)
        identity: dict[str, Any] = {
            "id": uuid4() if self.identity == "id" else None,
            "idempotency_key": uuid4().hex if self.identity == "key" else None,
        }
        wanted = submission(
            **identity,
            agent_type=self.agent,
            goal_id=self.goal_id,
            priority=self.priority,
            run_at=_moment(self.run_at),
            deadline=_moment(self.deadline),
            timeout_seconds=self.timeout_seconds,
            retry=RetryPolicy(max_attempts=self.max_attempts, delays_seconds=self.delays),
            depends_on=tuple(sorted(chosen)),
        )
        return Order(submission=wanted, run_at=_later(now, self.run_at), deadline=_later(now, self.deadline))


drafts = st.builds(
    Draft,
    agent=st.sampled_from(AGENTS),
    goal_id=st.sampled_from(GOALS),
    priority=st.sampled_from(Priority),
    identity=st.sampled_from(["none", "id", "key"]),
    waits_for=st.one_of(st.just(()), st.just(()), st.lists(picks, max_size=2)),
    waits_for_previous=rarely,
    run_at=st.sampled_from(policies.RUN_AT),
    deadline=st.sampled_from(policies.DEADLINES),
    timeout_seconds=st.sampled_from(policies.TIMEOUTS),
    max_attempts=st.integers(1, 3),
    delays=st.sampled_from(policies.DELAYS),
)


def orders_of(batch: Sequence[Draft], *, now: float, known: Sequence[UUID]) -> list[Order]:
    """The orders of a batch."""
    orders: list[Order] = []
    for draft in batch:
        previous = orders[-1].submission.id if orders else None
        orders.append(draft.order(now=now, known=known, previous=previous))
    return orders


def plain_order(agent: AgentType) -> Order:
    """A task that may run at once."""
    return Order(submission=submission(agent_type=agent, timeout_seconds=policies.TIMEOUTS[0]))


def changed(order: Order) -> Order:
    """The same identity with another body."""
    return replace(order, submission=replace(order.submission, payload='{"n": 2}'))


def waiting_for(order: Order, *task_ids: UUID) -> Order:
    """The same task, but waiting for these."""
    return replace(order, submission=replace(order.submission, depends_on=task_ids))


def _moment(seconds: float | None) -> datetime | None:
    return None if seconds is None else datetime.now(UTC) + timedelta(seconds=seconds)


def _later(now: float, seconds: float | None) -> float | None:
    return None if seconds is None else now + seconds
