"""Looking at the queue, and pausing and resuming agent types."""

from collections import defaultdict
from collections.abc import Collection, Iterable, Mapping

from sqlalchemy.ext.asyncio import AsyncConnection

from app.domain.agents import AgentType
from app.domain.lanes import Lane
from app.domain.queues import DEAD_LETTER_SPAN, MOVES, RECENT, Pause, QueueSnapshot
from app.domain.tasks import Priority
from app.operations import counting
from app.store import announcements, counts, minutes, pauses, status
from app.store.counts import Count
from app.store.database import now

_DUTIES = (counting.FOLD_EVENTS, counting.FIND_OLDEST, counting.CHECK_COUNTERS)


async def look(connection: AsyncConnection) -> QueueSnapshot:
    """How the queue stands. Costs the same however many tasks there are: counters, minutes and the turns of duties."""
    turns = await status.turns(connection, _DUTIES)
    folded, checked = turns.get(counting.FOLD_EVENTS), turns.get(counting.CHECK_COUNTERS)
    return QueueSnapshot(
        at=await now(connection),
        tasks=_by_lane(await counts.read(connection)),
        recent=await minutes.recent(connection, RECENT),
        oldest=counting.oldest(turns.get(counting.FIND_OLDEST)),
        pauses=await pauses.read(connection),
        served=await status.served(connection),
        dead_letters=await minutes.total(connection, MOVES["failed"], DEAD_LETTER_SPAN),
        counted_ago=folded.ago if folded else None,
        miscounted=int(checked.result.get("off_by", 0)) if checked else 0,
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
    announcements.note_work(connection, dict.fromkeys(lanes, 0.0))
    return await pauses.read(connection)


def _by_lane(found: Iterable[Count]) -> Mapping[Lane, Mapping[str, int]]:
    tasks: dict[Lane, dict[str, int]] = defaultdict(dict)
    for count in found:
        tasks[count.lane][count.phase] = count.tasks
    return tasks
