"""`convener doctor`: what is held, what is not, and how it ends."""

import subprocess
import sys
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from tests.support.command_line import CommandLine
from tests.support.tls import issue


def test_it_tells_each_protection_of_a_worker(offline: CommandLine) -> None:
    outcome = offline.run("doctor", "-o", "json")
    assert outcome.code == 0
    checks = {check["name"]: check for check in outcome.json["checks"]}
    assert checks["handlers: environment"]["status"] == "ok"
    if sys.platform == "linux":
        assert checks["handlers: daemon_memory"]["status"] == "ok"
    assert all(check["remedy"] for check in checks.values() if check["status"] != "ok")
    assert "handlers: environment" in offline.run("doctor").out


def test_a_check_that_cannot_be_made_is_a_failure(offline: CommandLine, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(command: list[str], **_: Any) -> None:
        raise subprocess.CalledProcessError(1, command, stderr="no such module")

    monkeypatch.setattr(subprocess, "run", broken)
    outcome = offline.run("doctor", "-o", "json")
    assert outcome.code == 1
    assert outcome.json["checks"][0]["status"] == "failed"
    assert "no such module" in outcome.json["checks"][0]["detail"]


@pytest.mark.parametrize(
    ("host", "days", "statuses"),
    [
        ("127.0.0.1", None, {"network": "ok"}),
        ("0.0.0.0", None, {"network": "warning"}),
        ("0.0.0.0", 300, {"network": "ok", "certificate": "ok"}),
        ("0.0.0.0", 10, {"network": "ok", "certificate": "warning"}),
    ],
)
def test_it_tells_whether_keys_cross_the_network_in_clear(
    offline: CommandLine, tmp_path: Path, host: str, days: int | None, statuses: dict[str, str]
) -> None:
    variables = {"CONVENER_HOST": host}
    if days is not None:
        files = issue(tmp_path / "tls", not_after=datetime.now(UTC) + timedelta(days=days))
        variables |= {"CONVENER_TLS_CERTIFICATE": str(files.certificate), "CONVENER_TLS_KEY": str(files.key)}
    outcome = offline.run("doctor", "-o", "json", **variables)
    checks = {check["name"]: check["status"] for check in outcome.json["checks"]}
    assert {name: checks.get(name) for name in ("network", "certificate") if name in checks} == statuses
    assert outcome.code == 0


def test_settings_that_make_no_sense_are_a_failure(offline: CommandLine, tmp_path: Path) -> None:
    outcome = offline.run("doctor", "-o", "json", CONVENER_TLS_CERTIFICATE=str(tmp_path), CONVENER_TLS_KEY="x")
    assert outcome.code == 1
    assert "no certificate with its key" in outcome.out
