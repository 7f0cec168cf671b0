"""The pilot of a node: which file of keys it trusts, and that it restarts its workers with the key of the moment."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from app.cli.pilot import _node, _seconds
from app.relay.pilot import read_secrets
from app.secrecy import write_private
from tests.worker_agent.fake_control_plane import POOL_KEY, FakeControlPlane, served
from tests.worker_agent.waiting import until


def test_a_file_that_others_can_read_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "secrets"
    assert read_secrets(path) is None
    write_private(path, '{"CONVENER_KEY": "k"}')
    assert read_secrets(path) == {"CONVENER_KEY": "k"}
    path.chmod(0o640)
    with pytest.raises(ValueError, match="others can read"):
        read_secrets(path)


def test_links_and_other_values_are_refused(tmp_path: Path) -> None:
    write_private(tmp_path / "secrets", '["k"]')
    with pytest.raises(ValueError, match="no JSON object of texts"):
        read_secrets(tmp_path / "secrets")
    (tmp_path / "link").symlink_to("secrets")
    with pytest.raises(OSError, match="symbolic links"):
        read_secrets(tmp_path / "link")


def test_schedulers_tell_the_node_and_the_end() -> None:
    assert [_node({"SLURM_NODEID": "3"}), _node({"PBS_NODENUM": "2"}), _node({})] == [3, 2, 0]
    assert [_seconds({"SLURM_JOB_END_TIME": "1060"}, 1000.0), _seconds({}, 1000.0)] == [60.0, None]


@pytest.fixture
def plane() -> FakeControlPlane:
    return FakeControlPlane()


@pytest.mark.slow
def test_workers_register_through_the_relay_and_are_started_again(plane: FakeControlPlane, tmp_path: Path) -> None:
    secrets = tmp_path / "secrets"
    with served(plane) as url, (tmp_path / "log").open("wb") as log:
        words = ["--url", url, "--name", "b", "--node", "1", "--slots", "2", "--secrets", str(secrets), "--grace", "1"]
        pilot = subprocess.Popen(
            [sys.executable, "-m", "app.cli", "pilot", *words, "--", "--handlers", "examples.echo"],
            stdout=log,
            stderr=log,
        )
        try:
            write_private(tmp_path / "new", json.dumps({"CONVENER_KEY": POOL_KEY}))
            os.replace(tmp_path / "new", secrets)
            registrations = plane.wait_for("register", 2)
            assert {call.body["name"] for call in registrations} == {"b-1-0", "b-1-1"}
            os.kill(registrations[0].body["pid"], signal.SIGKILL)
            again = plane.wait_for("register", 3)[2]
            assert again.body["name"] == registrations[0].body["name"]
            pilot.terminate()
            assert pilot.wait(20) == 0
            until(lambda: not any(Path(f"/proc/{call.body['pid']}").exists() for call in plane.of("register")[1:]))
        finally:
            pilot.kill()
            pilot.wait()
    assert "CONVENER" not in (tmp_path / "log").read_text()


@pytest.mark.slow
def test_nothing_outlives_a_pilot_that_is_killed(plane: FakeControlPlane, tmp_path: Path) -> None:
    """A batch scheduler takes a job for running as long as anything of it writes to its output."""
    write_private(tmp_path / "secrets", json.dumps({"CONVENER_KEY": POOL_KEY}))
    words = ["--name", "b", "--node", "0", "--slots", "2", "--secrets", str(tmp_path / "secrets"), "--grace", "1"]
    with served(plane) as url:
        pilot = subprocess.Popen(
            [sys.executable, "-m", "app.cli", "pilot", "--url", url, *words, "--", "--handlers", "examples.echo"],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
        )
        plane.wait_for("register", 2)
        pilot.kill()
        pilot.communicate(timeout=30)  # returns once nobody holds the output any more
