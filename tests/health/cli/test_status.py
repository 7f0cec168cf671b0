"""`convener status` against the real service, and what it makes of an outage."""

import json
import time

import pytest

from tests.support.command_line import CommandLine, Service


async def test_counts(convener: CommandLine, goal: str) -> None:
    await convener("tasks", "submit", "--agent", "meta_review", "--goal", goal)
    result = await convener("status")
    assert (result.code, result.err) == (0, "")
    row = next(line for line in result.out.splitlines() if line.startswith("meta_review"))
    assert int(row.split()[2]) >= 1
    assert all(len(line) <= 80 for line in result.out.splitlines())
    assert "Warning the background loops have never run" in result.out
    assert (await convener("status", "-o", "json")).json["tasks"]["meta_review"]["pending"] >= 1


async def test_watch_writes_an_object_a_line_and_survives_an_outage(
    convener: CommandLine, live_service: Service, monkeypatch: pytest.MonkeyPatch
) -> None:
    looks = iter(range(3))

    def sleep(_: float) -> None:
        if next(looks) == 2:
            raise KeyboardInterrupt

    monkeypatch.setattr(time, "sleep", sleep)
    result = await convener("status", "--watch", "-o", "json")
    assert [set(json.loads(line)) >= {"tasks", "workers"} for line in result.out.splitlines()] == [True] * 3
    assert result.code == 130
    looks = iter(range(3))
    result = await convener("status", "--watch", CONVENER_URL="http://127.0.0.1:1")
    assert result.out == ""
    assert result.err.count("cannot reach the service") == 3


async def test_no_service(offline: CommandLine) -> None:
    result = await offline("status", CONVENER_KEY="cvn_a_b", CONVENER_URL="http://127.0.0.1:1")
    assert (result.code, result.out) == (3, "")
    assert "convener up" in result.err


async def test_no_key_and_a_wrong_key(offline: CommandLine, live_service: Service) -> None:
    result = await offline("status", "--url", live_service.url)
    assert (result.code, result.out) == (4, "")
    result = await offline("status", "--url", live_service.url, CONVENER_KEY="cvn_unknown_secret")
    assert result.code == 4
    assert "secret" not in result.err


async def test_the_address_may_stand_in_front(
    offline: CommandLine, live_service: Service, convener: CommandLine
) -> None:
    key = convener.environment["CONVENER_KEY"]
    result = await offline("--url", live_service.url, "status", "-o", "json", CONVENER_KEY=key, CONVENER_URL=None)
    assert result.code == 0
