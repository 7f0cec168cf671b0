"""Tags of new tasks, which say when each comes among those of its lane."""

from collections.abc import AsyncIterator, Iterable, Mapping, Sequence
from contextlib import asynccontextmanager

from sqlalchemy.ext.asyncio import AsyncConnection

from app.db.shared_objects import shared_by
from app.kernel.agents import AgentType
from app.kernel.lanes import Lane, Priority
from app.queue.rules.fair_queueing import TagRun
from app.queue.store import lanes
from app.queue.store.lanes import Flow, TagIssuer
from app.queue.store.new_tasks import NewTask


def by_flow(new: Iterable[NewTask]) -> dict[Flow, list[NewTask]]:
    """The tasks of each flow, in their order."""
    flows: dict[tuple[AgentType, Priority, int, str | None], list[NewTask]] = {}
    for task in new:
        flows.setdefault((task.agent_type, task.priority, task.resource_class or 0, task.goal_id), []).append(task)
    return {
        (Lane(agent_type=agent, priority=priority, resource_class=resource_class), goal): tasks
        for (agent, priority, resource_class, goal), tasks in flows.items()
    }


@asynccontextmanager
async def reserve_tags(connection: AsyncConnection, counts: Mapping[Flow, int]) -> AsyncIterator[Mapping[Flow, TagRun]]:
    """The tags of so many next tasks of each flow, for the body of the `with` statement.

    An error in it gives the tags back: a goal whose submits are refused must not fall behind the others for it.
    """
    tag_issuer = shared_by(connection, TagIssuer)
    stale_flows = tag_issuer.stale_flows(counts)
    if stale_flows:
        tag_issuer.merge_states(await lanes.read_flows(connection, stale_flows))
    tag_runs = {flow: tag_issuer.issue(flow, count) for flow, count in counts.items()}
    try:
        yield tag_runs
    except BaseException:
        tag_issuer.take_back(tag_runs)
        raise


def give_tags(flows: Mapping[Flow, Sequence[NewTask]], tags: Mapping[Flow, TagRun]) -> None:
    """Give the tasks of each flow the tags that were issued to it."""
    for flow, tasks_of_flow in flows.items():
        for place, task in enumerate(tasks_of_flow):
            task.tag = tags[flow][place]
