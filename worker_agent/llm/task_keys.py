"""Keys of running tasks, by which calls on loopback are authenticated and accounted."""

import asyncio
import secrets
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from threading import Lock

from worker_agent.llm.replies import NoCapacity
from worker_agent.wire import Lease

# Reserved at the end of a task's time for reporting its result.
_MARGIN_SECONDS = 3.0
# More calls of one task wait for these: each of them asks the control plane again and again until it has a permit.
_MAX_CALLS = 32


@dataclass(slots=True)
class Wait:
    """The language model for which a task was last told to wait, and for how long; None: it was answered since."""

    model: str | None = None
    seconds: float = 0.0
    reason: str = ""

    def update(self, no_capacity: NoCapacity) -> None:
        """Take over what the task was told."""
        self.model, self.seconds, self.reason = no_capacity.model, no_capacity.seconds, str(no_capacity)

    def clear(self) -> None:
        """Note that the task was answered."""
        self.model = None


@dataclass(frozen=True, slots=True, kw_only=True)
class TaskKey:
    """Key of a running task; `ends_at` is the end of its time, on the monotonic clock, `calls` bounds its calls."""

    secret: str = field(repr=False)
    lease: Lease
    ends_at: float
    waits: Wait = field(default_factory=Wait, compare=False)
    calls: asyncio.Semaphore = field(default_factory=lambda: asyncio.Semaphore(_MAX_CALLS), compare=False, repr=False)


class TaskKeys:
    """Keys of the tasks that run now; safe to use from several threads."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._lock = Lock()
        self._active: dict[str, TaskKey] = {}

    def issue(self, lease: Lease) -> TaskKey:
        """Issue a key to a task that begins now."""
        ends_at = self._clock() + max(0.0, lease.timeout_seconds - _MARGIN_SECONDS)
        task_key = TaskKey(secret=f"task-{secrets.token_urlsafe(24)}", lease=lease, ends_at=ends_at)
        with self._lock:
            self._active[task_key.secret] = task_key
        return task_key

    def revoke(self, task_key: TaskKey) -> None:
        """Revoke the key of a task that is over."""
        with self._lock:
            self._active.pop(task_key.secret, None)

    def find(self, secret: str) -> TaskKey | None:
        """Return the key with this secret while its task runs."""
        with self._lock:
            return self._active.get(secret)
