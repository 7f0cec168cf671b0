"""`python -m benchmarks.recovery`: how soon replacements of killed workers have their first task.

A `convener up` of its own works off tasks of half a second. Again and again some of its processes are killed (SIGKILL),
and the records of replacements tell the time from the detection of each lost worker to the first lease of the one that
replaces it.
"""

import argparse
import asyncio
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from contextlib import suppress
from datetime import datetime
from pathlib import Path
from typing import Any
from uuid import uuid4

import httpx
import psutil

from app.workers.rules.pool import CrashPolicy
from benchmarks import report
from benchmarks.figures import Figure, Section
from benchmarks.machine import Machine

AIM_SECONDS = 2.0
_TASKS, _TASK_SECONDS = 2000, 0.5
# Longer than a worker lives that counts as one which crashes at its start, and whose place then rests.
_PAUSE_SECONDS = CrashPolicy().young_seconds + 2.0
_START_SECONDS, _RECOVERY_SECONDS = 120.0, 60.0
_SERVICE = ("app.main", "app.background")
# What is killed at once, by the words of command lines; only one worker in the first.
_SERIES = {
    "one worker": ("worker_agent",),
    "workers, API and loops": ("worker_agent", *_SERVICE),
    "these and PostgreSQL": ("worker_agent", *_SERVICE, "-D"),
}


class Deployment:
    """A `convener up` in a directory of its own."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory / "state"
        variables = {name: value for name, value in os.environ.items() if not name.startswith("CONVENER_")}
        variables |= {"CONVENER_STATE_DIRECTORY": str(self._directory), "CONVENER_PORT": "0"}
        with (directory / "up.log").open("ab") as log:
            command = [sys.executable, "-m", "app.cli", "up"]
            self.child = subprocess.Popen(command, env=variables, stdout=log, stderr=log)
        self._client = httpx.AsyncClient(trust_env=False)

    async def ask(self, path: str, body: Any = None) -> Any:
        """The answer, however long the service may be away."""
        async with asyncio.timeout(_START_SECONDS):
            while True:
                with suppress(httpx.TransportError, FileNotFoundError):
                    url, key = ((self._directory / name).read_text().strip() for name in ("url", "admin.key"))
                    method = "GET" if body is None else "POST"
                    headers = {"Authorization": f"Bearer {key}"}
                    answer = await self._client.request(method, f"{url}{path}", json=body, headers=headers)
                    if answer.is_success:
                        return answer.json()
                await asyncio.sleep(0.1)

    async def submit(self) -> None:
        """Add as many tasks as keep the workers busy for some minutes."""
        payload = {"sleep_seconds": _TASK_SECONDS}
        for _ in range(_TASKS // 500):
            tasks = [{"id": str(uuid4()), "agent_type": "generation", "payload": payload} for _ in range(500)]
            await self.ask("/tasks/batch", {"tasks": tasks})

    def processes(self, words: Sequence[str], count: int | None) -> list[psutil.Process]:
        """The newest processes of this deployment with one of these words in their commands, handlers left out."""
        found = []
        for process in psutil.process_iter():
            with suppress(psutil.Error, OSError):
                command = process.cmdline()
                # The command of a worker or of PostgreSQL names the directory; the others are children of `up`.
                is_ours = process.ppid() == self.child.pid or any(str(self._directory) in word for word in command)
                # A handler has the command of its worker, but leads no session.
                is_handler = "worker_agent" in command and os.getsid(process.pid) != process.pid
                if is_ours and not is_handler and any(word in command for word in words):
                    found.append(process)
        return sorted(found, key=lambda process: process.pid, reverse=True)[:count]

    async def stop(self) -> None:
        """End it in order."""
        await self._client.aclose()
        self.child.send_signal(signal.SIGTERM)
        await asyncio.to_thread(self.child.wait, 60)


async def _delays(deployment: Deployment, words: Sequence[str], rounds: int) -> list[float]:
    """Seconds from detection to the first lease, of each worker that these kills have ended."""
    count = 1 if len(words) == 1 else None
    delays: list[float] = []
    for _ in range(rounds):
        await asyncio.sleep(_PAUSE_SECONDS)
        known = {record["id"] for record in await _records(deployment)}
        victims = deployment.processes(words, count)
        lost = sum("worker_agent" in process.cmdline() for process in victims)
        for process in victims:
            process.kill()
        async with asyncio.timeout(_RECOVERY_SECONDS):
            done: list[float] = []
            while len(done) < lost:
                await asyncio.sleep(0.2)
                records = [record for record in await _records(deployment) if record["id"] not in known]
                done = [_seconds(record) for record in records if record["first_lease_at"]]
        delays += done
        print(f"  {', '.join(f'{seconds:.2f}' for seconds in sorted(done))} s", file=sys.stderr, flush=True)
    return delays


async def _records(deployment: Deployment) -> list[dict[str, Any]]:
    records: list[dict[str, Any]] = (await deployment.ask("/replacements?limit=100"))["items"]
    return records


def _seconds(record: dict[str, Any]) -> float:
    first, detected = (datetime.fromisoformat(record[f"{step}_at"]) for step in ("first_lease", "detected"))
    return (first - detected).total_seconds()


async def _measure(rounds: int) -> list[Figure]:
    figures = []
    with tempfile.TemporaryDirectory(prefix="convener-recovery-") as directory:
        deployment = Deployment(Path(directory))
        try:
            await deployment.submit()
            for name, words in _SERIES.items():
                print(f"{name} killed", file=sys.stderr, flush=True)
                delays = await _delays(deployment, words, rounds)
                figures.append(Figure.of(f"{name} killed, median of {len(delays)}", delays, "s"))
                longest = Figure(
                    name="  the longest", value=max(delays), unit="s", target=AIM_SECONDS, more_is_better=False
                )
                figures.append(longest)
        finally:
            await deployment.stop()
    return figures


def main() -> None:
    """Read the options, measure, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    parser.add_argument("--rounds", type=int, default=8, help="kills of each kind")
    parser.add_argument("-o", "--output", choices=("table", "json"), default="table")
    options = parser.parse_args()
    machine = Machine.now()
    section = Section(title="from detection to the first lease", figures=asyncio.run(_measure(options.rounds)))
    print((report.as_json if options.output == "json" else report.table)(machine, [section]))


if __name__ == "__main__":
    main()
