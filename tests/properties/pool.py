"""Workers come, are seen, are told to drain, leave and are lost."""

from dataclasses import dataclass

from app.kernel.errors import WorkerGone
from app.kernel.ids import WorkerId
from app.kernel.states import TaskState, WorkerState
from app.queue.service.leases import Fence
from app.workers.rules.workers import Directive, should_hold_back
from app.workers.service import directives, workers
from tests.properties import policies
from tests.properties.model import Model, Worker
from tests.properties.service import Service
from tests.support.factories import beat, order, registration, turn
from tests.support.turns import done


@dataclass(frozen=True, slots=True, kw_only=True)
class Register:
    """A worker of this name begins, and whoever bore it is over."""

    name: str
    replica: int = 0

    async def run(self, service: Service) -> object:
        async with service.replicas[self.replica].database.transaction() as connection:
            return (await workers.register(connection, registration(self.name), None)).worker_id

    def judge(self, model: Model, observed: object) -> None:
        for former in model.workers.values():
            if former.name == self.name and former.is_live:
                model.lose(former, WorkerState.LOST)
        worker_id = WorkerId(observed)  # type: ignore[arg-type]  # what `run` returns
        assert worker_id not in model.workers
        model.workers[worker_id] = Worker(id=worker_id, name=self.name, since=model.now)


@dataclass(frozen=True, slots=True, kw_only=True)
class Beat:
    """A heartbeat, and the lease that it names."""

    worker_id: WorkerId
    fence: Fence | None = None
    draining: bool = False
    replica: int = 0

    async def run(self, service: Service) -> object:
        named = {"task_id": self.fence.task_id, "token": self.fence.token} if self.fence else {}
        said = beat(self.worker_id, draining=self.draining, **named)
        pulse = await service.replicas[self.replica].heartbeats.report(said)
        return pulse.state, pulse.lease_state

    def judge(self, model: Model, observed: object) -> None:
        worker = model.workers[self.worker_id]
        if not worker.is_live:
            assert observed is WorkerGone, f"should hear that it is gone, not {observed}"
            return
        worker.seen = model.now
        if self.draining or worker.is_directed:
            worker.state = WorkerState.DRAINING
        elif worker.state is WorkerState.STARTING:
            worker.state = WorkerState.READY
        assert observed == (worker.state, self._renew(model)), f"not {observed}"

    def _renew(self, model: Model) -> TaskState | None:
        """A heartbeat renews what it names, also a lease that has run out and was not taken back."""
        task = model.held_by(self.worker_id)
        if task is None or self.fence is None or (task.id, task.token) != (self.fence.task_id, self.fence.token):
            return None
        if task.state is TaskState.EXECUTING:
            model.execute(task)
        return task.state


@dataclass(frozen=True, slots=True, kw_only=True)
class Goodbye:
    """A worker leaves in order, and hands back what it has."""

    worker_id: WorkerId
    replica: int = 0

    async def run(self, service: Service) -> object:
        async with service.replicas[self.replica].database.transaction() as connection:
            await workers.say_goodbye(connection, self.worker_id, "told to")
        return None

    def judge(self, model: Model, observed: object) -> None:
        worker = model.workers[self.worker_id]
        if worker.is_live:
            worker.state = WorkerState.STOPPED
        task = model.held_by(self.worker_id)
        if task is not None:
            model.release(task)


@dataclass(frozen=True, slots=True, kw_only=True)
class Direct:
    """Somebody tells a worker to drain."""

    worker_id: WorkerId

    async def run(self, service: Service) -> object:
        async with service.replicas[0].database.transaction() as connection:
            await directives.direct(connection, self.worker_id, order(Directive.DRAIN, "enough"))
        return None

    def judge(self, model: Model, observed: object) -> None:
        worker = model.workers[self.worker_id]
        if not worker.is_live:
            # Whoever was told before may be told again, also when it has obeyed meanwhile.
            assert observed is (None if worker.is_directed else WorkerGone), f"not {observed}"
            return
        assert observed is None, f"refused with {observed}"
        worker.is_directed = True
        if worker.state is WorkerState.READY:
            worker.state = WorkerState.DRAINING


@dataclass(frozen=True, slots=True, kw_only=True)
class SweepWorkers:
    """A look for workers that have been silent for too long."""

    held_back_before: bool = False
    replica: int = 0

    async def run(self, service: Service) -> object:
        turn_now = turn(held_back=self.held_back_before)
        async with service.replicas[self.replica].database.transaction() as connection:
            return done(await workers.sweep(connection, policies.HEALTH, turn_now))

    def judge(self, model: Model, observed: object) -> None:
        live = [worker for worker in model.workers.values() if worker.is_live]
        late = [worker for worker in live if _is_late(worker, model.now)]
        held = 600.0 if self.held_back_before else None
        if should_hold_back(
            len(late), len(live), policies.HEALTH, seconds_since_last_sweep=1.0, held_back_seconds=held
        ):
            assert isinstance(observed, dict)
            assert {**observed, "held_back_since": None} == {
                "held_back": True,
                "held_back_since": None,
                "overdue": len(late),
                "live": len(live),
            }
            return
        assert observed == {"lost": len(late)}, f"{len(late)} are late, and {observed}"
        for worker in late:
            model.lose(worker, WorkerState.FAILED if worker.state is WorkerState.STARTING else WorkerState.LOST)


def _is_late(worker: Worker, now: float) -> bool:
    if worker.state is WorkerState.STARTING:
        return now - worker.since > policies.HEALTH.start_within_seconds
    seen = worker.since if worker.seen is None else worker.seen
    return now - seen > policies.HEALTH.lost_after_seconds
