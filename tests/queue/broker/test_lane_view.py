"""What a broker believes of the lanes."""

from app.db import notify
from app.kernel.agents import AgentType
from app.kernel.lanes import Lane, Priority
from app.queue.broker.lane_view import Backlog
from app.queue.store.claims import BOTTOM

LOW = Lane(agent_type=AgentType.RANKING, priority=Priority.LOW)
HIGH = Lane(agent_type=AgentType.RANKING, priority=Priority.HIGH)


def test_the_most_urgent_lane_of_a_type_comes_first() -> None:
    backlog = Backlog()
    backlog.ring({LOW: 1.0})
    assert backlog.lane(AgentType.RANKING) == LOW
    assert backlog.hear({notify.work(HIGH): 5.0, "events": 0.0})
    assert backlog.lane(AgentType.RANKING) == HIGH
    assert not backlog.hear({"events": 0.0})


def test_a_claim_moves_the_floor_to_what_it_found() -> None:
    backlog = Backlog()
    backlog.ring({LOW: BOTTOM})
    backlog.about_to_look()
    backlog.found(LOW, [3.0, 4.0], dry=False)
    assert backlog.floor(LOW) == 4.0


def test_what_rang_during_a_claim_is_looked_for_by_the_next() -> None:
    """It may have committed after the claim took its snapshot."""
    backlog = Backlog()
    backlog.ring({LOW: 2.0})
    backlog.about_to_look()
    backlog.ring({LOW: 3.0})
    backlog.found(LOW, [9.0], dry=False)
    assert backlog.floor(LOW) == 3.0
    backlog.about_to_look()
    backlog.ring({LOW: 5.0})
    backlog.found(LOW, [], dry=True)
    assert backlog.lane(AgentType.RANKING) == LOW
    assert backlog.floor(LOW) == 5.0


def test_a_dry_lane_is_forgotten_until_it_rings_and_is_looked_at_from_where_it_stood() -> None:
    backlog = Backlog()
    backlog.ring({LOW: 2.0})
    backlog.about_to_look()
    backlog.found(LOW, [7.0], dry=True)
    assert not backlog.agents()
    assert backlog.stood()[LOW] == 7.0
    assert backlog.stood()[HIGH] == BOTTOM
    backlog.ring({LOW: 1.0})
    assert backlog.stood()[LOW] == backlog.floor(LOW) == 1.0


def test_a_crowd_asks_only_where_many_tasks_were_found() -> None:
    backlog = Backlog()
    assert backlog.asks(LOW) == 4
    backlog.ring({LOW: 0.0})
    for found in (4, 8, 16, 32, 64):
        backlog.about_to_look()
        backlog.found(LOW, [float(found)] * found, dry=False)
    assert backlog.asks(LOW) == 64
    backlog.found(LOW, [], dry=True)
    assert backlog.asks(LOW) == 4


def test_the_types_with_the_most_urgent_work() -> None:
    backlog = Backlog()
    backlog.ring({LOW: 0.0, Lane(agent_type=AgentType.EVOLUTION, priority=Priority.HIGH): 0.0})
    both = {AgentType.RANKING, AgentType.EVOLUTION}
    assert backlog.most_urgent(both) == {AgentType.EVOLUTION}
    assert backlog.most_urgent({AgentType.RANKING}) == {AgentType.RANKING}
    assert backlog.most_urgent({AgentType.PROXIMITY}) == set()
