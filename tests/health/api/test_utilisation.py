"""Utilisation over time: steps without gaps, and nothing where nobody has measured."""

from typing import Any

import pytest

from app.db.database import Database
from app.health.rules.utilisation import Measure, host_subject, single_sample
from app.health.store import utilisation
from tests.support.problems import is_problem
from tests.support.service import Service
from tests.support.sql import execute

_OLD = """
INSERT INTO utilisation (minute, subject, measure, samples, total, low, high, last, last_at)
SELECT timestamptz '2026-01-01T00:00Z' + n * interval '1 min', subject, measure, 2, 2 * n, n - 1, n + 1, n,
       timestamptz '2026-01-01T00:00Z' + n * interval '1 min' + interval '55 s'
FROM generate_series(0, 119) AS n, (VALUES ('host:lab', 'cpu'), ('pool', 'busy')) AS known (subject, measure)
WHERE n NOT BETWEEN 60 AND 69
"""
_TWO_HOURS: dict[str, Any] = {"since": "2026-01-01T00:00:00Z", "until": "2026-01-01T02:00:00Z"}


async def test_steps_are_of_the_same_length_and_have_no_gaps(service: Service, database: Database) -> None:
    await execute(database, _OLD)
    answer = await service.get("/metrics/utilisation", step=600, **_TWO_HOURS)
    assert answer["step_seconds"] == 600
    assert set(answer["subjects"]) == {"host:lab", "pool"}
    steps = answer["subjects"]["host:lab"]
    assert [step["at"][11:16] for step in steps[:3]] == ["00:00", "00:10", "00:20"]
    assert len(steps) == 12
    assert steps[0]["cpu_percentage"] == {"min": -1.0, "mean": 4.5, "max": 10.0}
    assert steps[6]["cpu_percentage"] is None
    assert {step["memory_percentage"] for step in steps} == {None}
    assert answer["subjects"]["pool"][1]["busy_percentage"]["mean"] == 14.5


async def test_the_last_hour_by_the_minute_is_what_is_shown(service: Service, database: Database) -> None:
    async with database.transaction() as connection:
        await utilisation.add_samples(
            connection, [single_sample(host_subject("lab"), Measure.CPU, 12.5)], apart_seconds=0
        )
    answer = await service.get("/metrics/utilisation")
    steps = answer["subjects"]["host:lab"]
    assert len(steps) in (60, 61)
    assert [step["cpu_percentage"]["mean"] for step in steps if step["cpu_percentage"]] == [12.5]


async def test_one_subject_alone(service: Service, database: Database) -> None:
    await execute(database, _OLD)
    answer = await service.get("/metrics/utilisation", subject="pool", **_TWO_HOURS)
    assert {name: len(steps) for name, steps in answer["subjects"].items()} == {"pool": 120}
    assert (await service.get("/metrics/utilisation", subject="nobody", **_TWO_HOURS))["subjects"] == {}


@pytest.mark.parametrize("step", [0, 59, 61, 90_000])
async def test_a_step_is_of_whole_minutes(service: Service, step: int) -> None:
    answer = await service.ask("GET", "/metrics/utilisation", params={"step": step})
    is_problem(answer, 422, "invalid_request", "step")


async def test_too_many_steps_are_refused_with_one_that_would_do(service: Service) -> None:
    asked = {"since": "2025-01-01T00:00:00Z", "until": "2026-01-01T00:00:00Z"}
    answer = await service.ask("GET", "/metrics/utilisation", params=asked)
    problem = is_problem(answer, 422, "invalid_request", "step")
    assert "21,060 s" in problem["detail"]
    assert (await service.get("/metrics/utilisation", step=21_060, **asked))["subjects"] == {}


async def test_a_time_that_ends_before_it_begins_is_empty(service: Service) -> None:
    asked = {"since": "2026-01-02T00:00:00Z", "until": "2026-01-01T00:00:00Z"}
    assert (await service.get("/metrics/utilisation", **asked))["subjects"] == {}


async def test_the_status_tells_the_health(service: Service) -> None:
    status = await service.get("/status")
    assert status["overall_health"] == "critical"
    assert any("has ever run" in reason for reason in status["health_reasons"])


async def test_runtime_metrics_show_the_last_samples(service: Service, database: Database) -> None:
    async with database.transaction() as connection:
        await utilisation.add_samples(
            connection, [single_sample(host_subject("lab"), Measure.CPU, 12.5)], apart_seconds=0
        )
    used = (await service.get("/metrics/runtime"))["utilisation"]
    assert used == {"host:lab": {"cpu_percentage": 12.5, "memory_percentage": None, "busy_percentage": None}}
    report = await service.get("/health/report")
    assert report["resource_utilization"]["cpu_percentage"] == 12.5
    assert "cpu_percentage" not in " ".join(reason["message"] for reason in report["reasons"])
