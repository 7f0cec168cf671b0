"""`convener health`: the verdict in words, and in the exit code."""

import time
from typing import Any

import httpx
import pytest
from rich.console import Console

from app.health.cli.health import render
from app.terminal.client import Client, Refusal
from app.terminal.connection import Access
from app.terminal.failures import ExitCode, Failure
from app.terminal.output import results
from tests.support.command_line import CommandLine

_REPORT: dict[str, Any] = {
    "timestamp": "2026-01-31T12:00:00+00:00",
    "overall_health": "degraded",
    "worker_pool_health": {"total_workers": 12, "healthy_workers": 11, "utilization_percentage": 83.3},
    "queue_health": {
        "total_pending_tasks": 2400,
        "oldest_task_age_seconds": 31,
        "bottleneck_agent": "generation_agent",
    },
    "resource_utilization": {"cpu_percentage": 86.2, "memory_percentage": 41.0, "llm_api_usage_percentage": 25.0},
    "reasons": [{"code": "cpu_short", "level": "degraded", "message": "busy \x1b[31m"}],
}


async def test_the_verdict_is_the_exit_code(convener: CommandLine) -> None:
    result = await convener("health")
    # The loops never run beside these tests.
    assert (result.code, result.err) == (ExitCode.CRITICAL, "")
    assert result.out.startswith("Health")
    assert "critical" in result.out.splitlines()[0]
    assert "convener loops" in result.out, result.out
    assert all(len(line) <= 80 for line in result.out.splitlines())
    report = await convener("health", "-o", "json")
    assert report.code == ExitCode.CRITICAL
    assert report.json["overall_health"] == "critical"


async def test_the_status_tells_it_too(convener: CommandLine) -> None:
    lines = (await convener("status")).out.splitlines()
    assert any(line.startswith("Health") and "critical" in line for line in lines)


async def test_nobody_answers(offline: CommandLine) -> None:
    result = await offline("health", CONVENER_KEY="cvn_a_b", CONVENER_URL="http://127.0.0.1:1")
    assert (result.code, result.out) == (ExitCode.UNREACHABLE, "")


def test_the_report_for_people() -> None:
    console = results()
    with console.capture() as captured:
        console.print(render(_REPORT))
    shown = captured.get()
    for words in ("degraded", "11 of 12 healthy, 83 % at work", "2,400 tasks, the oldest for 31 s", "generation_agent"):
        assert words in shown
    assert "\x1b[31m" not in shown
    with console.capture() as captured:
        console.print(render({**_REPORT, "queue_health": {**_REPORT["queue_health"], "total_pending_tasks": 1}}))
    assert "1 task, the oldest" in captured.get()


def test_reasons_stand_beside_their_levels_in_a_narrow_terminal() -> None:
    console = Console(width=40)
    reasons = [{**_REPORT["reasons"][0], "message": "word " * 20, "advice": "convener config set " + "x" * 50}]
    with console.capture() as captured:
        console.print(render({**_REPORT, "reasons": reasons}))
    first, *others = captured.get().split("\n\n")[1].rstrip().split("\n")
    assert first.startswith("degraded  word")
    assert all(line.startswith(10 * " ") and len(line) <= 40 for line in others)
    assert "".join(line.strip() for line in others).count("x") == 50


def test_the_report_without_figures() -> None:
    console = results()
    nothing = dict.fromkeys(("worker_pool_health", "queue_health", "resource_utilization"))
    with console.capture() as captured:
        console.print(render({**_REPORT, **nothing, "reasons": [{**_REPORT["reasons"][0], "message": None}]}))
    assert "degraded" in captured.get()
    assert "cpu_short" in captured.get()


def _client(status: int, body: object) -> Client:
    transport = httpx.MockTransport(lambda _: httpx.Response(status, json=body))
    return Client(Access(url="http://convener", key="cvn_a_b"), transport=transport)


def test_a_report_comes_with_503_while_the_database_is_away(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(time, "sleep", lambda _: pytest.fail("nobody waits for a report"))
    assert _client(503, _REPORT).report("/health/report") == _REPORT
    with pytest.raises(Refusal):
        _client(503, {"code": "shutting_down", "title": "It stops"}).report("/health/report")
    with pytest.raises(Failure, match="not like Convener"):
        _client(200, ["nothing"]).report("/health/report")
    with pytest.raises(Failure, match="not like Convener"):
        _client(404, {"detail": "Not Found"}).report("/health/report")
