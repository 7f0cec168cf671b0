"""Performance of the agents: results from the events and later ratings, folded into the last results of each agent."""

import hashlib
import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any
from uuid import UUID, uuid5

from sqlalchemy.ext.asyncio import AsyncConnection

from app.agents.rules import performance as rules
from app.agents.rules.performance import RecentResults, Result, quality_gain
from app.agents.store import performance, ratings
from app.agents.store.ratings import Rating, StoredRating
from app.db.folds import MAX_BATCHES
from app.kernel.agents import AgentType
from app.kernel.states import TaskState
from app.queue.errors import IdempotencyMismatch, TaskNotCompleted, TaskNotFound


@dataclass(frozen=True, slots=True, kw_only=True)
class RatingInput:
    """A rating as it comes in: of a task, or of an agent as such."""

    quality: float
    task_id: UUID | None = None
    agent_type: AgentType | None = None
    basis: str | None = None


async def fold(connection: AsyncConnection) -> dict[str, Any]:
    """Fold new results, in a few batches, and then the ratings of folded results."""
    counts: Counter[AgentType] = Counter()
    new_results: dict[AgentType, list[Result]] = {}
    for _ in range(MAX_BATCHES):
        batch = await performance.fold(connection)
        counts.update(batch.counts)
        for agent, results in batch.last_results.items():
            new_results[agent] = rules.append_results(new_results.get(agent, []), results)
        if not batch.has_more:
            break
    # After the results, whose fold moves the mark up to which ratings are taken.
    new_ratings, result_count = await _fold_ratings(connection), counts.total()
    counts.update(rating.agent_type for rating in new_ratings)
    if counts:
        await _store(connection, counts, new_results, new_ratings)
    return {"results": result_count, "judgements": len(new_ratings), "behind": batch.has_more}


async def _fold_ratings(connection: AsyncConnection) -> list[StoredRating]:
    new_ratings: list[StoredRating] = []
    for _ in range(MAX_BATCHES):
        batch = await ratings.fold(connection)
        new_ratings += batch
        if not batch:
            break
    return new_ratings


async def _store(
    connection: AsyncConnection,
    counts: Mapping[AgentType, int],
    new_results: RecentResults,
    new_ratings: Sequence[StoredRating],
) -> None:
    # Without a lock: the duty's turn keeps other folds away between this read and the writes.
    recent = (await performance.read_results(connection)).recent
    appended = {agent: list(new_results.get(agent, [])) for agent in counts}
    qualities = {}
    for rating in new_ratings:
        if rating.task_id is not None:
            qualities[rating.task_id] = rating.quality
        else:
            appended[rating.agent_type].append(Result(at=rating.judged_at, quality=rating.quality, is_judged=True))
    # At once, as there may be thousands: what a rated task was is looked for in hundreds of results.
    for agent, new in appended.items():
        results = rules.apply_ratings(rules.append_results(recent.get(agent, []), new), qualities)
        await performance.write_results(connection, agent, results, counts[agent], quality_gain(results))


async def record_ratings(
    connection: AsyncConnection,
    request_id: UUID,
    by: str,
    inputs: Sequence[RatingInput],
    namespace: str | None = None,
) -> int:
    """Store ratings, all or none; return their number. Raises TaskNotFound, TaskNotCompleted, IdempotencyMismatch.

    With a namespace there are no tasks but its own.
    """
    # Equal ids of two namespaces are two requests.
    request_id = request_id if namespace is None else uuid5(request_id, namespace)
    digest = hashlib.sha256(json.dumps([asdict(item) for item in inputs], default=str).encode()).digest()
    if await _is_repeated(connection, request_id, digest):
        return len(inputs)
    agents = await _task_agents(connection, [item.task_id for item in inputs if item.task_id], namespace)
    new_ratings = [
        Rating(**{**asdict(item), "agent_type": agents[item.task_id] if item.task_id else item.agent_type})
        for item in inputs
    ]
    # A rival with the same id was faster: the same body is its repetition, and another is refused.
    if not await ratings.add(connection, request_id, digest, by, new_ratings):
        await _is_repeated(connection, request_id, digest)
    return len(inputs)


async def _is_repeated(connection: AsyncConnection, request_id: UUID, digest: bytes) -> bool:
    previous_digest = await ratings.request_hash(connection, request_id)
    if previous_digest is not None and previous_digest != digest:
        raise IdempotencyMismatch("this request_id was used for other judgements")
    return previous_digest is not None


async def _task_agents(
    connection: AsyncConnection, ids: Sequence[UUID], namespace: str | None
) -> dict[UUID, AgentType]:
    states = await ratings.read_task_states(connection, ids, namespace)
    for task_id in ids:
        if task_id not in states:
            raise TaskNotFound(f"there is no task {task_id}")
        if states[task_id][1] != TaskState.COMPLETED:
            raise TaskNotCompleted(
                f"task {task_id} is {states[task_id][1]}; only completed ones have a result to judge"
            )
    return {task_id: agent for task_id, (agent, _) in states.items()}
