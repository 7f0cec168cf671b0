"""`convener config` and `convener audit` against the real service, which the tests of this directory share."""

import asyncio
from collections.abc import AsyncIterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from app.admin.cli import audit as audit_command
from app.admin.service import audit
from app.cli import stack
from app.kernel.modes import Mode
from app.settings import Settings
from app.terminal import client
from app.terminal.client import Client
from tests.support.command_line import CommandLine

_MOST = "worker_pool.max_workers"


@pytest.fixture(autouse=True)
async def _as_before(convener: CommandLine) -> AsyncIterator[None]:
    """Puts the first version back."""
    yield
    done = await convener("config", "rollback", "1", "--yes", "--reason", "as before")
    assert done.code == 0, done.err


async def _config(convener: CommandLine) -> Any:
    return (await convener("config", "get", "-o", "json")).json


async def test_the_configuration_for_people_and_programs(convener: CommandLine) -> None:
    shown = await convener("config", "get")
    assert (shown.code, shown.err) == (0, "")
    assert "production" in shown.out
    assert "times 2 in a decision" in shown.out
    line = next(line for line in shown.out.splitlines() if line.startswith(_MOST))
    assert line.split() == [_MOST, "1000", "-"]
    weights = next(line for line in shown.out.splitlines() if "reflection_agent" in line)
    assert weights.split()[1:] == ["0.15", "0.15"]
    assert (await _config(convener))["worker_pool"]["max_workers"] == 1000
    former = await convener("config", "get", "--version", "1", "-o", "json")
    assert former.json["action"] == "initial"
    missing = await convener("config", "get", "--version", "999999")
    assert (missing.code, missing.out) == (5, "")
    assert "convener config history" in missing.err


async def test_values_are_set_together_and_kept_with_their_reason(convener: CommandLine) -> None:
    before = await _config(convener)
    done = await convener(
        "config", "set", f"{_MOST}=20", "test_time_compute.enabled=false", "--yes", "--reason", "a smaller grant"
    )
    assert (done.code, done.err) == (0, "")
    assert f"at version {before['version'] + 1} now" in done.out
    rows = {line.split()[0]: line.split()[1:] for line in done.out.splitlines() if "." in line}
    assert rows == {_MOST: ["1000", "20"], "test_time_compute.enabled": ["true", "false"]}
    after = await _config(convener)
    assert (after["worker_pool"]["max_workers"], after["reason"]) == (20, "a smaller grant")
    again = await convener("config", "set", f"{_MOST}=20", "--yes")
    assert (again.code, again.out) == (0, f"nothing to change; the configuration is at version {after['version']}\n")


async def test_it_asks_and_takes_no_for_an_answer(convener: CommandLine) -> None:
    before = await _config(convener)
    no = await convener("config", "set", f"{_MOST}=20", stdin="n\n")
    assert (no.code, _MOST in no.out) == (1, False)
    assert _MOST in no.err
    assert "change 1 value?" in no.err
    assert await _config(convener) == before
    yes = await convener("config", "set", f"{_MOST}=20", stdin="y\n")
    assert (yes.code, "1000" in yes.out) == (0, True)
    assert (await _config(convener))["worker_pool"]["max_workers"] == 20


async def test_what_the_service_refuses_is_told_before_anything_is_asked(convener: CommandLine) -> None:
    for value, path in ((f"{_MOST}=5", "worker_pool.min_workers"), (f"{_MOST}=2.5", _MOST), ("colour=1", "colour")):
        done = await convener("config", "set", value)
        assert (done.code, done.out) == (1, "")
        assert path in done.err
        assert "?" not in done.err


async def test_values_that_cannot_be_read(convener: CommandLine) -> None:
    for value in (_MOST, f"{_MOST}=many", "=3", "worker_pool.=3", ".max_workers=3"):
        assert (await convener("config", "set", value, "--yes")).code == 2
    assert (await convener("config", "set")).code == 2
    assert (await convener("config", "mode", "holiday")).code == 2


async def test_a_weight_of_nothing_is_raised_and_that_is_said(convener: CommandLine) -> None:
    done = await convener("config", "set", "agent_weights.evolution_agent=0", "--yes")
    assert "no agent may be disabled" in done.out
    assert (await _config(convener))["effective_weights"]["evolution_agent"] == 0.02


async def test_differences_and_history(convener: CommandLine) -> None:
    await convener("config", "set", f"{_MOST}=20", "--yes", "--reason", "first")
    await convener("config", "set", f"{_MOST}=30", "--yes", "--reason", "second")
    last = (await convener("config", "diff")).out.splitlines()[1].split()
    assert last == [_MOST, "20", "30"]
    whole = await convener("config", "diff", "1", "-o", "json")
    assert whole.json["changes"] == [{"path": _MOST, "before": 1000, "after": 30}]
    now = whole.json["to"]
    assert (await convener("config", "diff", str(now))).out == "no differences\n"
    lines = (await convener("config", "history", "--limit", "2", COLUMNS="120")).out.splitlines()
    assert [line.split()[0] for line in lines[1:]] == [str(now), str(now - 1)]
    assert "max_workers" in lines[1]
    assert lines[1].endswith("second")
    items = (await convener("config", "history", "--limit", "2", "-o", "json")).json["items"]
    assert [item["reason"] for item in items] == ["second", "first"]


async def test_modes(convener: CommandLine) -> None:
    assert "production" in (await convener("config", "mode")).out
    done = await convener("config", "mode", "trusted_tester", "--yes")
    assert done.code == 0, done.err
    assert "trusted_tester" in done.out
    shown = (await convener("config", "mode", "-o", "json")).json
    assert (shown["mode"], shown["conduct"]["growth"]) == ("trusted_tester", 1.25)
    refused = await convener("config", "set", f"{_MOST}=51", "--yes")
    assert (refused.code, refused.out) == (1, "")
    assert "between 5 and 50" in refused.err
    unexplained = await convener("config", "set", f"{_MOST}=40", "--yes", "--reason", "")
    assert "say why" in unexplained.err


async def test_when_somebody_else_is_faster_it_tries_once_more(
    convener: CommandLine, monkeypatch: pytest.MonkeyPatch
) -> None:
    original, others = Client.change, [40, 50]

    def overtaken(self: Client, method: str, path: str, body: Any, *, version: int, **query: Any) -> Any:
        if others:
            most = others.pop()
            original(self, "PATCH", "/config", {"worker_pool": {"max_workers": most}}, version=version)
        return original(self, method, path, body, version=version, **query)

    monkeypatch.setattr(Client, "change", overtaken)
    lost = await convener("config", "set", f"{_MOST}=20", "--yes")
    assert (lost.code, lost.out) == (1, "")
    assert "412 version_stale" in lost.err
    others.append(60)
    won = await convener("config", "set", f"{_MOST}=20", "--yes", "-o", "json")
    assert (won.code, won.json["changes"]) == (0, [{"path": _MOST, "before": 60, "after": 20}])
    assert "trying again" in won.err


async def test_the_audit_log(convener: CommandLine) -> None:
    await convener("config", "set", f"{_MOST}=20", "--yes", "--reason", "for the log")
    lines = (await convener("audit", "ls", "--limit", "1", COLUMNS="120")).out.splitlines()
    assert lines[1].endswith("for the log")
    assert lines[1].split()[-5:-3] == ["config.patch", "1"]
    (entry,) = (await convener("audit", "ls", "--limit", "1", "-o", "json")).json["items"]
    # Another key may have the same label.
    assert f" {entry['by']} {entry['label']} " in lines[1]
    items = (await convener("audit", "ls", "--action", "config.initial", "-o", "json")).json["items"]
    assert [item["seq"] for item in items] == [1]
    found = (await convener("audit", "verify", "-o", "json")).json
    assert found["ok"]
    end = f"{found['end']['seq']}:{found['end']['digest']}"
    again = await convener("audit", "verify", "--end", end)
    assert (again.code, again.out.startswith("ok: ")) == (0, True)
    forged = await convener("audit", "verify", "--end", f"{found['end']['seq']}:{'0' * 64}")
    assert (forged.code, "another digest" in forged.out) == (1, True)
    assert (await convener("audit", "verify", "--end", "yesterday")).code == 2


async def test_a_narrow_terminal_shows_the_values(convener: CommandLine) -> None:
    lines = (await convener("config", "get", COLUMNS="48")).out.splitlines()
    document = (await convener("config", "get", "-o", "json")).json
    (row,) = [line.split() for line in lines if "worker_timeout_seconds" in line]
    assert row == ["worker_pool.worker_timeout_seconds", str(document["worker_pool"]["worker_timeout_seconds"])]
    lines = (await convener("config", "get", COLUMNS="40")).out.splitlines()
    values = [line.split()[1] for line in lines if line.startswith(("worker_pool.", "resource_limits."))]
    assert values == [f"{value:g}" for name in ("worker_pool", "resource_limits") for value in document[name].values()]


def test_an_entry_that_cannot_be_read_is_listed_as_such() -> None:
    damaged = {"at": None, "before": None, "after": None, "unreadable": "at and after"}
    entry = {"seq": 7, "by": "me", "label": "lab", "action": "config.patch", "reason": "why", **damaged}
    table = audit_command._listing([entry], datetime.now(UTC))
    cells = [str(next(iter(column.cells))) for column in table.columns]
    assert cells == ["7", "-", "me lab", "config.patch", "unreadable: at and after", "why"]


async def test_a_long_log_takes_the_time_that_it_takes(convener: CommandLine, monkeypatch: pytest.MonkeyPatch) -> None:
    verify = audit.verify

    async def slow(*given: Any) -> Any:
        await asyncio.sleep(2)
        return await verify(*given)

    monkeypatch.setattr(audit, "verify", slow)
    monkeypatch.setattr(client, "_TIMEOUT_SECONDS", 1.0)
    checked = await convener("audit", "verify")
    assert (checked.code, checked.out.startswith("ok: ")) == (0, True), checked.err


def test_a_machine_of_ones_own_starts_in_development_unless_told_otherwise(tmp_path: Path) -> None:
    for given, expected in ((None, "development"), (Mode.TRUSTED_TESTER, "trusted_tester")):
        settings = Settings(state_directory=tmp_path, mode=given)
        environment = stack._environment(settings)
        assert Settings.from_environment(environment).mode == expected
