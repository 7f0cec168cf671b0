"""What happens by itself: time passes, duties have their turns, replicas restart and lose touch."""

from collections.abc import Collection
from dataclasses import dataclass

from app.db import duties
from app.kernel.agents import AgentType
from app.kernel.events import TaskEvent
from app.kernel.lanes import Priority
from app.kernel.states import TaskState
from app.queue.rules.tasks import LEASED, SweepPolicy, SweepSnapshot, hold_back_reason
from app.queue.service import aging, expiry, status
from app.queue.store import counters
from tests.properties import policies
from tests.properties.model import Model, Task
from tests.properties.service import Service
from tests.support.factories import turn
from tests.support.turns import done

_WAITING = (TaskState.BLOCKED, TaskState.PENDING)
_BACK = "{0} = {0} - make_interval(secs => $1)"
_TASK_MOMENTS = ("lease_expires_at", "deadline_at", "run_at", "deadline", "waiting_since", "leased_at")
_WORKER_MOMENTS = ("requested_at", "launched_at", "last_seen_at")


@dataclass(frozen=True, slots=True, kw_only=True)
class PassTime:
    """Nobody sleeps: what has happened has happened earlier."""

    seconds: float

    async def run(self, service: Service) -> object:
        # A dead letter takes its deadline along when it is requeued.
        of_history = ("task_history", ("deadline",))
        for table, moments in (("tasks", _TASK_MOMENTS), ("workers", _WORKER_MOMENTS), of_history):
            changes = ", ".join(_BACK.format(moment) for moment in moments)
            await service.beside.execute(f"UPDATE {table} SET {changes}", self.seconds)
        # Where one took long, the next meets only deadlines that have come near by the clock of the database.
        await service.beside.execute("UPDATE loop_ticks SET result = result - 'deadlines' WHERE result IS NOT NULL")
        return None

    def judge(self, model: Model, observed: object) -> None:
        model.now += self.seconds


@dataclass(frozen=True, slots=True, kw_only=True)
class SweepLeases:
    """Leases that ran out, and tasks that hang, are taken back; not all at once without a second look."""

    held_back_before: bool = False
    replica: int = 0

    async def run(self, service: Service) -> object:
        turn_now = turn(held_back=self.held_back_before)
        async with service.replicas[self.replica].database.transaction() as connection:
            return done(await expiry.sweep(connection, policies.LEASES, turn_now))

    def judge(self, model: Model, observed: object) -> None:
        overdue = list(model.overdue())
        live = sum(task.state in LEASED for task in model.tasks.values())
        held = 600.0 if self.held_back_before else None
        snapshot = SweepSnapshot(
            expired_count=len(overdue), live_count=live, seconds_since_last_sweep=1.0, held_back_seconds=held
        )
        reason = hold_back_reason(snapshot, SweepPolicy())
        if reason is not None:
            assert isinstance(observed, dict)
            told = {name: part for name, part in observed.items() if name != "held_back_since"}
            assert told == {"held_back": True, "reason": reason}, f"should be held back, not {observed}"
            return
        assert observed == {"live": live, "taken_back": len(overdue)}, f"{len(overdue)} are overdue, and {observed}"
        for task in overdue:
            model.take_back(task)


@dataclass(frozen=True, slots=True, kw_only=True)
class Promote:
    """Delayed tasks whose time has come may run."""

    replica: int = 0

    async def run(self, service: Service) -> object:
        async with service.replicas[self.replica].database.transaction() as connection:
            return (await expiry.promote_delayed(connection))["promoted"]

    def judge(self, model: Model, observed: object) -> None:
        due = [task for task in model.live() if task.run_at is not None and task.run_at <= model.now]
        assert observed == len(due), f"{len(due)} are due, and {observed} were promoted"
        for task in due:
            task.run_at, task.waiting_since = None, model.now


@dataclass(frozen=True, slots=True, kw_only=True)
class Age:
    """What has waited for long becomes more urgent, and critical what must be done soon."""

    replica: int = 0

    async def run(self, service: Service) -> object:
        async with service.replicas[self.replica].database.transaction() as connection:
            await duties.ensure(connection, aging.AGE_TASKS)
            result = await aging.age_tasks(connection, policies.AGEING)
            await duties.record(connection, aging.AGE_TASKS, result, held_back=False)
            return result["aged"], result["urgent"]

    def judge(self, model: Model, observed: object) -> None:
        aged = 0
        for step in policies.AGEING.steps:
            since = model.now - step.wait.total_seconds()
            old = [t for t in model.live() if t.is_ready and t.priority == step.priority and t.waiting_since <= since]
            for task in old:
                task.priority = Priority(task.priority + 1)
                task.events.append(TaskEvent.AGED)
            aged += len(old)
        urgent = [task for task in model.live() if _is_urgent(task, model.now)]
        for task in urgent:
            task.priority = Priority.CRITICAL
            task.events.append(TaskEvent.AGED)
        assert observed == (aged, len(urgent)), f"should be {aged} and {len(urgent)}, and are {observed}"


def _is_urgent(task: Task, now: float) -> bool:
    within = policies.AGEING.urgent_within.total_seconds()
    is_near = task.deadline is not None and task.deadline < now + within
    return is_near and task.priority < Priority.CRITICAL and task.state in _WAITING


@dataclass(frozen=True, slots=True, kw_only=True)
class Fold:
    """Old changes of counters become totals."""

    replica: int = 0

    async def run(self, service: Service) -> object:
        async with service.replicas[self.replica].database.transaction() as connection:
            return await counters.fold(connection)

    def judge(self, model: Model, observed: object) -> None:
        """The counters stay what they are; the look at the database after every step sees to that."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Pause:
    """Tasks of some types are not leased for now."""

    agents: Collection[AgentType]

    async def run(self, service: Service) -> object:
        async with service.replicas[0].database.transaction() as connection:
            return {pause.agent_type for pause in await status.pause(connection, self.agents, "a look", "somebody")}

    def judge(self, model: Model, observed: object) -> None:
        model.paused |= set(self.agents)
        assert observed == model.paused


@dataclass(frozen=True, slots=True, kw_only=True)
class Resume:
    """They are leased again."""

    agents: Collection[AgentType]

    async def run(self, service: Service) -> object:
        async with service.replicas[0].database.transaction() as connection:
            return {pause.agent_type for pause in await status.resume(connection, self.agents, "", "somebody")}

    def judge(self, model: Model, observed: object) -> None:
        model.paused -= set(self.agents)
        assert observed == model.paused


@dataclass(frozen=True, slots=True, kw_only=True)
class KeepInStep:
    """What a replica does by the clock: it exchanges virtual times, and looks for work that nobody announced."""

    replica: int = 0

    async def run(self, service: Service) -> object:
        await service.replicas[self.replica].exchange()
        await service.replicas[self.replica].look_through()
        return None

    def judge(self, model: Model, observed: object) -> None:
        """Nobody sees a difference."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Restart:
    """A replica begins anew."""

    replica: int = 0

    async def run(self, service: Service) -> object:
        await service.restart(self.replica)
        return None

    def judge(self, model: Model, observed: object) -> None:
        """Nobody sees a difference."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Cut:
    """Announcements are lost between the replicas, or no longer."""

    is_cut: bool

    async def run(self, service: Service) -> object:
        service.cut(is_cut=self.is_cut)
        return None

    def judge(self, model: Model, observed: object) -> None:
        """Nobody may see more than a delay."""
        model.has_lost_news |= self.is_cut


@dataclass(frozen=True, slots=True, kw_only=True)
class WearOut:
    """All live tasks have lost so many workers already that the next one is too many."""

    rescues: int

    async def run(self, service: Service) -> object:
        await service.beside.execute("UPDATE tasks SET rescues = $1", self.rescues)
        return None

    def judge(self, model: Model, observed: object) -> None:
        for task in model.live():
            task.rescues = self.rescues
