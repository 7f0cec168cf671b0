"""Agents as they are shown: what they achieve, how fast they are, and what share they have."""

from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import timedelta

from sqlalchemy.ext.asyncio import AsyncConnection

from app.admin.service.config import CurrentConfig, Effective
from app.agents.rules import performance as rules
from app.agents.rules.performance import Achievement
from app.agents.rules.steering import policy_in
from app.agents.service import weights
from app.agents.store import performance
from app.agents.store import weights as weight_store
from app.agents.store.performance import Span
from app.db.database import Database, now
from app.kernel.agents import AgentType

# Long enough to have some results, short enough to be about now.
_THROUGHPUT = timedelta(minutes=10)


@dataclass(frozen=True, slots=True, kw_only=True)
class Agent:
    """What is known of one agent; without results the achievement is None, without decisions the bottleneck."""

    agent_type: AgentType
    weight: float
    configured_weight: float
    target_weight: float
    achievement: Achievement | None
    quality_gain: float | None
    tasks_per_second: float
    is_bottleneck: bool | None


class AgentReports:
    """Reads agents as they are shown.

    `bottleneck` tells which agent has the most outstanding work for each of its workers: "" for none, None when nobody
    has looked lately.
    """

    def __init__(self, bottleneck: Callable[[AsyncConnection], Awaitable[str | None]]) -> None:
        self._bottleneck = bottleneck

    async def look(self, database: Database, current: CurrentConfig) -> list[Agent]:
        """All agents, in a transaction of their own. Raises DatabaseUnavailable."""
        config = await current.read()
        async with database.transaction() as connection:
            return await self.read(connection, config)

    async def read(self, connection: AsyncConnection, config: Effective) -> list[Agent]:
        """All agents, in the order of the specification."""
        shares, last = await weights.in_force(connection, config), await weight_store.last(connection)
        targets = last.target if last else config.weights
        recent = (await performance.memory(connection)).recent
        achieved = rules.achievements(recent, await now(connection), policy_in(config.mode))
        finished = _finished(await performance.spans(connection, _THROUGHPUT, _THROUGHPUT))
        bottleneck, gains = await self._bottleneck(connection), await performance.gains(connection)
        return [
            Agent(
                agent_type=agent,
                weight=shares.weights[agent],
                configured_weight=config.weights[agent],
                target_weight=targets[agent],
                achievement=achieved.get(agent),
                quality_gain=gains.get(agent),
                tasks_per_second=finished.get(agent, 0) / _THROUGHPUT.total_seconds(),
                is_bottleneck=None if bottleneck is None else agent == bottleneck,
            )
            for agent in AgentType
        ]


async def trend(connection: AsyncConnection, agent: AgentType, step: timedelta, count: int) -> list[Span]:
    """The last spans of one agent, oldest first; those without a result are left out."""
    return await performance.spans(connection, step * count, step, [agent])


def _finished(spans: Sequence[Span]) -> Mapping[AgentType, int]:
    found = dict.fromkeys(AgentType, 0)
    for span in spans:
        found[span.agent_type] += span.results
    return found
