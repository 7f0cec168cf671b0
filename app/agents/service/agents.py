"""Reports on the agents: weight, performance, speed and trend."""

from collections import Counter
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from datetime import timedelta

from sqlalchemy.ext.asyncio import AsyncConnection

from app.admin.service.config import CurrentConfig, Effective
from app.agents.rules import performance as rules
from app.agents.rules.performance import PerformanceSummary
from app.agents.rules.steering import policy_in
from app.agents.service import weights
from app.agents.store import performance
from app.agents.store import weights as weight_store
from app.db.database import Database, now
from app.kernel.agents import AgentType

# Long enough to have some results, short enough to be about now.
_THROUGHPUT_SPAN = timedelta(minutes=10)


@dataclass(frozen=True, slots=True, kw_only=True)
class AgentReport:
    """Report on one agent; `summary` is None without results, `is_bottleneck` without a recent decision on the pool."""

    agent_type: AgentType
    weight: float
    configured_weight: float
    target_weight: float
    summary: PerformanceSummary | None
    quality_gain: float | None
    tasks_per_second: float
    is_bottleneck: bool | None


class AgentReports:
    """Reports on all agents; `bottleneck` returns the one with most work per worker, "" for none, None if unknown."""

    def __init__(self, bottleneck: Callable[[AsyncConnection], Awaitable[str | None]]) -> None:
        self._bottleneck = bottleneck

    async def read_in_transaction(self, database: Database, current: CurrentConfig) -> list[AgentReport]:
        """Report on all agents, in a transaction of its own. Raises DatabaseUnavailable."""
        config = await current.read()
        async with database.transaction() as connection:
            return await self.read(connection, config)

    async def read(self, connection: AsyncConnection, config: Effective) -> list[AgentReport]:
        """Report on all agents, in the order of the specification."""
        in_force, last = await weights.in_force(connection, config), await weight_store.last(connection)
        targets = last.target if last else config.weights
        recent = (await performance.read_results(connection)).recent
        summaries = rules.summarize(recent, await now(connection), policy_in(config.mode))
        result_counts: Counter[AgentType] = Counter()
        for span in await performance.spans(connection, _THROUGHPUT_SPAN, _THROUGHPUT_SPAN):
            result_counts[span.agent_type] += span.results
        bottleneck, gains = await self._bottleneck(connection), await performance.quality_gains(connection)
        return [
            AgentReport(
                agent_type=agent,
                weight=in_force.weights[agent],
                configured_weight=config.weights[agent],
                target_weight=targets[agent],
                summary=summaries.get(agent),
                quality_gain=gains.get(agent),
                tasks_per_second=result_counts[agent] / _THROUGHPUT_SPAN.total_seconds(),
                is_bottleneck=None if bottleneck is None else agent == bottleneck,
            )
            for agent in AgentType
        ]
