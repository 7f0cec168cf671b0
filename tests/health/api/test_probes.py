"""Alive without a database, ready only with one, and numbers for whoever watches."""

import asyncio
from collections import Counter
from typing import Any

import pytest
from sqlalchemy import event

from app.db.connections import SELECT_SERVER, RunningServer
from app.db.database import Database
from app.kernel.access import Role
from app.server import begin_shutdown
from tests.support.ports import free_port
from tests.support.service import Service, serving
from tests.support.sql import execute
from tests.support.turns import counted


async def test_alive_and_ready(service: Service) -> None:
    assert await service.get("/livez") == {"status": "alive"}
    assert await service.get("/readyz") == {"status": "ready"}


async def test_without_a_database_it_lives_but_is_not_ready() -> None:
    async with (
        serving(f"postgresql://nobody@127.0.0.1:{free_port()}/nothing", metrics_open=True) as service,
        asyncio.timeout(30),
    ):
        assert (await service.ask("GET", "/livez", key=None)).json() == {"status": "alive"}
        for path in ("/readyz", "/tasks", "/events"):
            answer = await service.ask("GET", path, key="cvn_a_b")
            assert (answer.status_code, answer.json()["code"]) == (503, "database_unavailable"), path
            assert answer.headers["content-type"] == "application/problem+json"
            assert int(answer.headers["retry-after"]) >= 1
        metrics = await service.ask("GET", "/metrics", key=None)
        assert metrics.status_code == 200
        assert "convener_database_up 0.0" in metrics.text


async def test_a_database_that_takes_no_writes_is_not_ready(own_database: Database) -> None:
    """As a standby is: a load balancer sent calls to an API that had to refuse each of them."""
    name = own_database.url.rpartition("/")[2]
    async with serving(own_database.url) as service:
        assert (await service.ask("GET", "/readyz", key=None)).status_code == 200
        await execute(own_database, f"ALTER DATABASE {name} SET default_transaction_read_only = on")
        await service.app.state.services.database.engine.dispose()
        answer = await service.ask("GET", "/readyz", key=None)
        assert (answer.status_code, answer.json()["code"]) == (503, "database_unavailable")
        assert "takes no writes" in answer.json()["detail"]


async def test_a_former_primary_is_not_ready(own_database: Database) -> None:
    """As where a pooler still leads there: what it took was lost for those who went on with its successor."""
    connection = await own_database.connect()
    row = await connection.fetchrow(SELECT_SERVER)
    await connection.close()
    assert row is not None
    async with serving(own_database.url) as service:
        connections = service.app.state.services.database._connections
        for later, status in ((0, 200), (1, 503)):
            connections.primary = RunningServer(**{**row, "timeline": row["timeline"] + later})
            answer = await service.ask("GET", "/readyz", key=None)
            assert answer.status_code == status
        assert "was promoted in its place" in answer.json()["detail"]


async def test_a_connection_that_breaks_while_the_schema_is_looked_up_is_no_error_of_ours(service: Service) -> None:
    """It was answered 500 with two traces in the log, as one of several checks was that hit the start of an outage."""

    def cut(connection: Any, _: object, statement: str, *rest: object) -> None:
        if "alembic_version" in statement:
            connection.connection.driver_connection.terminate()

    engine = service.app.state.services.database.engine.sync_engine
    event.listen(engine, "before_cursor_execute", cut)
    answer = await service.ask("GET", "/readyz", key=None)
    assert (answer.status_code, answer.json()["code"]) == (503, "database_unavailable")
    event.remove(engine, "before_cursor_execute", cut)
    assert (await service.ask("GET", "/readyz", key=None)).status_code == 200


async def test_another_schema_is_not_ready(own_database: Database) -> None:
    async with serving(own_database.url) as service:
        assert (await service.ask("GET", "/readyz", key=None)).status_code == 200
        await execute(own_database, "DELETE FROM served_revisions")
        for revision, remedy in (("2026_12_02_closed_holds", "convener db migrate"), ("elsewhere", "start that one")):
            await execute(own_database, "UPDATE alembic_version SET version_num = $1", revision)
            answer = await service.ask("GET", "/readyz", key=None)
            assert answer.status_code == 503
            assert revision in answer.json()["detail"]
            assert remedy in answer.json()["detail"]


async def test_a_newer_schema_is_ready_as_long_as_it_serves_this_version(own_database: Database) -> None:
    async with serving(own_database.url) as service:
        await execute(own_database, "UPDATE alembic_version SET version_num = 'next_year'")
        assert (await service.ask("GET", "/readyz", key=None)).status_code == 200
        await execute(own_database, "DELETE FROM served_revisions")
        answer = await service.ask("GET", "/readyz", key=None)
        assert (answer.status_code, "next_year" in answer.json()["detail"]) == (503, True)


async def test_while_it_stops_it_is_alive_but_takes_nothing(service: Service) -> None:
    worker = await service.worker()
    await begin_shutdown(service.app.state.services)
    assert (await service.ask("GET", "/livez", key=None)).status_code == 200
    answers = [
        await service.ask("GET", "/readyz", key=None),
        await service.ask("GET", "/tasks"),
        await service.ask("POST", "/tasks", {"agent_type": "ranking"}),
        await worker.ask("/lease", {"request_id": "00000000-0000-0000-0000-000000000001"}),
        await worker.ask(f"/workers/{worker.id}/heartbeat", {"state": "ready"}),
    ]
    for answer in answers:
        assert (answer.status_code, answer.json()["code"]) == (503, "shutting_down")
        assert answer.headers["retry-after"]


async def test_the_status_counts(service: Service, database: Database) -> None:
    for _ in range(3):
        await service.submitted(agent_type="ranking")
    busy = await service.worker()
    await service.worker(ready=False)
    await busy.on_lease(await busy.lease(), "complete", result={})
    await busy.lease()
    assert "never run" in (await service.get("/status"))["warnings"][0]
    await counted(database)
    status = await service.get("/status")
    assert status["tasks"] == {"ranking": {"pending": 1, "executing": 1}}
    assert status["workers"] == {"busy": 1, "starting": 1}
    assert status["finished_last_minute"] == {"completed": 1}
    assert status["tasks_per_second"] == pytest.approx(1 / 60, abs=0.01)
    assert status["waiting_leases"] == 0
    assert status["warnings"] == []


async def test_the_status_counts_every_live_task_by_its_state(service: Service) -> None:
    await service.post("/goals", {"id": "held", "objective": "x"})
    await service.post("/goals/held/pause", {"reason": "a look"})
    await service.submitted(agent_type="ranking", goal_id="held")
    await service.submitted(agent_type="ranking", depends_on=[await service.submitted(agent_type="ranking")])
    shown = [task["state"] for task in (await service.get("/tasks"))["items"]]
    assert (await service.get("/status"))["tasks"] == {"ranking": dict(Counter(shown))}


async def test_the_status_says_when_nobody_serves_a_type(service: Service, database: Database) -> None:
    await service.submitted(agent_type="ranking")
    await service.submitted(agent_type="proximity", run_at="2100-01-01T00:00:00Z")
    await counted(database)
    status = await service.get("/status")
    assert status["tasks"] == {"ranking": {"pending": 1}, "proximity": {"pending": 1}}
    assert status["warnings"] == ["nobody serves ranking: 1 task of it waits, and no live worker can run it"]
    await service.worker()
    assert (await service.get("/status"))["warnings"] == []


async def test_prometheus_reads_gauges_of_ours(service: Service, database: Database) -> None:
    worker = await service.worker()
    await service.submitted(agent_type="evolution", priority="high")
    await worker.lease()
    await service.worker()
    await service.submitted(agent_type="ranking")
    await service.post("/queues/proximity/pause")
    await counted(database)
    assert (await service.ask("GET", "/tasks", key=Role.READER)).status_code == 200
    answer = await service.ask("GET", "/metrics", key=Role.MONITOR)
    assert answer.headers["content-type"].startswith("text/plain")
    for line in (
        'convener_tasks{agent="ranking",phase="pending",priority="medium"} 1.0',
        'convener_tasks{agent="evolution",phase="executing",priority="high"} 1.0',
        'convener_queue_limit{priority="all"} 10000.0',
        'convener_queue_limit{priority="low"} 5000.0',
        'convener_lease_wait_seconds{priority="high",quantile="0.99"} ',
        'convener_oldest_wait_seconds{priority="medium"} ',
        'convener_tasks_per_second{what="submitted"} 0.0',
        'convener_paused{agent="proximity"} 1.0',
        "convener_dead_letters_last_hour 0.0",
        "convener_miscounted_tasks 0.0",
        'convener_workers{state="ready"} 1.0',
        "convener_waiting_leases 0.0",
        'convener_queue_depth{agent="ranking"} 1.0',
        "convener_queue_depth_total 1.0",
        'convener_workers{state="busy"} 1.0',
        "convener_workers_live 2.0",
        "convener_workers_minimum 10.0",
        "convener_workers_target NaN",
        "convener_health_state 1.0",
        'convener_health_findings{code="pool_below_minimum",level="degraded"} 1.0',
        'convener_duty_age_seconds{duty="fold events"} ',
        'convener_database_dead_rows{table="tasks"} ',
        "convener_database_up 1.0",
        "http_requests_total{",
    ):
        assert line in answer.text, line


async def test_gauges_forget_what_is_over(service: Service) -> None:
    task_id = await service.submitted(agent_type="ranking")
    assert "convener_tasks{" in (await service.ask("GET", "/metrics", key=Role.MONITOR)).text
    await service.post(f"/tasks/{task_id}/cancel")
    assert "convener_tasks{" not in (await service.ask("GET", "/metrics", key=Role.MONITOR)).text


async def test_every_gauge_is_described(service: Service) -> None:
    answer = await service.ask("GET", "/metrics", key=Role.MONITOR)
    described = {line.split()[2]: line.split(maxsplit=3)[3:] for line in answer.text.splitlines() if "# HELP" in line}
    ours = {name: meaning for name, meaning in described.items() if name.startswith("convener_")}
    assert len(ours) > 25
    assert all(meaning and len(meaning[0]) > 8 for meaning in ours.values()), ours


async def test_no_label_stands_for_a_task_a_goal_or_a_worker(service: Service) -> None:
    task_id = await service.submitted(agent_type="ranking", goal_id="a-goal-of-its-own")
    worker = await service.worker("a-worker-of-its-own")
    await worker.lease()
    text = (await service.ask("GET", "/metrics", key=Role.MONITOR)).text
    for name in (task_id, worker.id, "a-goal-of-its-own", "a-worker-of-its-own"):
        assert name not in text
