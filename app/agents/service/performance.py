"""What agents achieve: taken from the events and from later judgements into what is known of each."""

import hashlib
import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any
from uuid import UUID

from sqlalchemy.ext.asyncio import AsyncConnection

from app.agents.rules import performance as rules
from app.agents.rules.performance import Recent, Result, quality_gain
from app.agents.store import performance, ratings
from app.agents.store.ratings import Judgement, Known
from app.kernel.agents import AgentType
from app.kernel.states import TaskState
from app.queue.errors import IdempotencyMismatch, TaskNotCompleted, TaskNotFound

_BATCHES = 5


@dataclass(frozen=True, slots=True, kw_only=True)
class Said:
    """A judgement as it comes in: of a task, or of an agent as such."""

    quality: float
    task_id: UUID | None = None
    agent_type: AgentType | None = None
    basis: str | None = None


async def fold(connection: AsyncConnection) -> dict[str, Any]:
    """Take in new results, in a few batches, and then what was said of them."""
    counted: Counter[AgentType] = Counter()
    fresh: dict[AgentType, list[Result]] = {}
    for _ in range(_BATCHES):
        news = await performance.fold(connection)
        counted.update(news.counted)
        for agent, last in news.last.items():
            fresh[agent] = rules.remembered(fresh.get(agent, []), last)
        if not news.more:
            break
    said, results = await ratings.fold(connection), counted.total()
    counted.update(judgement.agent_type for judgement in said)
    if counted:
        await _remember(connection, counted, fresh, said)
    return {"results": results, "judgements": len(said), "behind": news.more}


async def _remember(
    connection: AsyncConnection, counted: Mapping[AgentType, int], fresh: Recent, said: Sequence[Known]
) -> None:
    recent = (await performance.memory(connection)).recent
    known = {agent: rules.remembered(recent.get(agent, []), fresh.get(agent, [])) for agent in counted}
    for judgement in said:
        known[judgement.agent_type] = _judged(known[judgement.agent_type], judgement)
    for agent, results in known.items():
        await performance.keep(connection, agent, results, counted[agent], quality_gain(results))


async def judge(connection: AsyncConnection, request_id: UUID, by: str, said: Sequence[Said]) -> int:
    """Keep what is said of tasks or agents, all of it or nothing; returns how much. Safe to repeat.

    Raises TaskNotFound, TaskNotCompleted, IdempotencyMismatch.
    """
    digest = hashlib.sha256(json.dumps([asdict(item) for item in said], default=str).encode()).digest()
    if await _is_repeated(connection, request_id, digest):
        return len(said)
    agents = await _agents(connection, [item.task_id for item in said if item.task_id])
    items = [
        Judgement(
            agent_type=agents[item.task_id] if item.task_id else _named(item),
            quality=item.quality,
            task_id=item.task_id,
            basis=item.basis,
        )
        for item in said
    ]
    if not await ratings.add(connection, request_id, digest, by, items):
        await _is_repeated(connection, request_id, digest)
    return len(said)


async def _is_repeated(connection: AsyncConnection, request_id: UUID, digest: bytes) -> bool:
    known = await ratings.request_hash(connection, request_id)
    if known is not None and known != digest:
        raise IdempotencyMismatch("this request_id was used for other judgements")
    return known is not None


async def _agents(connection: AsyncConnection, ids: Sequence[UUID]) -> dict[UUID, AgentType]:
    found = await ratings.tasks(connection, ids)
    for task_id in ids:
        if task_id not in found:
            raise TaskNotFound(f"there is no task {task_id}")
        if found[task_id][1] != TaskState.COMPLETED:
            raise TaskNotCompleted(f"task {task_id} is {found[task_id][1]}; only completed ones have a result to judge")
    return {task_id: agent for task_id, (agent, _) in found.items()}


def _named(item: Said) -> AgentType:
    assert item.agent_type is not None, "a judgement is of a task or of an agent"
    return item.agent_type


def _judged(known: list[Result], judgement: Known) -> list[Result]:
    if judgement.task_id is not None:
        return rules.judged(known, judgement.task_id, judgement.quality)
    return rules.remembered(known, [Result(at=judgement.judged_at, quality=judgement.quality)])
