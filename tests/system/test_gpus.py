"""Real workers of one host with two GPUs, which a program pretends: no two tasks ever have the same one."""

import asyncio
import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import pairwise
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest

from app.kernel.access import Role
from tests.system.conftest import Api
from tests.worker_agent.test_gpus import FIRST, NVIDIA, SECOND, program

pytestmark = pytest.mark.slow
# Says which devices it sees, from when to when.
_PROGRAM = (
    "import json, os, time; began = time.time(); time.sleep(0.4); print(json.dumps("
    "{'devices': os.environ['CUDA_VISIBLE_DEVICES'], 'began': began, 'ended': time.time()}))"
)


@contextmanager
def _worker(api: Api, tmp_path: Path, name: str, *options: str) -> Iterator["subprocess.Popen[bytes]"]:
    handler = f'generation=command:{sys.executable} -c "{_PROGRAM}"'
    command = [
        sys.executable,
        "-m",
        "worker_agent",
        "--url",
        api.url,
        "--name",
        name,
        "--handler",
        handler,
        "--grace=1",
    ]
    environment = {name: value for name, value in os.environ.items() if not name.startswith("CUDA_")}
    environment |= {"CONVENER_KEY": api.keys[Role.POOL], "CONVENER_GPU_LOCKS": str(tmp_path)}
    environment["PATH"] = f"{tmp_path / 'bin'}:{os.environ['PATH']}"
    with (tmp_path / f"{name}.log").open("ab") as log:
        child = subprocess.Popen([*command, *options], env=environment, stdout=log, stderr=log)
    try:
        yield child
    finally:
        child.terminate()
        try:
            child.wait(20)
        except subprocess.TimeoutExpired:
            child.kill()
            child.wait()


async def _ended(client: httpx.AsyncClient, ids: list[str]) -> list[Any]:
    async with asyncio.timeout(90):
        while True:
            tasks = [(await client.get(f"/tasks/{task_id}")).json() for task_id in ids]
            if all(task["state"] == "completed" for task in tasks):
                return tasks
            await asyncio.sleep(0.2)


async def _until_runs(client: httpx.AsyncClient, name: str) -> None:
    async with asyncio.timeout(60):
        while not any(
            task["worker_name"] == name for task in (await client.get("/tasks?state=executing")).json()["items"]
        ):
            await asyncio.sleep(0.05)


async def test_no_two_tasks_share_a_device_though_a_worker_is_killed(api: Api, tmp_path: Path) -> None:
    program(tmp_path / "bin", "nvidia-smi", NVIDIA)
    async with httpx.AsyncClient(base_url=api.url, headers=api.bearer(Role.ADMIN), trust_env=False) as client:

        async def submit(**fields: Any) -> str:
            return str((await client.post("/tasks", json={"agent_type": "generation", **fields})).json()["id"])

        ids = [await submit(resources={"gpus": 1}) for _ in range(16)]
        # Before anybody is there it says so, and with a worker without GPUs too.
        waiting = await submit(resources={"gpus": 2})
        with _worker(api, tmp_path, "one", "--gpus", "1") as one, _worker(api, tmp_path, "two", "--gpus", "1"):
            await _until_runs(client, "one")
            began = time.monotonic()
            cause = (await client.get(f"/tasks/{waiting}/why")).json()["cause"]
            assert cause["code"] == "unoffered"
            assert "offers 2 GPUs: the most that one of them offers is 1 GPU" in cause["text"]
            assert time.monotonic() - began < 5
            await _until_runs(client, "two")
            one.kill()
            one.wait()
            killed_at = time.time()
            # By its name it takes over from the killed one, whose task goes back to the queue.
            with _worker(api, tmp_path, "one", "--gpus", "1"):
                tasks = await _ended(client, ids)
    _check_devices(tasks, killed_at)


async def test_no_two_slots_of_a_host_share_a_device(api: Api, tmp_path: Path) -> None:
    program(tmp_path / "bin", "nvidia-smi", NVIDIA)
    async with httpx.AsyncClient(base_url=api.url, headers=api.bearer(Role.ADMIN), trust_env=False) as client:
        task = {"agent_type": "generation", "resources": {"gpus": 1}}
        answer = await client.post("/tasks/batch", json={"tasks": [task] * 20})
        ids = [str(task["id"]) for task in answer.json()["tasks"]]
        with _worker(api, tmp_path, "host", "--slots", "2", "--gpus", "all") as parent:
            await _until_runs(client, "host-0")
            await _until_runs(client, "host-1")
            slot = next(child for child in psutil.Process(parent.pid).children() if "host-0" in child.cmdline())
            slot.kill()
            killed_at = time.time()
            tasks = await _ended(client, ids)
    _check_devices(tasks, killed_at)


def _check_devices(tasks: list[Any], killed_at: float) -> None:
    """No device was two tasks' at once, and each served after a worker had been killed."""
    spans: dict[str, list[tuple[float, float]]] = {FIRST: [], SECOND: []}
    for task in tasks:
        spans[task["result"]["devices"]].append((task["result"]["began"], task["result"]["ended"]))
    for device, used in spans.items():
        used.sort()
        assert used[-1][0] > killed_at, f"nobody used {device} any more when a worker had been killed"
        for (_, ended), (began, _) in pairwise(used):
            assert ended <= began, f"two tasks had {device} at once: {json.dumps(spans)}"
