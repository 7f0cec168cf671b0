"""Whatever Supervisors, workers, operators and time do to the queue, no task is lost and none is done twice.

The quick profile draws the same examples in every run, so that `make quick` fails for what was changed and nothing
else. The slow one draws others each time, so that CI goes on exploring; what it finds is printed as a list of steps, is
tried first in the next run from the database of examples, and can be replayed from the printed blob:
`machine = reproduce_failure(...)(machine)`.
"""

from collections.abc import Iterator
from functools import partial
from typing import Any

import pytest
from hypothesis import HealthCheck, settings
from hypothesis.stateful import run_state_machine_as_test

from tests.properties.machine import QueueMachine
from tests.properties.policies import DRAW
from tests.properties.service import Service

_COMMON = settings(
    deadline=None,
    print_blob=True,
    # A statement takes a millisecond, which is long for Hypothesis.
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large, HealthCheck.filter_too_much],
)
QUICK = settings(_COMMON, max_examples=30, stateful_step_count=30, derandomize=True)
SLOW = settings(_COMMON, max_examples=100, stateful_step_count=60)


class _Draws:
    """In place of chance: how long a failed task waits must be known to the model."""

    def random(self) -> float:
        return DRAW


async def _leave_it_to_the_machine(*_: object) -> None:
    """In place of what a broker does by the clock."""


@pytest.fixture
def service(emptied_url: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[Service]:
    monkeypatch.setattr("app.queue.broker.broker.synchronize_lanes", _leave_it_to_the_machine)
    monkeypatch.setattr("app.queue.service.leases.random", _Draws())
    with Service(emptied_url) as service:
        yield service


def test_the_queue_keeps_its_promises(service: Service) -> None:
    _run(service, QUICK)


@pytest.mark.slow
def test_the_queue_keeps_its_promises_for_long(service: Service) -> None:
    _run(service, SLOW)


def _run(service: Service, profile: settings) -> None:
    # Hypothesis takes whatever makes a machine, and says it takes a class.
    machine: Any = partial(QueueMachine, service)
    run_state_machine_as_test(machine, settings=profile)
