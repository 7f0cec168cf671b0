"""Commands that run as a handler would, under a method of confinement."""

from dataclasses import replace
from pathlib import Path
from queue import SimpleQueue
from typing import Any

import pytest

from tests.worker_agent.confining import need_code_for_others, rules
from worker_agent import events as ev
from worker_agent.child_process import ResourceLimits, start_child
from worker_agent.confinement import Confinement, HandlerLimits, Method
from worker_agent.handler_run import HandlerRun
from worker_agent.handlers import Handler
from worker_agent.kernel_calls import landlock_version
from worker_agent.wire import Lease

METHODS = [
    Method.NAMESPACES,
    pytest.param(Method.LANDLOCK, marks=pytest.mark.skipif(landlock_version() < 6, reason="this kernel has none")),
]


def ended(script: str, confinement: Confinement, *, cpu_cores: float = 1.0, **more: Any) -> ev.HandlerEnd:
    """How a shell script ended as a handler with 1 GiB of memory."""
    events: SimpleQueue[ev.Event] = SimpleQueue()
    lease = Lease(task_id="t-1", token=1, agent_type="generation", timeout_seconds=60.0)
    handler, limits = Handler(command=("sh", "-c", script)), ResourceLimits(memory_gb=1.0, cpu_cores=cpu_cores)
    HandlerRun(start_child(lease, handler, limits, confinement, {}), 60.0, events.put, **more)
    while isinstance(event := events.get(timeout=60.0), ev.ProgressMade):
        continue
    assert isinstance(event, ev.HandlerFinished | ev.HandlerFailed), event
    return event


def succeeds(command: str, confinement: Confinement) -> bool:
    """Whether a command does what it is to do in a handler."""
    end = ended(
        f"if ( {command} ) >&2; then echo '{{\"done\": true}}'; else echo '{{\"done\": false}}'; fi", confinement
    )
    assert isinstance(end, ev.HandlerFinished), end
    return bool(end.result["done"])


def by(method: Method, *writable: Path, **limits: Any) -> Confinement:
    confinement = rules(*writable)
    if confinement.method is not Method.NAMESPACES:
        pytest.skip("this system refuses namespaces")
    if method is not Method.NAMESPACES:
        need_code_for_others(confinement)
    return replace(confinement, method=method, limits=HandlerLimits(**limits))
