"""The plan for a pool of fixed size."""

from datetime import UTC, datetime, timedelta
from uuid import uuid4

from hypothesis import given
from hypothesis import strategies as st

from app.kernel.ids import WorkerId
from app.workers.rules.pool import CrashPolicy, PoolMember, PoolSnapshot, SlotDeaths, plan, rest_seconds, rests

members = st.lists(
    st.builds(
        PoolMember,
        worker_id=st.builds(lambda: WorkerId(uuid4())),
        slot=st.integers(1, 30),
        leaving=st.booleans(),
        busy=st.booleans(),
    ),
    max_size=20,
    unique_by=lambda member: member.slot,
)


@given(members=members, size=st.integers(0, 20), resting=st.frozensets(st.integers(1, 30)))
def test_never_more_than_its_size_and_never_two_in_a_slot(
    members: list[PoolMember], size: int, resting: frozenset[int]
) -> None:
    decided = plan(PoolSnapshot(members=members, size=size, resting_slots=resting))
    taken = {member.slot for member in members}
    assert not set(decided.start) & (taken | resting)
    assert len(set(decided.start)) == len(decided.start) <= max(0, size - len(members))
    staying = [member for member in members if not member.leaving]
    assert len(decided.drain) == max(0, len(staying) - size)
    assert not (decided.start and decided.drain)


@given(members=members, size=st.integers(0, 20))
def test_without_crashes_every_free_place_is_filled(members: list[PoolMember], size: int) -> None:
    assert len(plan(PoolSnapshot(members=members, size=size)).start) == max(0, size - len(members))


@given(members=members, size=st.integers(0, 20))
def test_the_idle_go_first_and_nobody_is_told_twice(members: list[PoolMember], size: int) -> None:
    drained = set(plan(PoolSnapshot(members=members, size=size)).drain)
    staying = [member for member in members if not member.leaving]
    assert drained <= {member.worker_id for member in staying}
    spared_idle = [m for m in staying if not m.busy and m.worker_id not in drained]
    assert not spared_idle or not any(m.busy for m in staying if m.worker_id in drained)


def test_a_slot_whose_workers_die_young_rests_longer_each_time() -> None:
    policy = CrashPolicy()
    assert [rest_seconds(deaths, policy) for deaths in range(10)] == [0, 0, 0, 1, 2, 4, 8, 16, 30, 30]


def test_places_rest_since_their_last_death_and_the_first_to_be_tried_comes_first() -> None:
    now = datetime(2030, 1, 1, tzinfo=UTC)
    slots = [
        SlotDeaths(host="here", slot=slot, deaths=deaths, last_at=now - timedelta(seconds=ago))
        for slot, deaths, ago in ((1, 7, 10), (2, 3, 0.5), (3, 3, 1), (4, 2, 0), (5, 100, 29))
    ]
    found = [(place.slot, (place.until - now).total_seconds()) for place in rests(slots, CrashPolicy(), now)]
    assert found == [(2, 0.5), (5, 1), (1, 6)]


def test_no_place_rests_until_the_time_from_before_the_clock_was_set_back() -> None:
    now = datetime(2030, 1, 1, tzinfo=UTC)
    slots = [SlotDeaths(host="here", slot=deaths, deaths=deaths, last_at=now + timedelta(hours=1)) for deaths in (1, 9)]
    # The transaction of a death may have begun after that of the look.
    soon = SlotDeaths(host="here", slot=3, deaths=3, last_at=now + timedelta(seconds=5))
    assert [place.slot for place in rests([*slots, soon], CrashPolicy(), now)] == [3]
