"""What may be leased from now on must be announced where it came about, or workers that wait there hear of it late."""

from collections.abc import Mapping
from uuid import UUID

from app.db import notify
from app.db.notify import News
from app.kernel.lanes import Lane
from tests.properties.model import Model

# A task, how many events it has, and the lane in which it waits.
Wait = tuple[UUID, int, Lane]


def waits(model: Model) -> set[Wait]:
    """All that may be leased now."""
    return {
        (task.id, len(task.events), Lane(agent_type=task.agent, priority=task.priority))
        for task in model.tasks.values()
        if task.is_ready and task.agent not in model.paused
    }


def unannounced(new: set[Wait], told: News, tags: Mapping[str, float]) -> str:
    """What is wrong about the announcements of what may be leased since a moment ago; empty when nothing is."""
    lines = []
    for task_id, _, lane in sorted(new):
        lowest = told.get(notify.work(lane))
        if lowest is None or lowest > tags[str(task_id)]:
            lines.append(f"the task {task_id} may be leased at {tags[str(task_id)]}, and {lowest} was announced")
    return "\n".join(lines)
