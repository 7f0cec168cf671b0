"""Giving new tasks their places: a tag each, by which goals share a lane."""

from collections import defaultdict
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import replace

from sqlalchemy.ext.asyncio import AsyncConnection

from app.domain.agents import AgentType
from app.domain.lanes import Lane
from app.domain.tasks import Priority
from app.store import lanes
from app.store.lanes import Place
from app.store.tasks import NewTask


@asynccontextmanager
async def lining_up(connection: AsyncConnection, new: Sequence[NewTask]) -> AsyncIterator[list[NewTask]]:
    """The tasks with their tags, in the given order; what is raised inside gives the tags back."""
    memory = lanes.memory_of(connection)
    groups: dict[Place, list[int]] = defaultdict(list)
    for index, task in enumerate(new):
        groups[_place(task)].append(index)
    unsure = memory.unsure(groups)
    if unsure:
        memory.learn(await lanes.stand(connection, unsure))
    reserved = {place: memory.reserve(place, len(indices)) for place, indices in groups.items()}
    tagged = list(new)
    for place, indices in groups.items():
        for turn, index in enumerate(indices):
            tagged[index] = replace(new[index], tag=reserved[place][turn])
    try:
        yield tagged
    except BaseException:
        for place, tags in reserved.items():
            memory.give_back(place, tags)
        raise


def _place(task: NewTask) -> Place:
    return Lane(agent_type=AgentType(task.agent_type), priority=Priority(task.priority)), task.goal_id
