"""`convener up` ends soon when it cannot work, and when somebody presses Ctrl-C, whatever its tasks do."""

import asyncio
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.system.conftest import Up, about_up, until

pytestmark = [pytest.mark.slow, about_up]
_SLEEPY = """
import time

def sleep(task):
    time.sleep(600)

HANDLERS = {"generation": sleep}
"""


def _module(tmp_path: Path, name: str, text: str) -> Path:
    # Handlers run as another user, who must be able to read them.
    tmp_path.chmod(0o755)
    directory = tmp_path / "code"
    directory.mkdir(mode=0o755)
    (directory / f"{name}.py").write_text(text)
    return directory


def test_handlers_that_do_not_load_are_told_of_with_file_and_line(tmp_path: Path) -> None:
    code = _module(tmp_path, "broken", "\nHANDLERS = {'generation': 1 / 0}\n")
    machine = Up(tmp_path / "state", PYTHONPATH=str(code), CONVENER_STOP_GRACE_SECONDS="60")
    done = subprocess.run(
        [sys.executable, "-m", "app.cli", "up", "--handlers", "broken"],
        env=machine._environment,
        capture_output=True,
        text=True,
        timeout=120,
    )
    printed = " ".join(done.stderr.split())
    assert done.returncode == 1
    assert "line 2: ZeroDivisionError: division by zero" in printed
    assert "Convener is up" not in printed


@pytest.mark.parametrize("times", [1, 2])
async def test_ctrl_c_does_not_wait_for_a_running_task(tmp_path: Path, times: int) -> None:
    code = _module(tmp_path, "sleepy", _SLEEPY)
    machine = Up(tmp_path / "state", PYTHONPATH=str(code), CONVENER_STOP_GRACE_SECONDS="300")
    await machine.start("--workers", "1", "--handlers", "sleepy")
    assert machine.child is not None
    try:
        task = await _submitted(machine)
        states: list[str] = []

        async def look() -> None:
            states.append((await _get(machine, f"/tasks/{task}"))["state"])

        await look()
        while states[-1] != "executing":
            await asyncio.sleep(0.1)
            await look()
        for _ in range(times):
            machine.child.send_signal(signal.SIGINT)
            await asyncio.sleep(0.1)
        # Its grace would be five minutes.
        await until(lambda: machine.child is not None and machine.child.poll() is not None, 60, "the end")
        await until(lambda: not machine.processes(), 30, "the end of all its processes")
    finally:
        for process in machine.processes():
            process.kill()


async def _get(machine: Up, path: str) -> Any:
    async with httpx.AsyncClient(trust_env=False, base_url=machine.url) as client:
        return (await client.get(path, headers=machine.bearer("operator"))).json()


async def _submitted(machine: Up) -> str:
    async with httpx.AsyncClient(trust_env=False, base_url=machine.url) as client:
        answer = await client.post("/tasks", json={"agent_type": "generation"}, headers=machine.bearer("supervisor"))
        return str(answer.json()["id"])
