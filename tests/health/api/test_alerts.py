"""Reading and acknowledging alerts."""

from typing import Any
from uuid import UUID

import pytest

from app.db.database import Database
from app.health.rules.finding import AlertKey, AlertRule, Level, Severity, Symptom
from app.health.rules.webhooks import WebhookPolicy
from app.health.store import alerts, webhooks
from app.kernel.access import Role
from app.kernel.events import AlertKind
from tests.support.problems import is_problem
from tests.support.service import Service
from tests.support.sql import execute
from tests.support.watching import empty_queue, neglect_task, observe


async def opened(database: Database, rule: AlertRule, severity: Severity, subject: str = "") -> int:
    symptom = Symptom(
        code=rule.value,
        key=AlertKey(rule=rule, subject=subject),
        level=Level.CRITICAL if severity is Severity.CRITICAL else Level.DEGRADED,
        message="something is wrong",
        advice="mend it",
        facts={"share": 0.9},
    )
    async with database.transaction() as connection:
        alert = await alerts.open_alert(connection, symptom)
    assert alert is not None
    return alert.id


async def test_from_opening_to_the_end(service: Service, database: Database) -> None:
    assert await service.get("/alerts") == {"items": [], "next": None, "looked_at": None}
    await neglect_task(database, 12)
    await observe(database)
    page = await service.get("/alerts", rule="oldest_task")
    assert page["looked_at"]
    (alert,) = page["items"]
    assert (alert["rule"], alert["subject"], alert["state"], alert["severity"]) == (
        "oldest_task",
        "",
        "open",
        "warning",
    )
    assert alert["summary"] == "a task of priority medium has been waiting for 12 min"
    assert alert["advice"]
    assert alert["facts"]["threshold_seconds"] == 600
    assert alert["acknowledged_by"] is alert["resolved_at"] is None
    answer = await service.ask("POST", f"/alerts/{alert['id']}/acknowledge", {"note": "on it"}, key=Role.OPERATOR)
    assert (answer.status_code, answer.json()["state"], answer.json()["note"]) == (200, "acknowledged", "on it")
    assert answer.json()["acknowledged_by"] == service.keys[Role.OPERATOR].split("_")[1]
    assert (await service.post(f"/alerts/{alert['id']}/acknowledge"))["note"] == "on it"
    (entry,) = (await service.get("/audit", action="alert.acknowledge"))["items"]
    assert (entry["before"]["state"], entry["after"]["state"], entry["reason"]) == ("open", "acknowledged", "on it")
    assert (await service.post("/audit/verify", {}))["ok"]
    await empty_queue(database)
    await observe(database)
    assert (await service.get("/alerts", rule="oldest_task"))["items"] == []
    (alert,) = (await service.get("/alerts", state="resolved"))["items"]
    assert (alert["state"], alert["resolution"]) == ("resolved", "not seen for 0 s")
    events = (await service.get("/events", kind=["alert.opened", "alert.resolved"]))["items"]
    of_this = [event["kind"] for event in events if event["detail"]["alert"] == alert["id"]]
    assert of_this == ["alert.opened", "alert.resolved"]
    assert await service.get(f"/alerts/{alert['id']}") == alert | {"deliveries": []}


async def test_filters_and_pages(service: Service, database: Database) -> None:
    ids = [
        await opened(database, AlertRule.RESOURCE_PRESSURE, Severity.WARNING, "cpu"),
        await opened(database, AlertRule.RESOURCE_PRESSURE, Severity.CRITICAL, "memory"),
        await opened(database, AlertRule.BREAKER_OPEN, Severity.WARNING, "large"),
    ]
    await service.post(f"/alerts/{ids[0]}/acknowledge")

    async def alert_ids(**query: Any) -> list[int]:
        return [alert["id"] for alert in (await service.get("/alerts", **query))["items"]]

    assert await alert_ids() == ids[::-1]
    assert await alert_ids(rule="resource_pressure") == [ids[1], ids[0]]
    assert await alert_ids(severity="critical") == [ids[1]]
    assert await alert_ids(state="acknowledged") == [ids[0]]
    assert await alert_ids(state=["open", "resolved"]) == [ids[2], ids[1]]
    first = await service.get("/alerts", limit=2)
    second = await service.get("/alerts", limit=2, after=first["next"])
    assert ([a["id"] for a in first["items"] + second["items"]], second["next"]) == (ids[::-1], None)


async def test_polling_is_cheap_with_a_long_history(service: Service, database: Database) -> None:
    """Those that stand are found through an index of their own, whatever was resolved before."""
    await execute(
        database,
        "INSERT INTO alerts (rule, subject, state, severity, summary, advice, facts, opened_at, updated_at,"
        " resolved_at) SELECT 'breaker_open', n::text, 'resolved', 'warning', '', '', '{}', now(), now(), now()"
        " FROM generate_series(1, 5000) AS n",
    )
    number = await opened(database, AlertRule.QUEUE_GROWTH, Severity.WARNING)
    assert [alert["id"] for alert in (await service.get("/alerts"))["items"]] == [number]
    plan = await database.connect()
    try:
        lines = await plan.fetch(
            "EXPLAIN SELECT id FROM alerts WHERE state IN ('acknowledged', 'open') ORDER BY id DESC LIMIT 100"
        )
    finally:
        await plan.close()
    assert any("alerts_standing" in line[0] for line in lines), lines


@pytest.mark.parametrize(
    "query", [{"state": "sad"}, {"rule": "sad"}, {"severity": "sad"}, {"after": 0}, {"limit": 0}, {"limit": 501}]
)
async def test_a_filter_that_makes_no_sense(service: Service, query: dict[str, Any]) -> None:
    (name,) = query
    field = "state.0" if name == "state" else name
    is_problem(await service.ask("GET", "/alerts", params=query), 422, "invalid_request", field)


async def test_what_is_not_there_or_over(service: Service, database: Database) -> None:
    is_problem(await service.ask("GET", "/alerts/7"), 404, "alert_not_found")
    is_problem(await service.ask("POST", "/alerts/7/acknowledge", {}), 404, "alert_not_found")
    is_problem(await service.ask("GET", f"/alerts/{2**63}"), 422, "invalid_request", "alert_id")
    number = await opened(database, AlertRule.QUEUE_GROWTH, Severity.WARNING)
    await execute(database, "UPDATE alerts SET state = 'resolved', resolved_at = now()")
    is_problem(await service.ask("POST", f"/alerts/{number}/acknowledge", {}), 409, "alert_resolved")


async def test_an_acknowledgement_that_cannot_be_read_changes_nothing(service: Service, database: Database) -> None:
    number = await opened(database, AlertRule.QUEUE_GROWTH, Severity.WARNING)
    for body, field in (({"note": 3}, "note"), ({"note": "x" * 2001}, "note"), ({"remark": "x"}, "remark")):
        is_problem(await service.ask("POST", f"/alerts/{number}/acknowledge", body), 422, "invalid_request", field)
    assert (await service.get(f"/alerts/{number}"))["state"] == "open"


async def test_what_has_become_of_the_webhook_is_shown(service: Service, database: Database) -> None:
    number = await opened(database, AlertRule.QUEUE_GROWTH, Severity.WARNING)
    assert (await service.get(f"/alerts/{number}"))["deliveries"] == []
    async with database.transaction() as connection:
        await webhooks.add_delivery(connection, UUID(int=1), alert_id=number, kind=AlertKind.OPENED, body="{}")
        (claimed,) = await webhooks.claim(connection, WebhookPolicy())
        await webhooks.postpone(connection, claimed, None, "hooks.example.org answered 500")
    (delivery,) = (await service.get(f"/alerts/{number}"))["deliveries"]
    assert (delivery["kind"], delivery["attempts"], delivery["due_at"]) == ("alert.opened", 1, None)
    assert delivery["given_up_at"]
    assert delivery["last_error"] == "hooks.example.org answered 500"


async def test_the_status_counts_those_that_are_not_resolved(service: Service, database: Database) -> None:
    assert (await service.get("/status"))["alerts"] == {}
    await opened(database, AlertRule.RESOURCE_PRESSURE, Severity.WARNING, "cpu")
    await opened(database, AlertRule.RESOURCE_PRESSURE, Severity.WARNING, "memory")
    await opened(database, AlertRule.BREAKER_OPEN, Severity.CRITICAL, "large")
    assert (await service.get("/status"))["alerts"] == {"warning": 2, "critical": 1}
