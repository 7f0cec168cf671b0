"""Taking tasks and calling on leases, in order or not, and two callers at once on the same lease."""

from uuid import uuid4

from hypothesis import strategies as st
from hypothesis.stateful import rule

from app.kernel.agents import AgentType
from app.kernel.ids import WorkerId
from app.queue.service.leases import Fence
from tests.properties.attempts import Complete, Fail, Release, Sign
from tests.properties.drafts import AGENTS, Draft, drafts, picks, rarely, replicas, waiting_for, weighted
from tests.properties.ending import Cancel
from tests.properties.game import Game, picked
from tests.properties.leasing import EVERYTHING, Ask, AskTogether
from tests.properties.pool import Beat, Goodbye
from tests.properties.steps import Step
from tests.properties.submitting import Submit
from tests.properties.upkeep import PassTime, SweepLeases

some_agents = st.sampled_from([EVERYTHING, EVERYTHING, EVERYTHING, *(frozenset({agent}) for agent in AGENTS)])
places = st.lists(st.tuples(picks, replicas), min_size=2, max_size=5)
_CALLS = {
    "complete": 4,
    "complete otherwise": 2,
    "fail": 4,
    "fail for good": 1,
    "release": 1,
    "start": 2,
    "progress": 1,
    "checkpoint": 2,
    "beat": 2,
}
calls = weighted(_CALLS)
chores = weighted({**_CALLS, "dawdle": 3, "hang": 2})
meeting = weighted(
    {
        "complete": 3,
        "depend": 3,
        "complete otherwise": 1,
        "fail": 2,
        "release": 1,
        "start": 2,
        "beat": 1,
        "goodbye": 2,
        "cancel": 2,
    }
)


class LeaseRules(Game):
    """What workers do with tasks."""

    @rule(pick=picks, replica=replicas, agents=some_agents, acknowledge=st.booleans(), is_again=rarely)
    def lease(self, pick: int, replica: int, agents: frozenset[AgentType], acknowledge: bool, is_again: bool) -> None:
        """Perhaps with the request id of an earlier call, whose answer may have been lost."""
        former = picked(reversed(self.asks), pick)
        if is_again and former is not None:
            self.do(former)
        else:
            self._lease(pick, replica, agents, acknowledge=acknowledge)

    @rule(pick=picks, replica=replicas, acknowledge=st.booleans(), what=st.lists(chores, min_size=1, max_size=5))
    def work(self, pick: int, replica: int, acknowledge: bool, what: list[str]) -> None:
        """A worker takes a task and says something about it, perhaps more than it should."""
        worker_id = self._lease(pick, replica, EVERYTHING, acknowledge=acknowledge)
        task = self.model.held_by(worker_id)
        fence = task.fence if task is not None else None
        if fence is not None:
            for chore in what:
                self._do_chore(chore, fence, replica)

    def _do_chore(self, chore: str, fence: Fence, replica: int) -> None:
        match chore:
            case "dawdle":
                self.do(PassTime(seconds=1000.0))
            case "hang":
                for _ in range(2):
                    self.do(PassTime(seconds=600.0))
                    self.do(Beat(worker_id=fence.worker_id, fence=fence))
                self.do(SweepLeases(held_back_before=True))
            case _:
                self.do(_call(chore, fence, replica))

    @rule(places=places, acknowledge=st.booleans(), is_repeated=st.booleans())
    def lease_together(self, places: list[tuple[int, int]], acknowledge: bool, is_repeated: bool) -> None:
        """A worker that asks both replicas may do so with one request id or with two."""
        asks: dict[tuple[WorkerId, int], Ask] = {}
        requests = [uuid4() for _ in places]
        for (pick, replica), request_id in zip(places, requests, strict=True):
            worker_id, chosen = self.asker(pick), requests[0] if is_repeated else request_id
            ask = Ask(worker_id=worker_id, request_id=chosen, replica=replica, acknowledge=acknowledge)
            asks[worker_id, replica] = ask
        self.do(AskTogether(asks=list(asks.values())))

    @rule(pick=picks, what=calls, replica=replicas)
    def call(self, pick: int, what: str, replica: int) -> None:
        fence = self._fence(pick)
        if fence is not None:
            self.do(_call(what, fence, replica))

    @rule(pick=picks, as_whom=picks, by=st.integers(-1, 1), what=calls)
    def forge(self, pick: int, as_whom: int, by: int, what: str) -> None:
        """A call by the wrong worker, or with a token that is not the right one yet or any more."""
        fence = self._fence(pick)
        if fence is not None:
            forged = Fence(task_id=fence.task_id, token=fence.token + by, worker_id=self.asker(as_whom))
            self.do(_call(what, forged, replica=0))

    @rule(pick=picks, first=meeting, second=meeting, draft=drafts, replica=replicas)
    def meet(self, pick: int, first: str, second: str, draft: Draft, replica: int) -> None:
        """Two calls on one lease at once: whatever comes of it must have come about one after the other."""
        fence = self._fence(pick)
        if fence is None:
            return
        (order,) = self.orders_of([draft])
        depend = Submit(orders=[waiting_for(order, fence.task_id)], replica=replica)
        both = [
            depend if what == "depend" else _call(what, fence, place) for what, place in ((first, 0), (second, replica))
        ]
        self.do(*both)

    def _lease(self, pick: int, replica: int, agents: frozenset[AgentType], *, acknowledge: bool) -> WorkerId:
        """A worker asks; where there is none, or no task, one comes first."""
        self.see_to_a_worker()
        self.see_to_a_task()
        worker_id = self.asker(pick)
        ask = Ask(worker_id=worker_id, request_id=uuid4(), replica=replica, agents=agents, acknowledge=acknowledge)
        self.asks.append(ask)
        self.do(ask)
        return worker_id

    def _fence(self, pick: int) -> Fence | None:
        """As `fence`, but somebody takes a task first when nobody has one."""
        if not any(map(self.is_held, self.fences)):
            self._lease(0, 0, EVERYTHING, acknowledge=pick % 2 == 0)
        return self.fence(pick)


def _call(what: str, fence: Fence, replica: int) -> Step:
    calls: dict[str, Step] = {
        "complete": Complete(fence=fence, result='{"answer":1}', replica=replica),
        "complete otherwise": Complete(fence=fence, result='{"answer":2}', replica=replica),
        "fail": Fail(fence=fence, replica=replica),
        "fail for good": Fail(fence=fence, retryable=False, replica=replica),
        "release": Release(fence=fence, replica=replica),
        "start": Sign(fence=fence, replica=replica),
        "progress": Sign(fence=fence, progress='{"percent":50}', replica=replica),
        "checkpoint": Sign(fence=fence, checkpoint=f'{{"by":{fence.token}}}', replica=replica),
        "beat": Beat(worker_id=fence.worker_id, fence=fence, replica=replica),
        "goodbye": Goodbye(worker_id=fence.worker_id, replica=replica),
        "cancel": Cancel(task_id=fence.task_id, replica=replica),
    }
    return calls[what]
