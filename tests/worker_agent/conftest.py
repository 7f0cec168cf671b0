"""A control plane, and worker daemons as real processes that serve it."""

import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.worker_agent.fake_control_plane import POOL_KEY, FakeControlPlane, served

PATIENCE = 60.0
ROOT = Path(__file__).parents[2]


@dataclass(frozen=True, slots=True, kw_only=True)
class Worker:
    """A running daemon."""

    process: subprocess.Popen[bytes]
    log: Path

    def signal(self, number: int = signal.SIGTERM) -> None:
        self.process.send_signal(number)

    def exit_code(self) -> int:
        """Once it has ended."""
        return self.process.wait(PATIENCE)


StartWorker = Callable[..., Worker]


@pytest.fixture
def plane() -> FakeControlPlane:
    return FakeControlPlane()


@pytest.fixture
def url(plane: FakeControlPlane) -> Iterator[str]:
    with served(plane) as address:
        yield address


@pytest.fixture
def start_worker(tmp_path: Path) -> Iterator[StartWorker]:
    """`start_worker(url, *options, **environment)`; what still runs after the test is killed."""
    with ExitStack() as running:
        # Handlers have another user where the tests are root's.
        tmp_path.chmod(0o777)

        def start(url: str, *options: str, **environment: str) -> Worker:
            log = tmp_path / f"worker-{len(list(tmp_path.glob('worker-*')))}.log"
            command = [sys.executable, "-m", "worker_agent", "--url", url, "--handlers", "tests.worker_agent.agents"]
            with log.open("wb") as output:
                process = subprocess.Popen(
                    [*command, "--writable", str(tmp_path), "--log-level", "debug", *options],
                    cwd=ROOT,
                    env=os.environ | {"CONVENER_KEY": POOL_KEY} | environment,
                    stdin=subprocess.DEVNULL,
                    stdout=output,
                    stderr=output,
                )
            running.enter_context(process)
            running.callback(process.kill)
            return Worker(process=process, log=log)

        yield start
