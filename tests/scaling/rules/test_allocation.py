"""Who works on what."""

from collections import Counter
from uuid import UUID

import pytest
from hypothesis import given
from hypothesis import strategies as st

from app.kernel.agents import AgentType
from app.kernel.ids import WorkerId
from app.scaling.rules.allocation import Candidate, Load, allocate, apportion, bottleneck, shares

ALL = list(AgentType)
ANY = frozenset(AgentType)
G, R, E = AgentType.GENERATION, AgentType.REFLECTION, AgentType.EVOLUTION
EQUAL = dict.fromkeys(ALL, 1 / 6)

share_maps = st.dictionaries(st.sampled_from(ALL), st.floats(0.001, 100), min_size=1)
loads = st.dictionaries(
    st.sampled_from(ALL),
    st.builds(Load, work_seconds=st.sampled_from([0.0, 1.0, 60.0, 5000.0]), oldest_age_seconds=st.floats(0, 100)),
)


def worker(number: int, assigned: AgentType | None = None, *able: AgentType, busy: bool = False) -> Candidate:
    return Candidate(
        worker_id=WorkerId(UUID(int=number)), capabilities=frozenset(able) or ANY, assigned_agent=assigned, busy=busy
    )


pools = st.lists(
    st.tuples(
        st.one_of(st.none(), st.sampled_from(ALL)), st.frozensets(st.sampled_from(ALL), min_size=1), st.booleans()
    ),
    max_size=25,
).map(lambda raw: [worker(n, a, *able, busy=busy) for n, (a, able, busy) in enumerate(raw)])
unlimited_pools = st.lists(st.one_of(st.none(), st.sampled_from(ALL)), max_size=25).map(
    lambda raw: [worker(number, assigned) for number, assigned in enumerate(raw)]
)


@given(share=share_maps, workers=st.integers(0, 60))
def test_one_more_worker_never_takes_a_seat_from_anybody(share: dict[AgentType, float], workers: int) -> None:
    before, after = apportion(workers, share), apportion(workers + 1, share)
    assert sum(before.values()) == workers
    assert sum(after.values()) == workers + 1
    assert all(after[agent] >= before[agent] for agent in share)


@given(share=share_maps, workers=st.integers(0, 60))
def test_everybody_has_a_seat_when_there_are_enough(share: dict[AgentType, float], workers: int) -> None:
    seats = apportion(workers, share)
    assert workers < len(share) or min(seats.values()) >= 1


def test_seats_follow_the_shares() -> None:
    assert apportion(100, {G: 0.5, R: 0.3, E: 0.2}) == {G: 50, R: 30, E: 20}


def test_shares_are_weight_times_the_root_of_the_backlog() -> None:
    found = shares({G: Load(work_seconds=400.0), R: Load(work_seconds=100.0), E: Load(work_seconds=0.0)}, EQUAL)
    assert set(found) == {G, R}
    assert found[G] == pytest.approx(2 * found[R])


def test_without_work_the_weights_decide() -> None:
    done = allocate([worker(n) for n in range(12)], {}, EQUAL)
    assert Counter(done.agents.values()) == dict.fromkeys(ALL, 2)
    assert done.bottleneck is None


def test_example_1_the_new_ones_generate() -> None:
    pool = [worker(n, ALL[n % 6]) for n in range(10)] + [worker(n) for n in range(10, 20)]
    done = allocate(pool, {G: Load(work_seconds=10_000.0)}, EQUAL)
    assert all(done.agents[WorkerId(UUID(int=n))] is G for n in range(10, 20))


def test_the_bottleneck_has_most_work_per_worker_then_the_oldest_task() -> None:
    found = {G: Load(work_seconds=100.0), R: Load(work_seconds=60.0), E: Load(work_seconds=0.0)}
    assert bottleneck(found, {G: 10, R: 2, E: 0}) is R
    assert bottleneck(found, {G: 1, R: 2}) is G
    tied = {G: Load(work_seconds=50.0, oldest_age_seconds=1.0), R: Load(work_seconds=50.0, oldest_age_seconds=2.0)}
    assert bottleneck(tied, {G: 5, R: 5}) is R
    assert bottleneck(tied, {G: 5}) is R, "nobody for it is worst"
    assert bottleneck({}, {}) is None


@given(pool=unlimited_pools, load=loads)
def test_nobody_moves_who_could_stay(pool: list[Candidate], load: dict[AgentType, Load]) -> None:
    done = allocate(pool, load, EQUAL)
    assert Counter(done.agents.values()) == {agent: count for agent, count in done.seats.items() if count}
    today = Counter(seat.assigned_agent for seat in pool)
    surplus = sum(max(0, count - done.seats.get(agent, 0)) for agent, count in today.items() if agent is not None)
    assert len(done.moved_workers) == surplus + today[None]
    again = allocate(
        [worker(n, done.agents[seat.worker_id], *seat.capabilities) for n, seat in enumerate(pool)], load, EQUAL
    )
    assert not again.moved_workers


@given(pool=pools, load=loads)
def test_everybody_gets_something_that_they_can_do(pool: list[Candidate], load: dict[AgentType, Load]) -> None:
    done = allocate(pool, load, EQUAL)
    assert all(done.agents[seat.worker_id] in seat.capabilities for seat in pool)


def test_a_generalist_makes_room_for_a_specialist() -> None:
    pool = [worker(1, G), worker(2, None, G)]
    done = allocate(pool, {G: Load(work_seconds=50.0), R: Load(work_seconds=50.0)}, EQUAL)
    assert done.agents == {WorkerId(UUID(int=1)): R, WorkerId(UUID(int=2)): G}


def test_the_idle_move_sooner_than_the_busy() -> None:
    pool = [worker(1, G), worker(2, G, busy=True)]
    done = allocate(pool, {G: Load(work_seconds=50.0), R: Load(work_seconds=50.0)}, EQUAL)
    assert done.moved_workers == {WorkerId(UUID(int=1))}


def test_a_worker_that_can_do_nothing_is_left_out() -> None:
    nobody = Candidate(worker_id=WorkerId(UUID(int=1)), capabilities=frozenset(), assigned_agent=None)
    assert allocate([nobody], {G: Load(work_seconds=5.0)}, EQUAL).agents == {}
