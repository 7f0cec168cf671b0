"""The guide to a database of one's own, command by command: at its end everything is in order."""

import asyncio
import os
import shlex
import subprocess
import sys
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.support.documents import ROOT, blocks
from tests.support.ports import free_port

GUIDE = ROOT / "docs/how-to/postgresql.md"
# How busy this machine is says nothing about the deployment.
_OF_THE_MACHINE = {"cpu_short", "memory_short"}


def commands() -> list[tuple[dict[str, str], list[str]]]:
    """Variables and words of each command of Convener's in the guide."""
    [block] = [block for block in blocks(GUIDE.read_text(), "sh") if "CONVENER_DATABASE_URL" in block]
    parsed = []
    for line in block.strip().splitlines():
        words = shlex.split(line.removeprefix("export "), comments=True)
        count = next((index for index, word in enumerate(words) if "=" not in word), len(words))
        variables = dict(word.split("=", 1) for word in words[:count])
        parsed.append((variables, words[count:]))
    return parsed


@pytest.mark.slow
async def test_it_is_healthy_as_it_stands(database_url: str, tmp_path: Path) -> None:
    port = free_port()
    url = f"http://127.0.0.1:{port}"
    stated = {"CONVENER_DATABASE_URL": database_url, "CONVENER_WORKER_HANDLERS": "examples.echo"}
    environment = {name: value for name, value in os.environ.items() if not name.startswith("CONVENER_")}
    environment |= {"CONVENER_STATE_DIRECTORY": str(tmp_path), "CONVENER_PORT": str(port), "CONVENER_URL": url}
    environment["CONVENER_STOP_GRACE_SECONDS"] = "0"
    log = (tmp_path / "log").open("ab")
    with ExitStack() as running:
        running.enter_context(log)
        for variables, words in commands():
            own = {name: stated.get(name, value) for name, value in variables.items()}
            if not words:
                environment |= own
                continue
            assert words.pop(0) == "convener"
            command = [sys.executable, "-m", "app.cli", *words]
            if words in (["api"], ["loops"]):
                child = subprocess.Popen(command, env=environment | own, stdout=log, stderr=log)
                running.callback(child.wait, 60)
                running.callback(child.terminate)
            elif words == ["health"]:
                await _until_in_order(url, stated["CONVENER_KEY"])
                shown = subprocess.run(command, env=environment | {"CONVENER_KEY": stated["CONVENER_KEY"]})
                assert shown.returncode in (0, 7)
            else:
                done = subprocess.run(command, env=environment | own, capture_output=True, text=True)
                assert done.returncode == 0, done.stderr
                if words[:2] == ["key", "create"]:
                    stated["CONVENER_KEY"] = done.stdout.strip()


async def _until_in_order(url: str, key: str) -> None:
    codes: set[str] = set()
    async with httpx.AsyncClient(base_url=url, headers={"Authorization": f"Bearer {key}"}, trust_env=False) as client:
        for _ in range(480):
            try:
                report = (await client.get("/health/report")).raise_for_status().json()
            except httpx.HTTPError:
                await asyncio.sleep(0.25)
                continue
            codes = {reason["code"] for reason in report["reasons"] if reason["level"] != "note"}
            if not codes - _OF_THE_MACHINE and await _has_workers(client):
                alerts: dict[str, Any] = (await client.get("/alerts")).json()
                assert not [alert for alert in alerts["items"] if alert["rule"] != "resource_pressure"]
                return
            await asyncio.sleep(0.25)
    raise AssertionError(f"still {codes}")


async def _has_workers(client: httpx.AsyncClient) -> bool:
    workers = (await client.get("/workers", params={"limit": 100})).json()["items"]
    return len([worker for worker in workers if worker["state"] in ("ready", "busy")]) >= 10
