"""The simulation of packing: no order is faster than the bound, and first-fit-decreasing fits where it says so."""

import random

import pytest

from app.kernel.resources import Resources
from benchmarks import packing
from benchmarks.packing import LARGE, MIXES, SMALL, Task


@pytest.mark.parametrize("mix", MIXES.values(), ids=MIXES)
def test_nothing_is_faster_than_the_bound(mix: dict[Resources, float]) -> None:
    tasks = packing.draw(mix, 60, random.Random(1))
    least = packing.bound(tasks)
    assert least <= packing.first_fit_decreasing(tasks) <= 4 / 3 * least
    for outcome in (packing.by_rule(tasks), packing.by_arrival(tasks)):
        assert least <= outcome.makespan <= 3 * least


def test_the_bound_is_the_work_that_only_some_can_do() -> None:
    assert packing.bound([Task(request=SMALL, seconds=10.0)] * 56) == 20.0
    assert packing.bound([Task(request=LARGE, seconds=10.0)] * 8 + [Task(request=SMALL, seconds=1.0)] * 20) == 20.0
    assert packing.bound([Task(request=LARGE, seconds=10.0), Task(request=SMALL, seconds=99.0)]) == 99.0


def test_the_rule_gives_large_tasks_to_large_workers_first() -> None:
    """Four large tasks behind a hundred small ones: by arrival they wait, by the rule hardly."""
    tasks = [Task(request=SMALL, seconds=10.0)] * 100 + [Task(request=LARGE, seconds=10.0)] * 4
    assert packing.by_rule(tasks).most_waited <= 2.5
    assert packing.by_arrival(tasks).most_waited >= 30.0


def test_slots_run_one_task_each_and_shared_hosts_as_many_as_fit() -> None:
    small = [SMALL] * 128
    assert (packing.hosts_with_slots(small), packing.hosts_shared_out(small), packing.hosts_at_least(small)) == (
        16,
        2,
        2,
    )
    full = [Resources(cores=8, memory_gb=32, gpus=1)] * 9
    assert (packing.hosts_with_slots(full), packing.hosts_shared_out(full), packing.hosts_at_least(full)) == (2, 2, 2)
