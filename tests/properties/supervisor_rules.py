"""What Supervisors do: submit, submit again, cancel and requeue."""

from uuid import UUID, uuid4

from hypothesis import strategies as st
from hypothesis.stateful import rule

from app.kernel.agents import AgentType
from app.kernel.states import TaskState
from tests.properties.drafts import AGENTS, GOALS, Draft, changed, drafts, picks, replicas, waiting_for, weighted
from tests.properties.ending import Cancel, CancelMany, Requeue, RequeueMany
from tests.properties.game import Game, picked
from tests.properties.submitting import Order

oddities = weighted(
    {"again": 4, "again, but changed": 1, "cycle": 1, "missing": 1, "twice": 1, "twice, but changed": 1}
)
ends = weighted({"cancel": 3, "cancel many": 1, "requeue": 5, "requeue many": 2})


class SupervisorRules(Game):
    """From the other side of the queue."""

    @rule(batch=st.lists(drafts, min_size=1, max_size=4), replica=replicas)
    def submit(self, batch: list[Draft], replica: int) -> None:
        self.take_in(self.orders_of(batch), replica)

    @rule(batch=st.lists(drafts, min_size=1, max_size=2), what=oddities, pick=picks, replica=replicas)
    def submit_oddly(self, batch: list[Draft], what: str, pick: int, replica: int) -> None:
        self.take_in(self._odd(what, self.orders_of(batch), pick), replica)

    def _odd(self, what: str, fresh: list[Order], pick: int) -> list[Order]:
        order, former = fresh[-1], picked((order for order in reversed(self.orders) if order.identity), pick)
        match what, order.submission.id:
            case "again", _ if former is not None:
                return [*fresh, former]
            case "again, but changed", _ if former is not None:
                return [*fresh, changed(former)]
            case "missing", _:
                return [*fresh[:-1], waiting_for(order, uuid4())]
            case "cycle", UUID() as task_id:
                return [*fresh[:-1], waiting_for(order, task_id)]
            case "twice, but changed", _:
                return [*fresh, changed(order)]
            case _:
                return [*fresh, order]

    @rule(
        pick=picks,
        what=ends,
        goal_id=st.sampled_from(GOALS),
        agent=st.sampled_from([None, *AGENTS]),
        replica=replicas,
    )
    def end(self, pick: int, what: str, goal_id: str | None, agent: AgentType | None, replica: int) -> None:
        """Or begin again."""
        latest = list(self.model.tasks.values())[::-1]
        if what == "cancel many":
            self.do(CancelMany(goal_id=goal_id or GOALS[1], agent=agent, replica=replica))
        elif what == "requeue many":
            self.do(RequeueMany(goal_id=goal_id, replica=replica))
        elif what == "cancel" and latest:
            self.do(Cancel(task_id=latest[pick % len(latest)].id, replica=replica))
        elif latest:
            failed_first = sorted(latest, key=lambda task: task.state is not TaskState.FAILED)
            self.do(Requeue(task_id=failed_first[pick % len(latest)].id, replica=replica))
