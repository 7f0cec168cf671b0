"""How much a worker gets."""

from dataclasses import astuple, replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from app.scaling.rules.sizing import SizingPolicy, SizingSnapshot, size
from app.workers.rules.assignment import Assignment, TaskLimits, base_limits, within

BASE = TaskLimits(compute_seconds=60.0, memory_gb=2.0, cpu_cores=1.0)
POLICY = SizingPolicy(base=BASE, limit=TaskLimits(compute_seconds=600.0, memory_gb=6.0, cpu_cores=8.0))

snapshots = st.builds(
    SizingSnapshot,
    waiting_seconds_per_worker=st.floats(0, 1000),
    quality_gain=st.one_of(st.none(), st.floats(-1, 1)),
    is_degraded=st.booleans(),
)


@given(snapshot=snapshots)
def test_never_below_base_never_above_the_limits(snapshot: SizingSnapshot) -> None:
    given_size, reason = size(snapshot, POLICY)
    bounds = zip(astuple(BASE), astuple(given_size), astuple(POLICY.limit), strict=True)
    assert all(low <= value <= high for low, value, high in bounds)
    assert reason


def test_more_where_quality_still_improves_and_nothing_waits() -> None:
    found, reason = size(SizingSnapshot(waiting_seconds_per_worker=0.0, quality_gain=0.05), POLICY)
    assert found == TaskLimits(compute_seconds=240.0, memory_gb=6.0, cpu_cores=4.0)
    assert reason.startswith("4.0 times the base")


def test_no_more_than_the_hosts_have_for_each_worker_and_never_less_than_the_base() -> None:
    roomy = SizingSnapshot(waiting_seconds_per_worker=0.0, quality_gain=0.05)
    tight, reason = size(roomy, replace(POLICY, host_memory_gb=2.5, host_cores=2))
    assert tight == TaskLimits(compute_seconds=240.0, memory_gb=2.5, cpu_cores=2.0)
    assert reason.endswith("; the hosts have 2.5 GB for each worker")
    assert size(roomy, replace(POLICY, host_memory_gb=0.1))[0].memory_gb == BASE.memory_gb


def test_small_changes_of_what_is_measured_change_no_size() -> None:
    policy = replace(POLICY, step=0.25)

    def sizes(waiting: list[float], host_memory_gb: list[float]) -> set[TaskLimits]:
        return {
            size(
                SizingSnapshot(waiting_seconds_per_worker=seconds, quality_gain=0.05),
                replace(policy, host_memory_gb=memory_gb),
            )[0]
            for seconds in waiting
            for memory_gb in host_memory_gb
        }

    usual = TaskLimits(compute_seconds=180.0, memory_gb=3.5, cpu_cores=3.0)
    assert sizes([8.0, 9.0, 9.9], [3.55, 3.61, 3.98]) == {usual}
    assert len(sizes([8.0, 9.0, 12.0], [3.55, 4.1])) == 4


@pytest.mark.parametrize(
    ("waiting", "gain", "degraded", "why"),
    [(30.0, 0.5, False, "wait for"), (0.0, None, False, "not known"), (0.0, -0.1, False, "not known"),
     (0.0, 0.5, True, "short")],
)  # fmt: skip
def test_base_otherwise(waiting: float, gain: float | None, degraded: bool, why: str) -> None:
    snapshot = SizingSnapshot(waiting_seconds_per_worker=waiting, quality_gain=gain, is_degraded=degraded)
    found, reason = size(snapshot, POLICY)
    assert found == BASE
    assert why in reason


def test_no_more_than_the_worker_has() -> None:
    decided = Assignment(compute_seconds=240.0, memory_gb=6.0, cpu_cores=4.0)
    assert within(decided, memory_gb=3.0, cpu_cores=16.0) == Assignment(
        compute_seconds=240.0, memory_gb=3.0, cpu_cores=4.0
    )


@pytest.mark.parametrize(("limit", "memory_gb", "cpu_cores"), [(4.0, 1.0, 0.5), (2.0, 1.0, 0.5), (64.0, 16.0, 8.0)])
def test_whoever_allows_more_gives_more_also_where_quality_gains_nothing(
    limit: float, memory_gb: float, cpu_cores: float
) -> None:
    least = TaskLimits(compute_seconds=600.0, memory_gb=1.0, cpu_cores=0.5)
    most = TaskLimits(compute_seconds=3600.0, memory_gb=limit, cpu_cores=limit / 2)
    assert base_limits(least, most) == TaskLimits(compute_seconds=600.0, memory_gb=memory_gb, cpu_cores=cpu_cores)
