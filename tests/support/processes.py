"""Programs of the service as processes."""

import os
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def process(module: str, environment: Mapping[str, str], log: Path) -> Iterator["subprocess.Popen[bytes]"]:
    """A module that runs as a child, ended by its own pid."""
    with log.open("ab") as output:
        child = subprocess.Popen(
            [sys.executable, "-m", module], env={**os.environ, **environment}, stdout=output, stderr=output
        )
    try:
        yield child
    finally:
        child.terminate()
        try:
            child.wait(10)
        except subprocess.TimeoutExpired:
            child.kill()
            child.wait()


def program(place: Path, name: str, script: str) -> None:
    """A program of this name that runs a script of the shell."""
    path = place / name
    path.write_text(f"#!/bin/sh\n{script}\n")
    path.chmod(0o755)
