"""Alerts open once, get worse, are acknowledged by one person, and are resolved, whoever observes at the same time."""

import asyncio
from typing import Any

import pytest

from app.db.database import Database
from app.health.errors import AlertNotFound, AlertResolved
from app.health.rules.alerts import AlertPolicy, AlertResolution, AlertState
from app.health.rules.finding import AlertKey, AlertRule, Level, Severity, Symptom
from app.health.service import alerts
from app.health.store import alerts as store
from app.health.store.alerts import Alert, AlertFilter
from tests.support.sql import execute, until_blocked, value
from tests.support.watching import empty_queue, neglect_task, observe

SYMPTOM = Symptom(
    code="oldest_task",
    key=AlertKey(rule=AlertRule.OLDEST_TASK),
    level=Level.DEGRADED,
    message="it waits",
    advice="look",
    facts={},
)


async def all_alerts(database: Database) -> list[Alert]:
    """All alerts, newest first."""
    async with database.transaction() as connection:
        page = await store.page(connection, AlertFilter(states=list(AlertState)), below_id=2**62, limit=100)
        return list(page.items)


async def open_one(database: Database) -> Alert:
    async with database.transaction() as connection:
        alert = await store.open_alert(connection, SYMPTOM)
    assert alert is not None
    return alert


async def acknowledge(database: Database, alert_id: int, by: str = "me", note: str = "seen") -> Alert:
    async with database.transaction() as connection:
        return await alerts.acknowledge(connection, alert_id, by=by, note=note)


async def test_a_neglected_task_opens_one_alert_until_it_is_served(database: Database) -> None:
    assert (await observe(database))["opened"] == 0
    await neglect_task(database, 11)
    assert (await observe(database))["opened"] == 1
    assert (await observe(database))["opened"] == 0
    (alert,) = await all_alerts(database)
    assert (alert.rule, alert.state, alert.severity) == (AlertRule.OLDEST_TASK, AlertState.OPEN, Severity.WARNING)
    assert alert.summary == "a task of priority medium has been waiting for 11 min"
    await empty_queue(database)
    await observe(database)
    (alert,) = await all_alerts(database)
    assert alert.state is AlertState.RESOLVED
    assert alert.resolved_at is not None
    await neglect_task(database, 11)
    await observe(database)
    assert [alert.state for alert in await all_alerts(database)] == [AlertState.OPEN, AlertState.RESOLVED]


async def test_what_gets_worse_is_open_again(database: Database) -> None:
    await neglect_task(database, 11)
    await observe(database)
    (alert,) = await all_alerts(database)
    await acknowledge(database, alert.id)
    await observe(database)
    assert [alert.state for alert in await all_alerts(database)] == [AlertState.ACKNOWLEDGED]
    await neglect_task(database, 40)
    await observe(database)
    (alert,) = await all_alerts(database)
    assert (alert.state, alert.severity, alert.acknowledged_by) == (AlertState.OPEN, Severity.CRITICAL, None)


async def test_the_duty_remembers_from_turn_to_turn(database: Database) -> None:
    """With its real hysteresis: nothing that must last opens at the first turn, and the depths add up."""
    policy = AlertPolicy()
    first = await observe(database, policy, max_queue_size=1)
    await neglect_task(database, 1)
    second = await observe(database, policy, max_queue_size=1)
    assert [len(result["depths"]) for result in (first, second)] == [1, 2]
    (pending,) = second["spells"]
    assert (pending["rule"], pending["subject"]) == ("resource_pressure", "queue")
    third = await observe(database, policy, max_queue_size=1)
    assert third["spells"][0]["since"] == pending["since"]
    assert await all_alerts(database) == []


async def test_how_long_tasks_take_is_remembered(database: Database) -> None:
    await execute(
        database,
        "INSERT INTO queue_minutes (minute, agent_type, priority, kind, tasks, seconds, longest, histogram)"
        " VALUES (date_trunc('minute', now()), 'ranking', 2, 'task.completed', 1, 1200, 1200, '{}')",
    )
    await observe(database)
    await execute(database, "DELETE FROM queue_minutes")
    assert [(await observe(database))["longest"]["ranking"]["seconds"] for _ in range(2)] == [1200, 1200]


async def test_two_replicas_that_look_at_once_open_one_alert(database: Database, replica: Database) -> None:
    async with database.transaction() as first:
        assert await store.open_alert(first, SYMPTOM) is not None

        async def second() -> Alert | None:
            async with replica.transaction() as connection:
                return await store.open_alert(connection, SYMPTOM)

        rival = asyncio.create_task(second())
        await until_blocked(database)
    assert await rival is None
    assert len(await all_alerts(database)) == 1


async def test_the_turn_is_given_to_one_replica(database: Database, replica: Database) -> None:
    await neglect_task(database, 11)
    outcomes = await asyncio.gather(*(observe(db) for db in (database, replica, database)), return_exceptions=True)
    assert sum(outcome["opened"] for outcome in outcomes if isinstance(outcome, dict)) == 1
    assert len(await all_alerts(database)) == 1


async def test_who_acknowledges_first_is_kept_and_audited_once(database: Database) -> None:
    alert = await open_one(database)
    assert (await acknowledge(database, alert.id, "ann", "the provider knows")).acknowledged_by == "ann"
    again = await acknowledge(database, alert.id, "bob", "me too")
    assert (again.acknowledged_by, again.note) == ("ann", "the provider knows")
    assert await value(database, "SELECT count(*) FROM audit WHERE action = 'alert.acknowledge'") == 1
    assert await value(database, "SELECT reason FROM audit") == "the provider knows"


async def test_of_two_who_acknowledge_at_once_one_is_kept(database: Database, replica: Database) -> None:
    alert = await open_one(database)
    async with database.transaction() as first:
        await alerts.acknowledge(first, alert.id, by="ann", note="")
        rival = asyncio.create_task(acknowledge(replica, alert.id, "bob"))
        await until_blocked(database)
    assert (await rival).acknowledged_by == "ann"
    assert await value(database, "SELECT count(*) FROM audit") == 1


async def test_acknowledging_while_it_is_resolved(database: Database, replica: Database) -> None:
    alert = await open_one(database)
    async with database.transaction() as first:
        await store.resolve(first, AlertResolution(alert_id=alert.id, reason="gone"))
        rival = asyncio.create_task(acknowledge(replica, alert.id))
        await until_blocked(database)
    with pytest.raises(AlertResolved):
        await rival
    assert await value(database, "SELECT count(*) FROM audit") == 0


async def test_acknowledging_again_when_it_is_over_is_still_answered(database: Database) -> None:
    alert = await open_one(database)
    await acknowledge(database, alert.id)
    async with database.transaction() as connection:
        await store.resolve(connection, AlertResolution(alert_id=alert.id, reason="gone"))
    assert (await acknowledge(database, alert.id)).state is AlertState.RESOLVED
    with pytest.raises(AlertNotFound):
        await acknowledge(database, alert.id + 1)


async def test_the_old_are_forgotten_and_those_that_stand_are_not(database: Database) -> None:
    over = await open_one(database)
    async with database.transaction() as connection:
        await store.resolve(connection, AlertResolution(alert_id=over.id, reason="gone"))
    unresolved = await open_one(database)
    await execute(database, "UPDATE alerts SET opened_at = now() - interval '99 d', updated_at = opened_at")
    await execute(database, "UPDATE alerts SET resolved_at = now() - interval '99 d' WHERE resolved_at IS NOT NULL")
    async with database.transaction() as connection:
        assert await store.prune(connection, 30) == 1
    assert [alert.id for alert in await all_alerts(database)] == [unresolved.id]


async def test_a_crash_in_the_turn_leaves_nothing_behind(database: Database) -> None:
    await neglect_task(database, 11)

    async def dies() -> Any:
        async with database.transaction() as connection:
            await store.open_alert(connection, SYMPTOM)
            raise RuntimeError

    with pytest.raises(RuntimeError):
        await dies()
    assert await all_alerts(database) == []
    assert (await observe(database))["opened"] == 1
