"""Agents that achieve something, and the turns of the duties that follow them."""

from collections.abc import Mapping
from typing import Any

from app.admin.rules.config import ConfigAction, as_json, from_json
from app.admin.service import config
from app.agents.rules import performance as rules
from app.agents.rules.weights import Evidence, WeightPolicy, add_result, effectiveness
from app.agents.service import performance, weights
from app.agents.service.weights import WeightsInForce
from app.db.database import Database
from app.kernel.agents import AgentType
from app.kernel.modes import Mode
from tests.support.sql import execute

POLICY = WeightPolicy()
REFLECTION = AgentType.REFLECTION
_ADD_RESULTS = """
INSERT INTO events (kind, task_id, agent_type, seconds, quality)
SELECT 'task.completed', gen_random_uuid(), $1, $2, $3 FROM generate_series(1, $4::integer)
"""


async def configure_example_2(database: Database) -> None:
    """The preset, but for weights as in the specification's example 2."""
    async with database.transaction() as connection:
        await config.current(connection, Mode.PRODUCTION)
    shares = dict.fromkeys((f"{agent}_agent" for agent in AgentType), 0.17) | {"reflection_agent": 0.15}
    await configure(database, shares)


async def configure(database: Database, shares: Mapping[str, float]) -> None:
    async with database.transaction() as connection:
        version = await config.current(connection, Mode.PRODUCTION)
        document = from_json({**as_json(version.document), "agent_weights": dict(shares)})
        order = config.ChangeRequest(expected_version=version.version, by="test")
        await config.change(connection, Mode.PRODUCTION, order, ConfigAction.SET, document)


async def add_results(
    database: Database, agent: AgentType, quality: float | None, count: int, seconds: float = 1.0
) -> None:
    await execute(database, _ADD_RESULTS, agent.value, seconds, quality, count)


async def fold(database: Database) -> None:
    async with database.transaction() as connection:
        await performance.fold(connection)


async def tick(database: Database) -> dict[str, Any]:
    async with database.transaction() as connection:
        return await weights.tick(connection)


async def in_force(database: Database) -> WeightsInForce:
    async with database.transaction() as connection:
        current_config = config.effective(await config.current(connection, Mode.PRODUCTION))
        return await weights.in_force(connection, current_config)


async def let_minute_pass(database: Database) -> None:
    """The last step was a minute ago."""
    await _change_last_version(database, "stepped_at = stepped_at - interval '60 s'")


async def end_override(database: Database) -> None:
    """The time of the override is over."""
    await _change_last_version(database, "expires_at = now() - interval '1 ms'")


async def _change_last_version(database: Database, change: str) -> None:
    async with (await database.pool()).acquire() as connection, connection.transaction():
        await connection.execute("SET LOCAL session_replication_role = replica")
        await connection.execute(f"UPDATE weights SET {change} WHERE version = (SELECT max(version) FROM weights)")


def quality_for(target: float, count: int) -> float:
    """The quality of each of so many results at which their effectiveness is just this."""
    low, high = 0.0, 1.0
    for _ in range(60):
        middle, evidence = (low + high) / 2, Evidence()
        for _ in range(count):
            evidence = add_result(evidence, middle, 0.0, POLICY)
        value = effectiveness(evidence, 0.0, POLICY)
        assert value is not None
        low, high = (middle, high) if value < target else (low, middle)
    return high


async def add_example_2_results(database: Database) -> None:
    """The reflection agent's effectiveness is 0.95 and it is three times as fast as the others, which are at 0.5."""
    for agent in AgentType:
        target, seconds = (0.95, 1.0) if agent is REFLECTION else (0.5, 3.0)
        await add_results(database, agent, quality_for(target, rules.MAX_RESULTS), rules.MAX_RESULTS, seconds)
    await fold(database)
