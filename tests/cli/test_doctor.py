"""`convener doctor`: what is held, what is not, and how it ends."""

import subprocess
import sys
from typing import Any

import pytest

from tests.support.command_line import CommandLine


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
