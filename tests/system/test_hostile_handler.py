"""A handler that attacks whatever it can reach, under `convener up`: as root, and as an ordinary user."""

import asyncio
import contextlib
import json
import os
import shutil
import socket
import subprocess
import sys
import tempfile
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest

from tests.system import hostile
from tests.system.conftest import Up, about_up

pytestmark = [pytest.mark.slow, about_up]
_NOBODY = 65534
_PATIENCE = 90.0


def _missing_protections(prefix: list[str]) -> list[str]:
    command = [*prefix, sys.executable, "-m", "worker_agent", "--check-isolation", "-o", "json"]
    answer = subprocess.run(command, capture_output=True, text=True, check=True)
    protections = json.loads(answer.stdout)["protections"]
    needing_groups = ("total_memory", "processor_time")
    return [each["name"] for each in protections if not each["holds"] and each["name"] not in needing_groups]


@pytest.fixture(params=["this user", "an ordinary user"])
async def attacked(request: pytest.FixtureRequest) -> AsyncIterator[Up]:
    """A `convener up` whose directory of code holds, at the worst, its state as well; all only for its own user."""
    prefix: list[str] = []
    if request.param == "an ordinary user":
        if os.getuid() != 0 or shutil.which("setpriv") is None:
            pytest.skip("only root can take another user, by setpriv")
        prefix = ["setpriv", f"--reuid={_NOBODY}", f"--regid={_NOBODY}", "--clear-groups"]
        same_python = f"import app, sys; sys.exit(sys.base_prefix != {sys.base_prefix!r})"
        if subprocess.run([*prefix, sys.executable, "-c", same_python], capture_output=True).returncode != 0:
            pytest.skip("an ordinary user cannot read this code")
    if missing := _missing_protections(prefix):
        pytest.skip(f"this system does not hold {', '.join(missing)}")
    base = Path(tempfile.mkdtemp(prefix="hostile-"))
    directory = base / "code"
    directory.mkdir(mode=0o700)
    shutil.copy(hostile.__file__, directory / "hostile_agents.py")
    (directory / ".env").write_text("POSTGRES_PASSWORD=a-secret-of-the-operator")
    (base / ".pgpass").write_text("a-secret-of-the-operator")
    if prefix:
        for path in (base, *base.rglob("*")):
            os.chown(path, _NOBODY, _NOBODY)
    settings = {"HOME": str(base), "CONVENER_POOL_SIZE": "2", "AN_UNRELATED": "a-secret-of-the-operator"}
    machine = Up(directory / "state", prefix=prefix, directory=directory, has_cluster=not prefix, **settings)
    await machine.start("--handlers", "hostile_agents")
    yield machine
    machine.stop()
    shutil.rmtree(base)


async def _run(up: Up, payload: dict[str, Any]) -> dict[str, Any]:
    async with httpx.AsyncClient(base_url=up.url, headers=up.bearer("operator"), trust_env=False, timeout=30) as client:
        task = {"agent_type": "generation", "payload": payload, "timeout_seconds": _PATIENCE}
        answer = await client.post("/tasks", json=task)
        assert answer.is_success, answer.text
        async with asyncio.timeout(_PATIENCE):
            while True:
                state = (await client.get(f"/tasks/{answer.json()['id']}")).json()
                if state["state"] in ("completed", "failed"):
                    assert state["state"] == "completed", state
                    result: dict[str, Any] = state["result"]
                    return result
                await asyncio.sleep(0.2)


@contextlib.contextmanager
def _abstract_socket() -> Iterator[str]:
    name = f"hostile-{os.getpid()}"
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(f"\0{name}")
        listener.listen(5)
        yield name


async def test_it_gets_hold_of_nothing(attacked: Up) -> None:
    programs = ("app.main", "app.background", "worker_agent", "postgres")
    processes = [await attacked.running(program) for program in programs]
    paths = [str(path) for path in attacked.state.rglob("*") if path.is_socket()]
    with _abstract_socket() as abstract:
        order = {
            "state": str(attacked.state),
            "pids": [process.pid for process in attacked.processes()],
            "sockets": [*paths, "/var/run/docker.sock", "/run/docker.sock", abstract],
        }
        for _ in range(2):  # the second looks for what the first has left
            result = await _run(attacked, order)
            assert {name: spoils for name, spoils in result["spoils"].items() if spoils} == {}
            assert result["uid"] != 0
    assert all(process.is_running() for process in processes)
    survivors = [
        process for process in psutil.process_iter(["cmdline"]) if hostile.SLEEP in (process.info["cmdline"] or [])
    ]
    assert survivors == []
    assert not Path("/tmp", hostile.LEFT_BEHIND).exists()
