"""Dependencies of submitted tasks: checked, locked, and recorded with the tasks."""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from uuid import UUID

from sqlalchemy.ext.asyncio import AsyncConnection

from app.kernel.states import TaskState
from app.queue.errors import DependencyCycle, DependencyMissing
from app.queue.rules.dependencies import find_cycle
from app.queue.store import dependencies, history
from app.queue.store.dependencies import Edge
from app.queue.store.new_tasks import NewTask


@dataclass(frozen=True, slots=True, kw_only=True)
class DependencyStates:
    """States of the tasks that a batch depends on; live ones stay locked until the transaction ends.

    Those of `missing_ids` do not exist: only the insert shows which tasks are new, and the others need them no more.
    """

    states: Mapping[UUID, str]
    missing_ids: Collection[UUID] = ()

    def blockers(self, task: NewTask) -> int:
        """Number of dependencies of the task that have not completed."""
        return len(self._unmet(task))

    async def record(self, connection: AsyncConnection, new: Sequence[NewTask], *, look_again: bool) -> bool:
        """Write the edges of new tasks, and cancel those whose dependency has failed; return whether any was cancelled.

        `look_again` is for a submit that may have displaced waiting tasks, their dependencies among them. Raises
        DependencyMissing.
        """
        edges = [Edge(task_id=task.id, depends_on=on) for task in new for on in self._unmet(task)]
        if not edges:
            return False
        if missing_ids := sorted({edge.depends_on for edge in edges}.intersection(self.missing_ids)):
            count = len(missing_ids)
            raise DependencyMissing(f"there is no task {missing_ids[0]} to depend on ({count} missing in all)")
        await dependencies.connect(connection, edges)
        dependency_ids = {edge.depends_on for edge in edges}
        # Dependencies within the batch did not exist yet when the others were locked and marked.
        batch_ids = [task.id for task in new if task.id in dependency_ids]
        await dependencies.mark(connection, batch_ids)
        states = {**self.states, **(await history.states(connection, dependency_ids) if look_again else {})}
        failed_ids = [on for on in sorted(dependency_ids) if states.get(on) in (TaskState.FAILED, TaskState.CANCELLED)]
        for on in failed_ids:
            await dependencies.cancel_dependents(connection, on, _ending_words(states[on]))
        return bool(failed_ids)

    def _unmet(self, task: NewTask) -> list[UUID]:
        return [on for on in task.depends_on if self.states.get(on) != TaskState.COMPLETED]


async def lock_dependencies(connection: AsyncConnection, new: Mapping[UUID, NewTask]) -> DependencyStates:
    """Look at all dependencies of a batch and lock the live ones. Raises DependencyCycle.

    All tasks of a batch are of one namespace, and those of others do not exist for it.
    """
    dependency_ids = {on for task in new.values() for on in task.depends_on}
    if not dependency_ids:
        return DependencyStates(states={})
    cycle = find_cycle({task.id: task.depends_on for task in new.values()})
    if cycle is not None:
        raise DependencyCycle("these tasks wait for each other: " + " -> ".join(map(str, cycle)))
    (namespace,) = {task.namespace for task in new.values()}
    states = await dependencies.mark(connection, sorted(dependency_ids), namespace)
    return DependencyStates(states=states, missing_ids=dependency_ids - states.keys() - new.keys())


def _ending_words(state: str) -> str:
    return "failed" if state == TaskState.FAILED else "was cancelled"
