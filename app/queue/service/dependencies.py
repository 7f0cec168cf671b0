"""What a submit owes to the dependencies of its tasks."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from uuid import UUID

from sqlalchemy.ext.asyncio import AsyncConnection

from app.kernel.states import TaskState
from app.queue.errors import DependencyCycle, DependencyMissing
from app.queue.rules.dependencies import find_cycle
from app.queue.store import dependencies, history
from app.queue.store.dependencies import Edge
from app.queue.store.tasks import NewTask


@dataclass(frozen=True, slots=True, kw_only=True)
class Standing:
    """How the tasks that others wait for stand; those that are live stay locked until the transaction ends."""

    states: Mapping[UUID, str]

    def blockers(self, task: NewTask) -> int:
        """How many dependencies of the task are not met."""
        return len(self._unmet(task))

    async def settle(self, connection: AsyncConnection, created: Sequence[NewTask], *, look_again: bool) -> bool:
        """Write down who waits for whom. Tasks whose dependency has failed already are cancelled; whether any was.

        `look_again` where making room for the tasks may have displaced what they wait for.
        """
        edges = [Edge(task_id=task.id, depends_on=on) for task in created for on in self._unmet(task)]
        if not edges:
            return False
        await dependencies.connect(connection, edges)
        waited_for = {edge.depends_on for edge in edges}
        ours = [task.id for task in created if task.id in waited_for]
        await dependencies.mark(connection, ours)
        states = {**self.states, **(await history.states(connection, waited_for) if look_again else {})}
        hopeless = [on for on in sorted(waited_for) if states.get(on) in (TaskState.FAILED, TaskState.CANCELLED)]
        for on in hopeless:
            await dependencies.cancel_dependents(connection, on, _ended(states[on]))
        return bool(hopeless)

    def _unmet(self, task: NewTask) -> list[UUID]:
        return [on for on in task.depends_on if self.states.get(on) != TaskState.COMPLETED]


async def standing(connection: AsyncConnection, new: Mapping[UUID, NewTask]) -> Standing:
    """Look at all dependencies of a batch. Raises DependencyCycle, DependencyMissing."""
    wanted = {on for task in new.values() for on in task.depends_on}
    if not wanted:
        return Standing(states={})
    cycle = find_cycle({task.id: task.depends_on for task in new.values()})
    if cycle is not None:
        raise DependencyCycle("these tasks wait for each other: " + " -> ".join(map(str, cycle)))
    states = await dependencies.mark(connection, sorted(wanted))
    missing = sorted(wanted - states.keys() - new.keys())
    if missing:
        raise DependencyMissing(f"there is no task {missing[0]} to depend on ({len(missing)} missing in all)")
    return Standing(states=states)


def _ended(state: str) -> str:
    return "failed" if state == TaskState.FAILED else "was cancelled"
