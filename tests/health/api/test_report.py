"""The health report and the runtime metrics in the shapes of the specification."""

import asyncio
import time
from typing import Any

from sqlalchemy import text

from app.db.database import Database
from app.health.service.snapshot_cache import CachePolicy, SnapshotCache
from app.kernel.access import Role
from app.kernel.agents import AgentType
from tests.support.ports import free_port
from tests.support.problems import is_problem
from tests.support.service import Service, serving
from tests.support.sql import execute
from tests.support.turns import counted

_SHAPE: dict[str, dict[str, type]] = {
    "worker_pool_health": {"total_workers": int, "healthy_workers": int, "utilization_percentage": float},
    "queue_health": {"total_pending_tasks": int, "oldest_task_age_seconds": int},
    "resource_utilization": {"cpu_percentage": float, "memory_percentage": float, "llm_api_usage_percentage": float},
}
_RUNTIME: dict[str, dict[str, type]] = {
    "queue_depth": {f"{agent}_tasks": int for agent in AgentType},
    "worker_status": dict.fromkeys(("active_workers", "idle_workers", "failed_workers"), int),
    "performance_metrics": dict.fromkeys(
        ("avg_task_completion_time_ms", "tasks_per_second", "llm_call_latency_ms"), float
    ),
}


def _has_shape(answer: dict[str, Any], shape: dict[str, dict[str, type]]) -> None:
    for name, fields in shape.items():
        for field, kind in fields.items():
            assert type(answer[name][field]) is kind, f"{name}.{field}"


def _codes(report: dict[str, Any]) -> set[str]:
    return {reason["code"] for reason in report["reasons"] if reason["level"] != "note"}


async def test_the_report_has_the_shape_of_the_specification(service: Service, database: Database) -> None:
    for _ in range(3):
        await service.submitted(agent_type="ranking")
    busy = await service.worker()
    await service.worker()
    await busy.lease()
    await counted(database)
    answer = await service.ask("GET", "/health/report", key=Role.MONITOR)
    assert answer.status_code == 200
    report = answer.json()
    _has_shape(report, _SHAPE)
    assert set(report) == {"timestamp", "overall_health", "reasons", *_SHAPE}
    assert report["worker_pool_health"] == {
        "total_workers": 2,
        "healthy_workers": 2,
        "utilization_percentage": 50.0,
    }
    assert report["queue_health"]["total_pending_tasks"] == 2
    assert report["queue_health"]["bottleneck_agent"] == "ranking_agent"
    # The mode of this database is production, which wants ten.
    assert (report["overall_health"], _codes(report)) == ("degraded", {"pool_below_minimum"})


async def test_callers_without_a_key_for_it_see_no_figures(service: Service, database: Database) -> None:
    await service.worker()
    await counted(database)
    confined = (await service.post("/keys", {"role": "reader", "label": "lab", "namespace": "lab"}))["key"]
    for key in (None, Role.POOL, confined):
        answer = await service.ask("GET", "/health/report", key=key)
        assert answer.status_code == 200
        report = answer.json()
        assert (report["overall_health"], _codes(report)) == ("degraded", {"pool_below_minimum"})
        assert {report[section] for section in _SHAPE} == {None}
        assert {reason["message"] for reason in report["reasons"]} == {None}
        assert set(report) == {"timestamp", "overall_health", "reasons", *_SHAPE}
    is_problem(await service.ask("GET", "/health/report", key="cvn_000000000000_guess"), 401, "unauthenticated")


async def test_an_empty_queue(service: Service) -> None:
    health = (await service.get("/health/report"))["queue_health"]
    assert health == {"total_pending_tasks": 0, "oldest_task_age_seconds": 0, "bottleneck_agent": None}


async def test_it_answers_in_time_while_a_table_is_locked(service: Service, database: Database) -> None:
    await service.worker()
    await service.get("/health/report")
    service.app.state.services[SnapshotCache].policy = CachePolicy(fresh_seconds=0)
    async with database.engine.connect() as other:
        await other.execute(text("LOCK TABLE tasks IN ACCESS EXCLUSIVE MODE"))
        began = time.monotonic()
        answer = await service.ask("GET", "/health/report", key=Role.MONITOR)
        took = time.monotonic() - began
        runtime = await service.ask("GET", "/metrics/runtime")
        metrics = await service.ask("GET", "/metrics", key=Role.MONITOR)
        await other.rollback()
    assert answer.status_code == 503
    assert answer.headers["retry-after"] == "1"
    assert took < 5
    report = answer.json()
    _has_shape(report, _SHAPE)
    assert (report["overall_health"], _codes(report)) == ("critical", {"database_slow"})
    assert report["worker_pool_health"]["total_workers"] == 1
    is_problem(runtime, 503, "database_unavailable")
    assert "convener_database_up 0.0" in metrics.text
    assert "convener_workers_live NaN" in metrics.text
    assert (await service.get("/health/report"))["overall_health"] != "healthy"


async def test_without_a_database_the_report_says_so() -> None:
    async with serving(f"postgresql://nobody@127.0.0.1:{free_port()}/nothing") as service, asyncio.timeout(30):
        for key in (None, "cvn_000000000000_unchecked"):
            answer = await service.ask("GET", "/health/report", key=key)
            assert answer.status_code == 503
            report = answer.json()
            assert (report["overall_health"], _codes(report)) == ("critical", {"database_away"})
            assert "not_measured" in {reason["code"] for reason in report["reasons"]}
            assert {report[section] for section in _SHAPE} == {None}, "a key that cannot be checked shows nothing"


async def test_the_runtime_metrics_have_the_shape_of_the_specification(service: Service, database: Database) -> None:
    await service.submitted(agent_type="evolution")
    for _ in range(2):
        await service.submitted(agent_type="ranking")
    busy = await service.worker()
    await service.worker()
    lost = await service.worker()
    await execute(database, "UPDATE workers SET state = 'lost', ended_at = now() WHERE id = $1", lost.id)
    await busy.on_lease(await busy.lease(), "complete", result={})
    await busy.lease()
    await counted(database)
    runtime = await service.get("/metrics/runtime")
    _has_shape(runtime, _RUNTIME)
    depth = runtime["queue_depth"]
    assert sum(depth.values()) == 1
    assert runtime["worker_status"] == {"active_workers": 1, "idle_workers": 1, "failed_workers": 1}
    performance = runtime["performance_metrics"]
    assert performance["avg_task_completion_time_ms"] > 0
    assert performance["tasks_per_second"] > 0
    assert performance["llm_call_latency_ms"] == 0
    assert [reason["message"].split(" ")[0] for reason in runtime["reasons"]] == ["llm_call_latency_ms"]
    assert sum(runtime["arrivals_per_second"].values()) > 0
    assert sum(times["tasks"] for times in runtime["service_times"].values()) == 1
    assert runtime["utilisation"] == {}
    assert (runtime["target_workers"], runtime["starting_workers"]) == (None, 0)


async def test_only_readers_see_the_runtime_metrics(service: Service) -> None:
    assert (await service.ask("GET", "/metrics/runtime", key=Role.READER)).status_code == 200
    assert (await service.ask("GET", "/metrics/runtime", key=Role.POOL)).status_code == 403


async def test_a_worker_that_does_not_say_what_it_uses_is_not_shown_as_zero(service: Service) -> None:
    worker = await service.worker()
    shown = await service.get(f"/workers/{worker.id}")
    assert (shown["cpu_percent"], shown["memory_mb"]) == (None, None)
    await worker.beat(cpu_percent=0, memory_mb=12.5)
    shown = await service.get(f"/workers/{worker.id}")
    assert (shown["cpu_percent"], shown["memory_mb"]) == (0.0, 12.5)
