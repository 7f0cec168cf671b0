"""Snapshots of the queue, and pausing and resuming agent types."""

from collections import Counter, defaultdict
from collections.abc import Collection, Iterable, Mapping, Sequence
from datetime import datetime

from sqlalchemy.ext.asyncio import AsyncConnection

from app.admin.service import audit
from app.db import duties, notify
from app.db.database import now
from app.db.hot_path import HotConnection
from app.kernel.agents import AgentType
from app.kernel.lanes import Lane, Priority
from app.kernel.text import NO_REASON
from app.queue.rules.status import DEAD_LETTER_SPAN, EVENTS_BY_OUTCOME, RECENT, Pause, QueueSnapshot
from app.queue.service import counters
from app.queue.store import agent_types, open_writers, throughput, waits
from app.queue.store import counters as counter_store
from app.queue.store.counters import TaskCount
from app.queue.store.waits import OldestTask

_DUTIES = (counters.FOLD_EVENTS, counters.FIND_OLDEST, counters.CHECK_COUNTERS)


async def read_snapshot(connection: AsyncConnection) -> QueueSnapshot:
    """Read a snapshot from counters, minutes and turns of duties, so that the cost does not grow with the queue."""
    turns = await duties.last_turns(connection, _DUTIES)
    counts = [count for own in (await counter_store.read_by_namespace(connection)).values() for count in own]
    fold_turn, check_turn = turns.get(counters.FOLD_EVENTS), turns.get(counters.CHECK_COUNTERS)
    return QueueSnapshot(
        at=await now(connection),
        tasks=_by_lane(counts),
        submitted=counter_store.queue_depths(counts),
        recent=await throughput.recent_minutes(connection, RECENT),
        # By the last turn of its duty: looking here would walk over dead index entries at every request.
        oldest=counters.oldest_by_priority(turns.get(counters.FIND_OLDEST)),
        pauses=await agent_types.read_pauses(connection),
        served_agents=await agent_types.served_agents(connection),
        dead_letters=await throughput.count_events(connection, EVENTS_BY_OUTCOME["failed"], DEAD_LETTER_SPAN),
        count_age=fold_turn.ago if fold_turn else None,
        count_error=int(check_turn.result.get("off_by", 0)) if check_turn else 0,
        open_writers=await open_writers.read(connection),
    )


async def read_depths(connection: HotConnection) -> tuple[Mapping[Lane, Mapping[str, int]], frozenset[AgentType]]:
    """Read the live tasks of each lane by phase, and the paused agent types, by one statement; exact as a snapshot."""
    counts, paused = await counter_store.depths(connection)
    return _by_lane(counts), paused


async def oldest_of_types(connection: AsyncConnection) -> dict[AgentType, OldestTask]:
    """Since when the oldest ready task of each agent type waits; reads a bounded number of tasks."""
    return await waits.oldest_of_types(connection, await counters.oldest_since(connection))


async def depth_history(
    connection: AsyncConnection, starts: Sequence[datetime], depths: Mapping[AgentType, int]
) -> dict[str, list[float]]:
    """Tasks that waited at the end of each of these minutes, oldest first, counted back from the present depths."""
    growth = await throughput.growth(connection, starts[0])
    history: dict[str, list[float]] = {}
    for agent in AgentType:
        depth = float(depths[agent])
        of_agent: list[float] = []
        for start in reversed(starts):
            of_agent.append(max(0.0, depth))
            depth -= growth.get(agent, {}).get(start, 0)
        history[agent] = of_agent[::-1]
    return history


async def pause(connection: AsyncConnection, agents: Collection[AgentType], reason: str, by: str) -> list[Pause]:
    """Lease no more tasks of these types; running tasks go on. Return all pauses."""
    old_pauses = await agent_types.lock_pauses(connection)
    await agent_types.pause(connection, agents, reason or NO_REASON, by)
    pauses = await agent_types.read_pauses(connection)
    _record(connection, "queues.pause", by, reason, old_pauses, pauses)
    return pauses


async def resume(connection: AsyncConnection, agents: Collection[AgentType], reason: str, by: str) -> list[Pause]:
    """Lease tasks of these types again. Return the remaining pauses."""
    old_pauses = await agent_types.lock_pauses(connection)
    await agent_types.resume(connection, agents)
    # Every lane, also one where nothing seems to wait: a task submitted just now was announced during the pause, when
    # brokers could not lease it.
    lanes = (Lane(agent_type=agent, priority=priority) for agent in agents for priority in Priority)
    notify.note_work(connection, dict.fromkeys(lanes, 0.0))
    pauses = await agent_types.read_pauses(connection)
    _record(connection, "queues.resume", by, reason, old_pauses, pauses)
    return pauses


def _record(
    connection: AsyncConnection, action: str, by: str, reason: str, old: Iterable[Pause], new: Iterable[Pause]
) -> None:
    old_types, new_types = ([pause.agent_type.value for pause in pauses] for pauses in (old, new))
    if old_types != new_types:
        notify.note(connection, notify.STATUS)
        states = {"old_state": {"paused": old_types}, "new_state": {"paused": new_types}}
        audit.record(connection, action, by=by, **states, reason=reason)


def _by_lane(counts: Iterable[TaskCount]) -> Mapping[Lane, Mapping[str, int]]:
    tasks: dict[Lane, Counter[str]] = defaultdict(Counter)
    for count in counts:
        tasks[count.lane][count.phase] += count.tasks
    return tasks
