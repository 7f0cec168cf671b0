"""Looking at the queue, and pausing and resuming agent types."""

from collections import defaultdict
from collections.abc import Collection, Iterable, Mapping

from sqlalchemy.ext.asyncio import AsyncConnection

from app.db import duties, notify
from app.db.database import now
from app.kernel.agents import AgentType
from app.kernel.lanes import Lane, Priority
from app.queue.rules.status import DEAD_LETTER_SPAN, EVENTS_BY_OUTCOME, RECENT, Pause, QueueSnapshot
from app.queue.service import counters
from app.queue.store import counters as counter_store
from app.queue.store import pauses, status, throughput
from app.queue.store.counters import Count

_DUTIES = (counters.FOLD_EVENTS, counters.FIND_OLDEST, counters.CHECK_COUNTERS)


async def look(connection: AsyncConnection) -> QueueSnapshot:
    """How the queue stands. Costs the same however many tasks there are: counters, minutes and the turns of duties."""
    turns = await duties.turns(connection, _DUTIES)
    folded, checked = turns.get(counters.FOLD_EVENTS), turns.get(counters.CHECK_COUNTERS)
    return QueueSnapshot(
        at=await now(connection),
        tasks=_by_lane(await counter_store.read(connection)),
        recent=await throughput.recent(connection, RECENT),
        oldest=counters.oldest(turns.get(counters.FIND_OLDEST)),
        pauses=await pauses.read(connection),
        served_agents=await status.served(connection),
        dead_letters=await throughput.total(connection, EVENTS_BY_OUTCOME["failed"], DEAD_LETTER_SPAN),
        count_age=folded.ago if folded else None,
        count_error=int(checked.result.get("off_by", 0)) if checked else 0,
    )


async def pause(connection: AsyncConnection, agents: Collection[AgentType], reason: str, by: str) -> list[Pause]:
    """Lease no more tasks of these types; those that run go on. Returns all pauses."""
    await pauses.pause(connection, agents, reason, by)
    return await pauses.read(connection)


async def resume(connection: AsyncConnection, agents: Collection[AgentType]) -> list[Pause]:
    """Lease tasks of these types again. Returns the pauses that are left.

    Announces every lane of theirs, also those where nothing seems to wait: what is being submitted just now has been
    announced while the pause was still on.
    """
    await pauses.resume(connection, agents)
    lanes = (Lane(agent_type=agent, priority=priority) for agent in agents for priority in Priority)
    notify.note_work(connection, dict.fromkeys(lanes, 0.0))
    return await pauses.read(connection)


def _by_lane(found: Iterable[Count]) -> Mapping[Lane, Mapping[str, int]]:
    tasks: dict[Lane, dict[str, int]] = defaultdict(dict)
    for count in found:
        tasks[count.lane][count.phase] = count.tasks
    return tasks
