"""While no loops run the API watches for alerts in their place: often enough, and it delivers what it tells."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress

import pytest

from app.db.database import Database
from app.health.rules import alerts as rules
from app.health.rules.alerts import AlertPolicy, Hysteresis
from app.health.rules.finding import AlertRule, Severity
from app.health.rules.snapshot import WATCH
from app.health.service import stand_in as service
from app.queue.rules.admission import CapacityPolicy
from tests.health.service.test_alerts import all_alerts
from tests.health.service.test_webhooks import Recorder
from tests.support.sql import execute, until, value
from tests.support.watching import observe


@pytest.fixture(autouse=True)
def haste(monkeypatch: pytest.MonkeyPatch) -> None:
    """As if a second were 20 ms, for the stand-in and the alert that it opens."""
    for name in ("_EVERY_SECONDS", "_LOOK_SECONDS", "_PATIENCE_SECONDS"):
        monkeypatch.setattr(service, name, getattr(service, name) / 50)
    opens_after = AlertPolicy().of(AlertRule.DUTY_LATE).opens_after / 50
    monkeypatch.setitem(rules._HYSTERESIS, AlertRule.DUTY_LATE, Hysteresis(opens_after=opens_after))


@asynccontextmanager
async def standing_in(database: Database, sender: Recorder | None = None) -> AsyncIterator[None]:
    task = asyncio.create_task(service.stand_in(database, CapacityPolicy, sender))
    try:
        yield
    finally:
        task.cancel()
        with suppress(asyncio.CancelledError):
            await task


async def turns(database: Database) -> int:
    return int(await value(database, "SELECT coalesce(sum(runs), 0) FROM loop_ticks WHERE duty = $1", WATCH))


async def run_sweep(database: Database) -> None:
    await execute(
        database,
        "INSERT INTO loop_ticks (duty, last_run_at) VALUES ('sweep leases', now())"
        " ON CONFLICT (duty) DO UPDATE SET last_run_at = now()",
    )


async def test_it_waits_while_loops_run(database: Database) -> None:
    await observe(database)
    await run_sweep(database)
    before = await turns(database)
    async with standing_in(database):
        for _ in range(8):
            await execute(database, "UPDATE loop_ticks SET last_run_at = now()")
            await asyncio.sleep(0.2)
    assert await turns(database) == before
    assert await all_alerts(database) == []


async def test_it_tells_that_no_loop_runs_and_the_message_is_delivered(database: Database) -> None:
    await observe(database)
    await run_sweep(database)
    await execute(database, "UPDATE loop_ticks SET last_run_at = now() - interval '1 minute'")
    sender = Recorder(failures=1)

    async def delivered() -> bool:
        return len(sender.messages) >= 1

    async with standing_in(database, sender):
        await until(delivered)
    (alert,) = await all_alerts(database)
    assert (alert.rule, alert.severity) == (AlertRule.DUTY_LATE, Severity.CRITICAL)
    assert "no background duty has run" in alert.summary
    assert sender.kinds == ["alert.opened"]


async def test_it_tells_that_no_loop_ever_ran(database: Database) -> None:
    async def opened() -> bool:
        return bool(await all_alerts(database))

    async with standing_in(database):
        await until(opened)
    (alert,) = await all_alerts(database)
    assert (alert.rule, alert.severity) == (AlertRule.DUTY_LATE, Severity.CRITICAL)
    assert "no background duty has ever run" in alert.summary


async def test_it_looks_so_often_that_alerts_which_must_last_can_open(
    database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Once it stands in, it needs no new patience for each turn."""
    assert AlertPolicy().blind_after > 1.3 * service._LOOK_SECONDS * 50
    await observe(database)
    await execute(database, "UPDATE loop_ticks SET last_run_at = now() - interval '1 minute'")
    before = await turns(database)

    async def has_begun() -> bool:
        return await turns(database) > before

    async def has_gone_on() -> bool:
        return await turns(database) >= before + 3

    async with standing_in(database):
        await until(has_begun)
        monkeypatch.setattr(service, "_PATIENCE_SECONDS", 1000.0)
        await until(has_gone_on)
