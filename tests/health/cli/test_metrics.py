"""`convener metrics` against the real service."""

from typing import Any
from uuid import uuid4

import httpx

from app.db.database import Database
from app.health.cli.metrics import _by_minute, _series_table, _thin_out
from app.health.rules.utilisation import Measure, host_subject, single_sample
from app.health.store import utilisation
from app.kernel.access import Role
from app.kernel.agents import AgentType
from tests.support.command_line import CommandLine, Service


async def _push(live_service: Service, name: str, *values: float, **labels: str) -> None:
    samples = [{"name": name, "kind": "gauge", "value": value} | labels for value in values]
    key = {"Authorization": f"Bearer {live_service.keys[Role.SUPERVISOR]}"}
    async with httpx.AsyncClient(base_url=live_service.url, trust_env=False) as http:
        body = {"batch_id": str(uuid4()), "samples": samples}
        assert (await http.post("/metrics/samples", json=body, headers=key)).status_code == 201


async def test_what_is_measured_now(convener: CommandLine) -> None:
    result = await convener("metrics", "runtime")
    assert (result.code, result.err) == (0, "")
    for agent in AgentType:
        assert any(line.startswith(agent.value) for line in result.out.splitlines())
    assert "no target yet" in result.out or "wanted" in result.out
    answer = (await convener("metrics", "runtime", "-o", "json")).json
    # Other tests share the service, and some of them call a model.
    is_unknown = answer["performance_metrics"]["llm_call_latency_ms"] == 0
    assert ("llm_call_latency_ms is 0" in result.out) == is_unknown
    assert set(answer["worker_status"]) == {"active_workers", "idle_workers", "failed_workers"}


async def test_what_was_pushed(convener: CommandLine, live_service: Service) -> None:
    name = f"depth_{uuid4().hex[:8]}"
    await _push(live_service, name, 1.0, 4.0, agent="ranking", worker="lab-1")
    await _push(live_service, name, 7.0, goal="kepler")
    result = await convener("metrics", "series")
    (row,) = [line.split() for line in result.out.splitlines() if line.startswith(name)]
    assert row[1:3] == ["gauge", "2"]
    lines = (await convener("metrics", "series", name)).out.splitlines()
    assert len(lines) == 3
    (row,) = [line.split() for line in lines if line.startswith("ranking")]
    assert row[1:7] == ["lab-1", "-", "4", "1", "2.5", "4"]
    alone = await convener("metrics", "series", name, "--goal", "kepler", "-o", "json")
    assert [point["last"] for point in alone.json["items"]] == [7.0]
    assert "no sample came" in (await convener("metrics", "series", name, "--agent", "evolution")).out
    missing = await convener("metrics", "series", "nobody_has_pushed_this")
    assert missing.code == 5
    assert "convener metrics series" in missing.err


def _point(minute: int, value: float, per_second: float | None = None) -> Any:
    labels = dict.fromkeys(("agent", "worker", "goal"))
    figures = dict.fromkeys(("sum", "min", "mean", "max", "last"), value)
    return {"minute": f"2026-01-01T12:{minute:02}:00+00:00", "per_second": per_second, **labels, **figures}


def test_minutes_without_a_sample_are_blank() -> None:
    assert _by_minute([_point(1, 5.0), _point(2, 6.0), _point(4, 7.0)], "mean") == [5.0, 6.0, None, 7.0]
    assert _thin_out([1.0, 3.0, None, None] + [None] * 55 + [8.0]) == [2.0] + [None] * 28 + [8.0]


def test_a_counter_is_shown_by_what_came_in_a_minute() -> None:
    points = [_point(1, 6.0, 0.1) | {"samples": 3, "mean": 2.0, "last": 1.0}, _point(2, 12.0, 0.2) | {"mean": 3.0}]
    (row,) = zip(*(column.cells for column in _series_table(points).columns), strict=True)
    assert list(map(str, row))[3:] == ["12", "6", "9", "12", "▅█"]


async def test_how_busy_all_were(convener: CommandLine, live_service: Service) -> None:
    name = host_subject(f"lab-{uuid4().hex[:6]}")
    assert "nothing was measured" in (await convener("metrics", "utilisation", "--subject", name)).out
    database = Database(live_service.database_url)
    async with database.transaction() as connection:
        await utilisation.add_samples(connection, [single_sample(name, Measure.CPU, 50.0)], apart_seconds=0)
    await database.close()
    result = await convener("metrics", "utilisation", "--subject", name, "--since", "2h")
    (row,) = [line for line in result.out.splitlines() if line.startswith(name)]
    assert row.split()[1:5] == ["cpu", "50", "50", "50"]
    assert row[-1] in "▄▅"
    answer = (await convener("metrics", "utilisation", "--subject", name, "-o", "json")).json
    assert set(answer["subjects"]) == {name}
    assert answer["step_seconds"] == 120
    assert (await convener("metrics", "utilisation", "--since", "yesterday")).code == 2


async def test_a_sample_is_pushed(convener: CommandLine) -> None:
    name = f"writes_{uuid4().hex[:8]}"
    result = await convener("metrics", "push", name, "3", "--counter", "--agent", "ranking")
    assert (result.code, result.out, result.err) == (0, "taken\n", "")
    answer = (await convener("metrics", "series", name, "-o", "json")).json["items"]
    assert [(point["agent"], point["sum"]) for point in answer] == [("ranking", 3.0)]
    refused = await convener("metrics", "push", name, "3")
    assert refused.code == 1
    assert f"{name} is a counter" in refused.err
    assert (await convener("metrics", "push", "No", "3")).code == 1
    assert (await convener("metrics", "push", name, "--", "-3")).code == 1
