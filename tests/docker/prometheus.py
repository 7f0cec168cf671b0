"""Runs Prometheus and promtool; where they are missing a test is skipped, unless it is told that it must not be."""

import os
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest
from ruamel.yaml import YAML

from tests.support.ports import free_port

# What `.ci/run` sets once it has installed the programs.
REQUIRED = "CONVENER_TEST_PROMTOOL"
REQUIRED_SERVER = "CONVENER_TEST_PROMETHEUS"


def promtool(*words: str | Path) -> None:
    """Raises AssertionError with all that it said when it is not content."""
    verdict = subprocess.run([_program("promtool", REQUIRED), *words], capture_output=True, text=True)
    assert verdict.returncode == 0, verdict.stdout + verdict.stderr


@contextmanager
def prometheus(configuration: dict[str, Any], directory: Path) -> Iterator[httpx.AsyncClient]:
    """A server with this configuration, and a client of it; it keeps its data in the directory."""
    program, port = _program("prometheus", REQUIRED_SERVER), free_port()
    file, log = directory / "prometheus.yml", directory / "prometheus.log"
    YAML().dump(configuration, file)
    command = [
        program,
        f"--config.file={file}",
        f"--storage.tsdb.path={directory / 'data'}",
        f"--web.listen-address=127.0.0.1:{port}",
    ]
    with log.open("wb") as output:
        child = subprocess.Popen(command, stdout=output, stderr=output)
    try:
        yield httpx.AsyncClient(base_url=f"http://127.0.0.1:{port}", trust_env=False)
    finally:
        child.terminate()
        child.wait()


def _program(name: str, variable: str) -> str:
    program = shutil.which(name)
    if program is None:
        assert not os.environ.get(variable), f"{name} is missing, and these tests must not be skipped"
        pytest.skip(f"{name} is not installed (Debian: apt-get install {name})")
    return program
