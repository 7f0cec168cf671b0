"""Runs promtool; where it is missing a test is skipped, unless it is told that it must not be."""

import os
import shutil
import subprocess
from pathlib import Path

import pytest

# What `.ci/run` sets once it has installed the program.
REQUIRED = "CONVENER_TEST_PROMTOOL"


def promtool(*words: str | Path) -> None:
    """Raises AssertionError with all that it said when it is not content."""
    program = shutil.which("promtool")
    if program is None:
        assert not os.environ.get(REQUIRED), "promtool is missing, and these tests must not be skipped"
        pytest.skip("promtool is not installed (Debian: apt-get install promtool)")
    verdict = subprocess.run([program, *words], capture_output=True, text=True)
    assert verdict.returncode == 0, verdict.stdout + verdict.stderr
