"""`convener init`: the folder that it makes runs as it stands, and no file is replaced."""

import os
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path

import pytest

from tests.support.command_line import CommandLine, parse
from tests.support.ports import free_port

_FILES = ["my_agents.py", "supervisor.py", "test_my_agents.py"]


def _variables(state: Path) -> dict[str, str]:
    others = {name: value for name, value in os.environ.items() if not name.startswith("CONVENER_")}
    return {**others, "CONVENER_STATE_DIRECTORY": str(state)}


def _run(words: list[str], folder: Path, environment: Mapping[str, str]) -> "subprocess.CompletedProcess[str]":
    command = [sys.executable, *words]
    return subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, timeout=120)


def test_it_says_what_comes_next_and_replaces_nothing(offline: CommandLine, tmp_path: Path) -> None:
    folder = tmp_path / "my lab"
    made = offline.run("init", str(folder), "-o", "json")
    assert (made.code, made.json["files"]) == (0, _FILES)
    assert made.json["next"][0] == f"cd '{folder}'"
    assert sorted(path.name for path in folder.iterdir()) == _FILES
    parse(made.json["next"][1])
    (folder / "supervisor.py").write_text("mine")
    (folder / "my_agents.py").unlink()
    again = offline.run("init", str(folder))
    assert (again.code, "supervisor.py" in again.err, "What to do" in again.err) == (1, True, True)
    assert (folder / "supervisor.py").read_text() == "mine"
    assert not (folder / "my_agents.py").exists()
    assert offline.run("init", str(folder / "supervisor.py" / "x")).code == 1


@pytest.mark.parametrize("is_stopped", [False, True], ids=["never started", "stopped"])
def test_without_a_service_its_test_is_left_out(offline: CommandLine, tmp_path: Path, is_stopped: bool) -> None:
    folder, state = tmp_path / "lab", tmp_path / "state"
    assert offline.run("init", str(folder)).code == 0
    if is_stopped:
        state.mkdir()
        (state / "url").write_text(f"http://127.0.0.1:{free_port()}")
        (state / "supervisor.key").write_text("cvn_a_b")
        (state / "supervisor.key").chmod(0o600)
    done = _run(["-m", "unittest"], folder, _variables(state))
    assert (done.returncode, "OK (skipped=1)" in done.stderr) == (0, True), done.stderr


@pytest.mark.slow
def test_agent_supervisor_and_test_run_as_they_are(offline: CommandLine, tmp_path: Path) -> None:
    folder, state = tmp_path / "lab", tmp_path / "state"
    assert offline.run("init", str(folder)).code == 0
    # Where the tests run as root, handlers are other users, who must be able to read their code.
    for directory in (folder, *folder.parents[:2]):
        directory.chmod(0o755)
    environment = _variables(state)
    words = [sys.executable, "-m", "app.cli", "up", "--port", "0", "--workers", "2", "--handlers", "my_agents"]
    with (tmp_path / "log").open("w") as log:
        up = subprocess.Popen(words, cwd=folder, env=environment, stdout=log, stderr=log)
    try:
        end = time.monotonic() + 120
        while not (state / "url").exists():
            assert up.poll() is None, (tmp_path / "log").read_text()
            assert time.monotonic() < end, (tmp_path / "log").read_text()
            time.sleep(0.1)
        done = _run(["-m", "unittest"], folder, environment)
        assert (done.returncode, done.stderr.strip().splitlines()[-1]) == (0, "OK"), done.stderr
        report = _run(["supervisor.py", "kepler"], folder, environment)
        assert "'reason': 'no improvement" in report.stdout, report.stderr
    finally:
        up.terminate()
        up.wait(60)
