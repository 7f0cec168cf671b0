"""Errors that are to be expected: a sentence, what to do, and the documented exit code; JSON where it was asked for."""

import json
import os
import subprocess
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from uuid import uuid4

import pytest

from tests.conftest import named, run_on
from tests.support.command_line import CommandLine
from tests.support.ports import free_port


@pytest.fixture
async def empty_url(server_url: str) -> AsyncIterator[str]:
    """A database without a schema."""
    name = f"convener_empty_{uuid4().hex[:12]}"
    await run_on(server_url, f"CREATE DATABASE {name}")
    yield named(server_url, name)
    await run_on(server_url, f"DROP DATABASE {name} WITH (FORCE)")


def _nobody() -> str:
    return f"postgresql://a:b@127.0.0.1:{free_port()}/x"


@pytest.mark.parametrize(
    ("variables", "code", "words"),
    [
        ({"CONVENER_PORT": "abc"}, 2, "CONVENER_PORT"),
        ({"CONVENER_STATE_DIRECTORY": "/proc/nowhere"}, 1, "cannot use /proc/nowhere"),
        ({"CONVENER_DATABASE_URL": _nobody()}, 3, "the database cannot be reached"),
    ],
)
def test_what_keeps_up_from_starting(tmp_path: Path, variables: dict[str, str], code: int, words: str) -> None:
    others = {name: value for name, value in os.environ.items() if not name.startswith("CONVENER_")}
    environment = {**others, "CONVENER_STATE_DIRECTORY": str(tmp_path), "COLUMNS": "200", **variables}
    command = [sys.executable, "-m", "app.cli", "up", "--port", "0"]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120)
    assert done.returncode == code
    assert words in done.stderr
    assert "Traceback" not in done.stderr


def test_a_database_without_a_schema_is_no_success(empty_url: str) -> None:
    for more in ((), ("-o", "json")):
        done = CommandLine(environment={"CONVENER_DATABASE_URL": empty_url}).run("db", "status", *more)
        assert done.code == 1


@pytest.mark.parametrize("words", [("-o", "json"), ("--output", "json"), ("--output=json",)])
def test_errors_are_json_where_the_answer_would_be(words: tuple[str, ...]) -> None:
    url = f"http://127.0.0.1:{free_port()}"
    done = CommandLine(environment={"CONVENER_URL": url, "CONVENER_KEY": "cvn_a_b"}).run("tasks", "ls", *words)
    assert (done.code, done.out) == (3, "")
    failure = json.loads(done.err)
    assert failure["exit_code"] == 3
    assert url in failure["error"]
    assert failure["hint"]
