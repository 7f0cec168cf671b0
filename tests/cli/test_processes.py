"""The real `convener`: a program of its own, which becomes the API, the loops, or a worker."""

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
import pytest

CONVENER = str(Path(sys.executable).with_name("convener"))


def _environment(tmp_path: Path, **variables: str) -> dict[str, str]:
    inherited = {name: value for name, value in os.environ.items() if not name.startswith("CONVENER_")}
    return inherited | {"CONVENER_STATE_DIRECTORY": str(tmp_path), "COLUMNS": "80"} | variables


def _run(tmp_path: Path, *arguments: str, **variables: str) -> "subprocess.CompletedProcess[str]":
    environment = _environment(tmp_path, **variables)
    return subprocess.run(
        [CONVENER, *arguments], env=environment, cwd=tmp_path, capture_output=True, text=True, timeout=60
    )


@contextmanager
def _running(tmp_path: Path, *arguments: str, **variables: str) -> Iterator["subprocess.Popen[bytes]"]:
    environment = _environment(tmp_path, **variables)
    with (tmp_path / "log").open("wb") as log:
        child = subprocess.Popen([CONVENER, *arguments], env=environment, cwd=tmp_path, stdout=log, stderr=log)
    try:
        yield child
    finally:
        if child.poll() is None:
            child.kill()
        child.wait()


def _until_said(tmp_path: Path, child: "subprocess.Popen[bytes]", words: str) -> None:
    end = time.monotonic() + 60
    while words not in (said := (tmp_path / "log").read_text()):
        assert child.poll() is None, said
        assert time.monotonic() < end, said
        time.sleep(0.05)


def test_the_api_runs_where_somebody_elses_app_lies_about(tmp_path: Path, database_url: str) -> None:
    (tmp_path / "app").mkdir()
    (tmp_path / "app" / "__init__.py").write_text("raise SystemExit('the wrong app')")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    with _running(tmp_path, "api", CONVENER_DATABASE_URL=database_url, CONVENER_PORT=str(port)) as child:
        _until_said(tmp_path, child, "app.main: serving on")
        _until_answered(f"http://127.0.0.1:{port}/readyz", child)
        made = _run(tmp_path, "key", "create", "reader", "--label", "x", CONVENER_DATABASE_URL=database_url)
        url = f"http://127.0.0.1:{port}"
        status = _run(tmp_path, "status", "--url", url, CONVENER_KEY=made.stdout.strip())
        assert status.returncode == 0, status.stderr
        assert "generation" in status.stdout
        child.send_signal(signal.SIGTERM)
        child.wait(30)
    assert "Traceback" not in (tmp_path / "log").read_text()


def test_the_loops_run_and_stop_in_order(tmp_path: Path, database_url: str) -> None:
    with _running(tmp_path, "loops", CONVENER_DATABASE_URL=database_url, CONVENER_POOL_SIZE="0") as child:
        _until_said(tmp_path, child, "app.background: loops are running")
        child.send_signal(signal.SIGTERM)
        assert child.wait(30) == 0


@pytest.mark.slow
@pytest.mark.parametrize(
    ("program", "late_import"), [("app.main", "uvicorn"), ("app.background", "asyncpg"), ("worker_agent", "httpx")]
)
def test_ctrl_c_within_a_start_ends_a_program_without_a_word(program: str, late_import: str) -> None:
    script = f"""
import runpy, signal, sys
class Finder:
    def find_spec(self, name, *_):
        if name == "{late_import}":
            signal.raise_signal(signal.SIGINT)
sys.meta_path.insert(0, Finder())
runpy.run_module("{program}", run_name="__main__", alter_sys=True)
"""
    ended = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=60)
    assert (ended.returncode, ended.stdout, ended.stderr) == (-signal.SIGINT, "", "")


@pytest.mark.slow
def test_loops_leave_the_workers_of_a_state_directory_to_those_that_keep_them(tmp_path: Path) -> None:
    """They would take them for leftovers of theirs and end them, with another database all and at once."""
    pool, nobody = {"CONVENER_POOL_SIZE": "1"}, "postgresql://a:b@127.0.0.1:1/x"
    with _running(tmp_path, "loops", CONVENER_DATABASE_URL=nobody, **pool) as keeper:
        _until_said(tmp_path, keeper, "app.background: loops are running")
        refused = _run(tmp_path, "loops", CONVENER_DATABASE_URL=f"{nobody}2", **pool)
        assert (refused.returncode, refused.stdout) == (1, "")
        words = " ".join(refused.stderr.split())
        assert f"in use by process {keeper.pid}. Stop that process" in words
        assert "CONVENER_POOL_SIZE=0" in words
        keeper.kill()
        keeper.wait()
    with _running(tmp_path, "loops", CONVENER_DATABASE_URL=nobody, **pool) as keeper:
        _until_said(tmp_path, keeper, "app.background: loops are running")


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_start_that_takes_long_can_be_ended(tmp_path: Path, number: signal.Signals) -> None:
    tmp_path.chmod(0o755)
    (tmp_path / "slow_agents.py").write_text("import time\ntime.sleep(600)\n")
    with _running(tmp_path, "up", "--handlers", "slow_agents", "--state", "here", "--port", "0") as child:
        _until_said(tmp_path, child, "loading the handlers slow_agents")
        child.send_signal(number)
        assert child.wait(30) == 130
    log = (tmp_path / "log").read_text()
    assert "stopped before it was up" in log
    assert "Traceback" not in log


@pytest.mark.parametrize("command", ["api", "loops"])
def test_without_a_database_they_say_what_to_do(tmp_path: Path, command: str) -> None:
    done = _run(tmp_path, command)
    assert (done.returncode, done.stdout) == (2, "")
    assert "CONVENER_DATABASE_URL" in done.stderr
    assert "convener up" in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize(
    ("name", "variables"),
    [("Übung".encode(), {"LC_ALL": "C", "PYTHONUTF8": "0"}), ("Übung".encode("latin-1"), {"LC_ALL": "C.UTF-8"})],
)
def test_a_state_directory_whose_name_is_no_text_is_refused_in_a_sentence(
    tmp_path: Path, name: bytes, variables: dict[str, str]
) -> None:
    """It ended in a trace, or was said to be a value that cannot be sent."""
    state = os.fsencode(tmp_path) + b"/" + name
    done = subprocess.run(
        [CONVENER, "up", "--port", "0", "--state", state],
        env={**_environment(tmp_path), **variables},
        capture_output=True,
        timeout=60,
    )
    words = " ".join(done.stderr.decode(errors="replace").split())
    assert (done.returncode, "is no text in this locale" in words, "Traceback" in words) == (1, True, False), words
    assert "LC_ALL=C.UTF-8" in words
    assert not os.path.exists(state)


def test_the_worker_gets_its_arguments_as_they_are(tmp_path: Path) -> None:
    shown = _run(tmp_path, "worker", "--help")
    assert shown.returncode == 0
    assert "usage: convener-worker" in shown.stdout
    refused = _run(tmp_path, "worker", "--url", "http://127.0.0.1:1", "--labels", "a=b", "nonsense")
    assert refused.returncode == 2
    assert "--labels are written KEY=VALUE" in refused.stderr or "no usable pool key" in refused.stderr


def test_a_reader_that_hangs_up_is_no_error(tmp_path: Path) -> None:
    """`convener ... | head`."""
    command = f"set -o pipefail; '{CONVENER}' openapi | head -1"
    done = subprocess.run(
        ["bash", "-c", command], env=_environment(tmp_path), capture_output=True, text=True, timeout=60
    )
    assert done.stdout == "{\n"
    assert "Traceback" not in done.stderr


def _until_answered(url: str, child: "subprocess.Popen[bytes]") -> None:
    end = time.monotonic() + 60
    while time.monotonic() < end:
        assert child.poll() is None
        try:
            if httpx.get(url, trust_env=False, verify=False).status_code == 200:
                return
        except httpx.TransportError:
            time.sleep(0.05)
    raise AssertionError(f"{url} never answered")
