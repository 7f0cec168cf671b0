"""How much may wait."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from app.kernel.lanes import Priority
from app.queue.rules.admission import CapacityPolicy, capacity_level, find_overflow, has_room, retry_after

POLICY = CapacityPolicy(max_queue_size=100)
depths = st.dictionaries(st.sampled_from(Priority), st.integers(0, 120))


@pytest.mark.parametrize(("priority", "fits"), [(1, 50), (2, 80), (3, 95), (4, 100)])
def test_each_priority_has_its_share(priority: int, fits: int) -> None:
    at = Priority(priority)
    assert find_overflow(POLICY, {}, {at: fits}) is None
    found = find_overflow(POLICY, {at: 3}, {at: fits})
    assert found is not None
    assert (found.depth, found.limit, found.excess) == (3, fits, 3)


def test_a_flood_of_ordinary_work_leaves_room_for_urgent_work() -> None:
    flood = {Priority.LOW: 0, Priority.MEDIUM: 80}
    assert find_overflow(POLICY, flood, {Priority.MEDIUM: 1}) is not None
    assert find_overflow(POLICY, flood, {Priority.CRITICAL: 20}) is None
    found = find_overflow(POLICY, flood, {Priority.CRITICAL: 21})
    assert found is not None
    assert found.priority is None
    assert "80 tasks wait already and 100 may; 1 of yours do not fit" in found.reason


def test_quotas_hold_for_all_lower_priorities_together() -> None:
    """Or low and medium work would fill the queue, each within its own quota."""
    flood = {Priority.LOW: 40, Priority.MEDIUM: 40}
    for priority in (Priority.LOW, Priority.MEDIUM):
        refused = find_overflow(POLICY, flood, {priority: 1})
        assert refused is not None
        assert refused.priority is Priority.MEDIUM
        assert "80 tasks of priority medium and below wait already and 80 may" in refused.reason
    assert find_overflow(POLICY, flood, {Priority.HIGH: 15, Priority.CRITICAL: 5}) is None
    refused = find_overflow(POLICY, flood, {Priority.HIGH: 16})
    assert refused is not None
    assert (refused.priority, refused.excess) == (Priority.HIGH, 1)


def test_a_priority_above_its_quota_keeps_no_more_urgent_one_out() -> None:
    """As it may be after the limits were lowered."""
    assert find_overflow(POLICY, {Priority.LOW: 70}, {Priority.MEDIUM: 10}) is None


@pytest.mark.parametrize(
    ("quota", "size", "tasks"), [(0.29, 100, 29), (0.57, 100, 57), (25, 100, 25), (500, 100, 100), (1, 7, 7)]
)
def test_quotas_are_shares_or_numbers(quota: float, size: int, tasks: int) -> None:
    assert CapacityPolicy(max_queue_size=size, quotas={Priority.LOW: quota}).quota(Priority.LOW) == tasks


@given(depth=depths, incoming=depths)
def test_what_an_estimate_lets_in_would_also_fit_exactly(
    depth: dict[Priority, int], incoming: dict[Priority, int]
) -> None:
    if has_room(POLICY, depth, incoming, within=0.8):
        assert find_overflow(POLICY, depth, incoming) is None


@pytest.mark.parametrize(
    ("depth", "expected"),
    [
        ({}, "normal"),
        ({Priority.CRITICAL: 79}, "normal"),
        ({Priority.CRITICAL: 80}, "warning"),
        ({Priority.LOW: 40}, "warning"),
        ({Priority.LOW: 48}, "critical"),
        ({Priority.HIGH: 60, Priority.CRITICAL: 35}, "critical"),
    ],
)
def test_levels(depth: dict[Priority, int], expected: str) -> None:
    assert capacity_level(POLICY, depth) == expected


@pytest.mark.parametrize(("excess", "rate", "expected"), [(10, 0, 5), (10, 100, 1), (10, 2, 5), (10_000, 1, 60)])
def test_when_to_come_again(excess: int, rate: float, expected: int) -> None:
    assert retry_after(excess, rate) == expected
