"""Goals in one lane: tags, and who is served in their order."""

from collections import Counter
from itertools import count

from hypothesis import given, settings
from hypothesis import strategies as st

from app.queue.rules.fair_queueing import assign_tags


class _Lane:
    """A lane as the store keeps it: pending tags, the virtual time, each goal's last tag."""

    def __init__(self) -> None:
        self.pending: list[tuple[float, int, str]] = []
        self.virtual_time = 0.0
        self.last: dict[str, float] = {}
        self._seq = count()

    def submit(self, goal: str, tasks: int, weight: float = 1.0) -> None:
        given = assign_tags(
            virtual_time=self.virtual_time, last_tag=self.last.get(goal, 0.0), count=tasks, weight=weight
        )
        self.pending += [(given[place], next(self._seq), goal) for place in range(tasks)]
        self.pending.sort()
        self.last[goal] = given.last

    def lease(self) -> str:
        tag, _, goal = self.pending.pop(0)
        self.virtual_time = max(self.virtual_time, tag)
        return goal


def test_ten_tasks_of_a_new_goal_fall_in_between_those_of_a_flood() -> None:
    lane = _Lane()
    lane.submit("flood", 50_000)
    for _ in range(1000):
        lane.lease()
    lane.submit("new", 10)
    served = [lane.lease() for _ in range(20)]
    assert served.count("new") == 10


def test_a_goal_that_was_away_has_saved_no_credit() -> None:
    lane = _Lane()
    lane.submit("late", 1)
    lane.submit("steady", 1000)
    for _ in range(500):
        lane.lease()
    lane.submit("late", 1000)
    served = Counter(lane.lease() for _ in range(200))
    assert abs(served["late"] - served["steady"]) <= 1


def test_a_goal_goes_on_where_it_left_off() -> None:
    assert [assign_tags(virtual_time=3.0, last_tag=7.0, count=3)[place] for place in range(3)] == [8.0, 9.0, 10.0]


@given(weights=st.lists(st.floats(0.1, 10), min_size=2, max_size=5))
@settings(max_examples=50)
def test_goals_share_a_lane_by_their_weights(weights: list[float]) -> None:
    lane = _Lane()
    for index, weight in enumerate(weights):
        lane.submit(str(index), 3000, weight)
    served = Counter(lane.lease() for _ in range(2000))
    for index, weight in enumerate(weights):
        assert abs(served[str(index)] / 2000 - weight / sum(weights)) <= 0.01


@given(submits=st.lists(st.tuples(st.sampled_from("abc"), st.integers(1, 20), st.integers(0, 20)), max_size=30))
def test_a_goal_stays_in_the_order_of_its_submits(submits: list[tuple[str, int, int]]) -> None:
    """Also while leases go on between them."""
    lane = _Lane()
    for goal, tasks, leases in submits:
        lane.submit(goal, tasks)
        own = [seq for _, seq, owner in lane.pending if owner == goal]
        assert own == sorted(own)
        for _ in range(min(leases, len(lane.pending))):
            lane.lease()
