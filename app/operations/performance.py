"""What agents achieve: taken from the events and from later judgements into what is known of each."""

import hashlib
import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any
from uuid import UUID

from sqlalchemy.ext.asyncio import AsyncConnection

from app.domain import performance as rules
from app.domain.agents import AgentType
from app.domain.errors import IdempotencyMismatch, TaskNotCompleted, TaskNotFound
from app.domain.performance import Result
from app.domain.tasks import TaskState
from app.store import judgements, performance
from app.store.judgements import Judgement, Known

_BITES = 5


@dataclass(frozen=True, slots=True, kw_only=True)
class Said:
    """A judgement as it comes in: of a task, or of an agent as such."""

    quality: float
    task_id: UUID | None = None
    agent_type: AgentType | None = None
    basis: str | None = None


async def fold(connection: AsyncConnection) -> dict[str, Any]:
    """Take in new results, in a few bites, and then what was said of them."""
    counted: Counter[AgentType] = Counter()
    known = {agent: list(results) for agent, results in (await performance.memory(connection)).recent.items()}
    for _ in range(_BITES):
        news = await performance.fold(connection)
        for agent, last in news.last.items():
            known[agent] = rules.remembered(known.get(agent, []), last)
        counted.update(news.counted)
        if not news.more:
            break
    results = counted.total()
    for judgement in await judgements.fold(connection):
        known[judgement.agent_type] = _judged(known.get(judgement.agent_type, []), judgement)
        counted[judgement.agent_type] += 1
    for agent, news_of in counted.items():
        await performance.keep(connection, agent, known[agent], news_of)
    return {"results": results, "judgements": counted.total() - results, "behind": news.more}


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
    if not await judgements.add(connection, request_id, digest, by, items):
        await _is_repeated(connection, request_id, digest)
    return len(said)


async def _is_repeated(connection: AsyncConnection, request_id: UUID, digest: bytes) -> bool:
    known = await judgements.request_hash(connection, request_id)
    if known is not None and known != digest:
        raise IdempotencyMismatch("this request_id was used for other judgements")
    return known is not None


async def _agents(connection: AsyncConnection, ids: Sequence[UUID]) -> dict[UUID, AgentType]:
    found = await judgements.tasks(connection, ids)
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
