"""What the queue is meant to be: tasks and workers as plain objects, and the moves that they make."""

from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from uuid import UUID

from app.kernel.agents import AgentType
from app.kernel.errors import ConvenerError
from app.kernel.events import TaskEvent
from app.kernel.ids import TaskId, WorkerId
from app.kernel.lanes import Priority
from app.kernel.states import FINISHED, LIVE_STATES, TaskState, WorkerState
from app.queue.errors import LeaseEnded, LeaseExpired, LeaseNotFound, LeaseSuperseded, TaskCancelled
from app.queue.rules.tasks import LEASED, TRANSITIONS, RetryPolicy, after_no_acknowledgement
from app.queue.service.leases import Fence
from app.queue.service.tasks import Submission
from tests.properties import policies

MAX_RESCUES = 5
_ORIGIN = datetime(2026, 1, 1, tzinfo=UTC)


@dataclass(slots=True, kw_only=True)
class Task:
    """A task; moments are seconds on the model's own clock."""

    id: UUID
    submission: Submission
    priority: Priority
    waiting_since: float
    run_at: float | None
    deadline: float | None
    waits_for: set[UUID]
    state: TaskState = TaskState.PENDING
    token: int = 0
    failures: int = 0
    rescues: int = 0
    unacknowledged: int = 0
    worker: WorkerId | None = None
    request_id: UUID | None = None
    expires: float = 0.0
    hard_limit: float = 0.0
    avoid: WorkerId | None = None
    progress: str | None = None
    checkpoint: str | None = None
    result: str | None = None
    events: list[TaskEvent] = field(default_factory=lambda: [TaskEvent.SUBMITTED])
    attempts: dict[tuple[int, UUID], str] = field(default_factory=dict)

    @property
    def agent(self) -> AgentType:
        return self.submission.agent_type

    @property
    def is_live(self) -> bool:
        return self.state not in FINISHED

    @property
    def is_ready(self) -> bool:
        return self.state is TaskState.PENDING and self.run_at is None

    @property
    def fence(self) -> Fence | None:
        """The lease under which the task is."""
        if self.state not in LEASED:
            return None
        assert self.worker is not None
        return Fence(task_id=TaskId(self.id), token=self.token, worker_id=self.worker)

    def copy(self) -> "Task":
        return replace(self, waits_for=set(self.waits_for), events=list(self.events), attempts=dict(self.attempts))

    def apply(self, event: TaskEvent) -> None:
        """Change the state, by the table of legal transitions."""
        origins, destination = TRANSITIONS[event]
        assert self.state in origins, f"{event} of a task that is {self.state}"
        self.state = destination
        self.events.append(event)


@dataclass(slots=True, kw_only=True)
class Worker:
    """One incarnation of a worker."""

    id: WorkerId
    name: str
    since: float
    seen: float | None = None
    state: WorkerState = WorkerState.STARTING
    is_directed: bool = False

    @property
    def is_live(self) -> bool:
        return self.state in LIVE_STATES

    @property
    def is_ready(self) -> bool:
        return self.state is WorkerState.READY


@dataclass(slots=True)
class Model:
    """The whole queue."""

    now: float = 0.0
    tasks: dict[UUID, Task] = field(default_factory=dict)
    workers: dict[WorkerId, Worker] = field(default_factory=dict)
    keys: dict[str, UUID] = field(default_factory=dict)
    paused: set[AgentType] = field(default_factory=set)
    has_lost_news: bool = False

    def copy(self) -> "Model":
        """Another that goes its own way."""
        return Model(
            now=self.now,
            tasks={task_id: task.copy() for task_id, task in self.tasks.items()},
            workers={worker_id: replace(worker) for worker_id, worker in self.workers.items()},
            keys=dict(self.keys),
            paused=set(self.paused),
            has_lost_news=self.has_lost_news,
        )

    def live(self) -> list[Task]:
        return [task for task in self.tasks.values() if task.is_live]

    def held_by(self, worker_id: WorkerId) -> Task | None:
        """The task that a worker has; one whose lease has expired is its own until it is taken back."""
        held = [task for task in self.tasks.values() if task.state in LEASED and task.worker == worker_id]
        assert len(held) <= 1, "the model itself gives a worker two tasks"
        return held[0] if held else None

    def eligible(self, worker_id: WorkerId, agents: Collection[AgentType], *, alone: bool) -> list[Task]:
        """What a worker may be given; among others it may also get what it had better avoid."""
        patience = self.now - policies.LEASES.avoid_seconds
        return [
            task
            for task in self.tasks.values()
            if task.is_ready
            and task.agent in agents
            and task.agent not in self.paused
            and (not alone or task.avoid != worker_id or task.waiting_since < patience)
        ]

    def is_excused(self, task: Task) -> bool:
        """Whether a replica may have lost sight of a task: nobody has told it, or a worker had to leave it aside."""
        return self.has_lost_news or task.avoid is not None

    def assign(self, task: Task, worker_id: WorkerId, request_id: UUID, *, acknowledge: bool) -> None:
        task.apply(TaskEvent.ASSIGNED)
        task.token += 1
        task.worker, task.request_id = worker_id, request_id
        task.hard_limit = self.now + (task.submission.timeout_seconds or policies.LEASES.task_timeout_seconds)
        task.expires = self.now + policies.LEASES.acknowledge_within_seconds
        if acknowledge:
            self.execute(task)

    def execute(self, task: Task) -> None:
        """Acknowledge and renew."""
        if task.state is TaskState.ASSIGNED:
            task.apply(TaskEvent.EXECUTING)
        task.expires = self.now + policies.LEASES.lease_seconds

    def repeat(self, task: Task) -> None:
        """Give a lease once more, with all the time to begin or to go on."""
        is_begun = task.state is TaskState.EXECUTING
        seconds = policies.LEASES.lease_seconds if is_begun else policies.LEASES.acknowledge_within_seconds
        task.expires = max(task.expires, self.now + seconds)

    def open(self, fence: Fence) -> Task | None:
        """The task under this lease, as long as that has not expired."""
        task = self.tasks.get(fence.task_id)
        return task if task is not None and task.fence == fence and task.expires > self.now else None

    def refusal(self, fence: Fence) -> type[ConvenerError]:
        """Why a call on a lease is refused that is not held."""
        task = self.tasks.get(fence.task_id)
        if task is None:
            return LeaseNotFound
        if (task.token, task.worker) == (fence.token, fence.worker_id):
            if task.is_live:
                return LeaseExpired
            return TaskCancelled if task.state is TaskState.CANCELLED else LeaseEnded
        past = task.attempts.get((fence.token, fence.worker_id))
        if past is None:
            return LeaseNotFound
        if past in ("expired", "lost"):
            return LeaseExpired
        return LeaseSuperseded if task.token > fence.token else LeaseEnded

    def complete(self, task: Task, result: str) -> None:
        task.apply(TaskEvent.COMPLETED)
        task.result = result
        for dependent in self.dependents(task):
            dependent.waits_for.discard(task.id)
            dependent.waiting_since = self.now
            if not dependent.waits_for:
                dependent.apply(TaskEvent.UNBLOCKED)

    def fail(self, task: Task, outcome: str, *, retryable: bool) -> None:
        """The attempt has failed: again later, or never."""
        task.failures += 1
        policy = task.submission.retry
        if not retryable or task.failures >= policy.max_attempts:
            self._give_up(task, outcome)
            return
        delays = policy.delays_seconds
        delay = delays[min(task.failures, len(delays)) - 1] * policies.DRAW
        self._give_back(
            task, TaskEvent.RETRYING, outcome, avoid=task.worker, run_at=self.now + delay if delay else None
        )

    def rescue(self, task: Task, outcome: str) -> None:
        """The attempt has vanished: again at once, unless the task keeps killing its workers, or has not begun."""
        if task.state is TaskState.ASSIGNED:
            verdict = after_no_acknowledgement(
                RetryPolicy(), failures=0, rescues=0, unacknowledged=task.unacknowledged, now=_ORIGIN, reason=""
            )
            task.unacknowledged += 1
            if verdict.event is TaskEvent.FAILED:
                self._give_up(task, outcome)
                return
            run_at = self.now + (verdict.run_at - _ORIGIN).total_seconds() if verdict.run_at else None
            self._give_back(task, TaskEvent.EXPIRED, outcome, avoid=task.worker, run_at=run_at)
            return
        task.rescues += 1
        if task.rescues > MAX_RESCUES:
            self._give_up(task, outcome)
        else:
            self._give_back(task, TaskEvent.EXPIRED, outcome, avoid=task.worker)

    def release(self, task: Task) -> None:
        self._give_back(task, TaskEvent.RELEASED, "released")

    def cancel(self, task: Task) -> None:
        """End a live task, and all that wait for it."""
        if task.worker is not None:
            self._record(task, "cancelled")
        task.apply(TaskEvent.CANCELLED)
        task.waits_for.clear()
        for dependent in self.dependents(task):
            if dependent.is_live:
                self.cancel(dependent)

    def requeue(self, task: Task) -> None:
        """Another chance for a task that failed."""
        task.apply(TaskEvent.REQUEUED)
        task.failures = task.rescues = task.unacknowledged = 0
        task.worker, task.run_at, task.waiting_since, task.avoid = None, None, self.now, None

    def lose(self, worker: Worker, state: WorkerState) -> None:
        """A worker is over; its task is rescued."""
        task = self.held_by(worker.id)
        worker.state = state
        if task is not None:
            self.rescue(task, "lost")

    def dependents(self, task: Task) -> Sequence[Task]:
        """The live tasks that wait for this one directly."""
        return [other for other in self.tasks.values() if task.id in other.waits_for]

    def overdue(self) -> Iterator[Task]:
        """The leased tasks that a sweep takes back, when it takes any."""
        for task in self.tasks.values():
            if task.state in LEASED and (task.expires <= self.now or self._hangs(task)):
                yield task

    def take_back(self, task: Task) -> None:
        """What a sweep does with one of those."""
        if task.expires > self.now:
            self.fail(task, "expired", retryable=True)
        else:
            self.rescue(task, "expired")

    def _hangs(self, task: Task) -> bool:
        return task.hard_limit + policies.LEASES.deadline_grace_seconds <= self.now

    def _give_up(self, task: Task, outcome: str) -> None:
        self._record(task, outcome)
        task.apply(TaskEvent.FAILED)
        for dependent in self.dependents(task):
            if dependent.is_live:
                self.cancel(dependent)

    def _give_back(
        self, task: Task, event: TaskEvent, outcome: str, *, avoid: WorkerId | None = None, run_at: float | None = None
    ) -> None:
        self._record(task, outcome)
        task.apply(event)
        task.worker, task.run_at, task.waiting_since, task.avoid = None, run_at, self.now, avoid

    @staticmethod
    def _record(task: Task, outcome: str) -> None:
        assert task.worker is not None
        task.attempts[task.token, task.worker] = outcome
