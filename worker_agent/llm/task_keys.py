"""Who is asking: a secret of the task's own, by which a call on loopback is known and accounted."""

import secrets
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from threading import Lock

from worker_agent.wire import Lease

# Left of a task's time for saying how it went.
_MARGIN_SECONDS = 3.0


@dataclass(frozen=True, slots=True, kw_only=True)
class TaskKey:
    """A running task; `ends_at` is when it has no time left, on the monotonic clock."""

    secret: str = field(repr=False)
    task_id: str
    agent_type: str
    goal_id: str | None
    priority: str
    trace_context: str | None
    ends_at: float


class TaskKeys:
    """The tasks that may ask now; safe to use from several threads."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._lock = Lock()
        self._active: dict[str, TaskKey] = {}

    def issue(self, lease: Lease) -> TaskKey:
        """For a task that begins now."""
        task_key = TaskKey(
            secret=f"task-{secrets.token_urlsafe(24)}",
            task_id=lease.task_id,
            agent_type=lease.agent_type,
            goal_id=lease.goal_id,
            priority=lease.priority,
            trace_context=lease.trace_context,
            ends_at=self._clock() + max(0.0, lease.timeout_seconds - _MARGIN_SECONDS),
        )
        with self._lock:
            self._active[task_key.secret] = task_key
        return task_key

    def revoke(self, task_key: TaskKey) -> None:
        """The task is over."""
        with self._lock:
            self._active.pop(task_key.secret, None)

    def find(self, secret: str) -> TaskKey | None:
        """The task with this secret, while it runs."""
        with self._lock:
            return self._active.get(secret)
