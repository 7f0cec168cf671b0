"""Gauges and findings of everything that goes wrong."""

from app.db.database import Database
from tests.support.service import Service
from tests.support.sql import execute
from tests.support.watching import neglect_task, observe


async def test_everything_that_goes_wrong_has_a_gauge(service: Service, database: Database) -> None:
    await neglect_task(database, 12)
    await observe(database)
    await service.ask("PUT", "/degradation", {"step": 2, "reason": "test"})
    await execute(
        database,
        "INSERT INTO llm_models (model, concurrency, open_until) VALUES ('large', 1, now() + interval '1 min')",
    )
    worker = await service.worker()
    lease = await worker.lease()
    await execute(database, "UPDATE tasks SET deadline_at = now() - interval '1 min'")
    text = (await service.ask("GET", "/metrics")).text
    for line in (
        'convener_alerts{rule="oldest_task",severity="warning",subject=""} 1.0',
        "convener_degradation_step 2.0",
        'convener_llm_breaker_open{model="large"} 1.0',
        f'convener_tasks_overdue{{agent="{lease["agent_type"]}"}} 1.0',
        'convener_tasks_overdue{agent="ranking"} 0.0',
        "convener_workers_starving 0.0",
        "convener_pool_capacity_lost 0.0",
        "convener_database_oldest_snapshot_transactions ",
    ):
        assert line in text, line


async def test_the_health_report_gives_degradation_and_reduced_capacity_as_reasons(
    service: Service, database: Database
) -> None:
    await service.ask("PUT", "/degradation", {"step": 1, "reason": "test"})
    for number in range(3):
        await execute(
            database,
            "INSERT INTO workers (id, name, incarnation, state, provisioner, slot, host, capabilities, labels,"
            " requested_at, ended_at)"
            " VALUES (gen_random_uuid(), 'here-1', $1, 'failed', 'local', 1, 'here', '{}', '{}',"
            " now() - interval '20 s', now() - interval '10 s')",
            number,
        )
    report = await service.get("/health/report")
    assert report["overall_health"] != "healthy"
    codes = [reason["code"] for reason in report["reasons"]]
    assert {"resources_short", "reduced_capacity"} <= set(codes)
    reduced = (await service.get("/degradation"))["reduced_capacity"]
    assert reduced["is_reduced"]
    assert reduced["reason"] == "workers of 1 place in the pool keep dying young: 3 in the last 5 min"
    await observe(database)
    (alert,) = (await service.get("/alerts", rule="replacement_failing"))["items"]
    assert (alert["severity"], alert["summary"]) == ("critical", reduced["reason"])
    await execute(
        database,
        "INSERT INTO workers (id, name, incarnation, state, provisioner, slot, host, capabilities, labels,"
        " requested_at, first_beat_at) VALUES (gen_random_uuid(), 'here-1', 9, 'ready', 'local', 1, 'here', '{}', '{}',"
        " now() - interval '2 min', now() - interval '2 min')",
    )
    assert not (await service.get("/degradation"))["reduced_capacity"]["is_reduced"]
    await observe(database)
    assert (await service.get("/alerts", rule="replacement_failing"))["items"] == []
