"""Sums of calls by minute, and the number of workers that permits suffice for."""

from datetime import UTC, datetime, timedelta

import pytest
from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncConnection

from app.admin.rules.config import LimitsConfig
from app.kernel.agents import AgentType
from app.llm.rules.outcomes import Outcome
from app.llm.store import usage
from app.llm.store.usage import FinishedCall
from app.workers.rules.hosts import WorkerLimit
from app.workers.service import limits

_HOUR = timedelta(hours=1)


def call(
    model: str = "m", *, held: float = 2.0, latency: float | None = 1.0, key_id: str | None = None
) -> FinishedCall:
    return FinishedCall(
        model=model,
        agent_type=AgentType.RANKING,
        goal_id=None,
        key_id=key_id,
        paying_key=key_id or "launched",
        outcome=Outcome.SUCCESS,
        prompt_tokens=10,
        completion_tokens=5,
        cost_usd=0.25,  # of such numbers each sum is exact, in whatever order rows are added
        held_seconds=held,
        latency_seconds=latency,
    )


async def count(connection: AsyncConnection, *calls: FinishedCall) -> None:
    await usage.add(connection, calls, datetime.now(UTC))


async def model(connection: AsyncConnection, name: str, concurrency: float, most: int | None = None) -> None:
    statement = "INSERT INTO llm_models (model, concurrency, max_concurrency) VALUES (:name, :concurrency, :most)"
    await connection.execute(text(statement), {"name": name, "concurrency": concurrency, "most": most})


async def finished(connection: AsyncConnection, tasks: int, seconds: float) -> None:
    statement = """
        INSERT INTO queue_minutes (minute, agent_type, priority, kind, tasks, seconds, longest, histogram)
        VALUES (date_trunc('minute', now()), 'ranking', 2, 'task.completed', :tasks, :seconds, 1, '{}')
    """
    await connection.execute(text(statement), {"tasks": tasks, "seconds": seconds})


async def test_calls_of_one_minute_add_up(connection: AsyncConnection) -> None:
    await count(connection, call(latency=0.5), call(latency=1.5))
    await count(connection, call(latency=None), call("n", latency=4.0))
    sums = {one.name: one for one in await usage.sums(connection, "model", datetime.now(UTC) - _HOUR, 10)}
    assert (sums["m"].outcomes, sums["m"].prompt_tokens) == ({Outcome.SUCCESS: 3}, 30)
    assert (sums["m"].latency.count, sums["m"].latency.mean, sums["m"].latency.longest) == (2, 1.0, 1.5)
    assert sum(sums["m"].latency.histogram) == 2
    recent = await usage.recent(connection, _HOUR)
    assert recent.mean_latency_ms == pytest.approx(2000)
    assert (recent.in_use, recent.limit) == (0, 20)


async def test_a_row_with_a_short_histogram_hides_no_other(connection: AsyncConnection) -> None:
    await count(connection, call("odd"), call(latency=1.5))
    await connection.execute(text("UPDATE llm_minutes SET histogram = '{1}' WHERE model = 'odd'"))
    sums = {one.name: one for one in await usage.sums(connection, "model", datetime.now(UTC) - _HOUR, 10)}
    assert {name: sum(one.latency.histogram) for name, one in sums.items()} == {"odd": 1, "m": 1}


async def test_hours_that_are_over_for_long_are_folded_and_count_as_before(connection: AsyncConnection) -> None:
    this_hour = datetime.now(UTC).replace(minute=0, second=0, microsecond=0)
    for hours in (1, 2, 3, 4, 5):
        for minute in (0, 7, 59):
            at = this_hour - hours * _HOUR + timedelta(minutes=minute)
            await usage.add(connection, [call(latency=hours * 1.0), call("n", latency=None)], at)
    await connection.execute(text("UPDATE llm_minutes SET histogram = '{1}' WHERE model = 'n'"))

    async def rows_and_sums() -> tuple[int, list[usage.UsageSum]]:
        rows: int = (await connection.execute(text("SELECT count(*) FROM llm_minutes"))).scalar_one()
        return rows, await usage.sums(connection, "model", this_hour - 5 * _HOUR, 10)

    _, before = await rows_and_sums()
    assert [await usage.fold(connection, limit=5) for _ in range(4)] == [5, 5, 2, 0]
    assert await rows_and_sums() == (2 * (2 * 3 + 3), before)
    await usage.add(connection, [call(), call("late")], this_hour - 4 * _HOUR + timedelta(minutes=7))
    assert (await usage.fold(connection), await usage.fold(connection)) == (2, 0)
    after = {one.name: one.outcomes[Outcome.SUCCESS] for one in (await rows_and_sums())[1]}
    assert after == {"m": 16, "n": 15, "late": 1}


async def test_nothing_is_known_of_a_system_that_calls_nobody(connection: AsyncConnection) -> None:
    assert await usage.recent(connection, _HOUR) == (None, 0, 20)
    assert await usage.call_capacity(connection, _HOUR) == (20, None)
    assert await usage.sums(connection, "goal", datetime.now(UTC) - _HOUR, 10) == []


async def test_permits_suffice_for_as_many_workers_as_hold_them_in_turn(connection: AsyncConnection) -> None:
    await model(connection, "m", 6.9)
    await count(connection, *[call(held=2.0) for _ in range(20)], call(held=500.0, key_id="somebody"))
    await finished(connection, 20, 80.0)
    burden = await usage.call_capacity(connection, _HOUR)
    assert burden.limit == 6
    assert burden.held_share == pytest.approx(0.5)
    assert await limits.read_limits(connection, [], 0, LimitsConfig()) == [
        WorkerLimit(resource="LLM permits", workers=15)
    ]


async def test_few_tasks_do_not_limit_the_pool(connection: AsyncConnection) -> None:
    await model(connection, "m", 4)
    await count(connection, call(held=60.0))
    await finished(connection, 9, 60.0)
    assert await limits.read_limits(connection, [], 0, LimitsConfig()) == []


async def test_tasks_that_call_no_model_do_not_limit_the_pool(connection: AsyncConnection) -> None:
    await finished(connection, 100, 60.0)
    assert await limits.read_limits(connection, [], 0, LimitsConfig()) == []


async def test_all_models_together_bear_no_more_than_the_configuration_allows(connection: AsyncConnection) -> None:
    await model(connection, "m", 15)
    await model(connection, "n", 90, 3)
    await model(connection, "unused", 90)
    await count(connection, call("m"), call("n"))
    assert (await usage.call_capacity(connection, _HOUR)).limit == 18
    await connection.execute(text("UPDATE llm_models SET max_concurrency = NULL"))
    assert (await usage.call_capacity(connection, _HOUR)).limit == 20
