"""The end of a worker: by signals, directives, kill -9 and the loss of its registration."""

import contextlib
import signal
from pathlib import Path

import psutil
import pytest

from tests.worker_agent.conftest import StartWorker
from tests.worker_agent.fake_control_plane import Answer, FakeControlPlane, problem, served
from tests.worker_agent.processes import is_dead, pids_in, wait_until_dead
from tests.worker_agent.waiting import until

# So long that only a call that was cut short can explain that the test goes on.
FOREVER = 25.0


def test_a_signal_cuts_the_long_poll_short(plane: FakeControlPlane, url: str, start_worker: StartWorker) -> None:
    plane.longest_wait = FOREVER
    worker = start_worker(url)
    plane.wait_for("lease")
    worker.signal()
    assert worker.exit_code() == 0
    assert len(plane.of("lease")) == 1
    assert plane.of("goodbye")[0].at - plane.of("lease")[0].at < FOREVER


def test_a_signal_lets_the_task_finish(
    plane: FakeControlPlane, url: str, start_worker: StartWorker, tmp_path: Path
) -> None:
    file = tmp_path / "pids"
    plane.submit({"do": "linger", "file": str(file), "seconds": 1.5})
    plane.submit({"do": "echo"})
    worker = start_worker(url)
    pids_in(file)
    worker.signal()
    until(lambda: plane.of("heartbeat")[-1].body["state"] == "draining")
    assert worker.exit_code() == 0
    (report,) = plane.of("complete")
    assert "next" not in report.body
    assert len(plane.of("lease")) == 1
    assert plane.calls[-1].kind in ("goodbye", "heartbeat")


@pytest.mark.parametrize("second_signal", [False, True])
def test_after_the_grace_the_task_is_handed_back(
    plane: FakeControlPlane, url: str, start_worker: StartWorker, tmp_path: Path, second_signal: bool
) -> None:
    file = tmp_path / "pids"
    task = plane.submit({"do": "linger", "file": str(file), "deaf": True})
    worker = start_worker(url, "--grace", "3600" if second_signal else "0.5")
    family = pids_in(file)
    worker.signal()
    if second_signal:
        until(lambda: plane.of("heartbeat")[-1].body["state"] == "draining")
        worker.signal(signal.SIGINT)
    assert worker.exit_code() == 0
    wait_until_dead(*family)
    (release,) = plane.of("release")
    assert (release.path, release.body) == (f"/leases/{task}/release", {"token": 1, "reason": "stop signal"})
    assert plane.of("goodbye")


def test_a_signal_to_all_processes_of_a_worker_costs_its_task_no_attempt(
    plane: FakeControlPlane, url: str, start_worker: StartWorker, tmp_path: Path
) -> None:
    """So systemd stops a unit, and PBS and some Slurm a job: the handler may end before its worker hears of it."""
    file = tmp_path / "pids"
    task = plane.submit({"do": "linger", "file": str(file)})
    worker = start_worker(url)
    family = pids_in(file)
    for process in reversed(psutil.Process(worker.process.pid).children(recursive=True)):
        # The handler takes its children along.
        with contextlib.suppress(psutil.NoSuchProcess):
            process.terminate()
    worker.signal()
    assert worker.exit_code() == 0
    wait_until_dead(*family)
    assert not plane.of("fail")
    (release,) = plane.of("release")
    assert (release.path, release.body) == (f"/leases/{task}/release", {"token": 1, "reason": "stop signal"})


def test_a_signal_ends_a_worker_whose_control_plane_is_away(start_worker: StartWorker) -> None:
    with served(FakeControlPlane()) as address:
        pass
    worker = start_worker(address)
    until(lambda: "the control plane has been away for" in worker.log.read_text())
    worker.signal()
    assert worker.exit_code() == 0


def test_a_killed_daemon_takes_its_handler_along(
    plane: FakeControlPlane, url: str, start_worker: StartWorker, tmp_path: Path
) -> None:
    file = tmp_path / "pids"
    plane.submit({"do": "linger", "file": str(file), "deaf": True})
    worker = start_worker(url)
    handler, grandchild = pids_in(file)
    worker.signal(signal.SIGKILL)
    wait_until_dead(handler)
    if not is_dead(grandchild):
        psutil.Process(grandchild).kill()


def test_a_stop_directive_drains(plane: FakeControlPlane, url: str, start_worker: StartWorker) -> None:
    worker = start_worker(url)
    plane.wait_for("lease")
    plane.direct("stop")
    assert worker.exit_code() == 0
    assert plane.of("goodbye")[0].body == {"reason": "the test says so"}


def test_a_restarted_worker_comes_back_under_its_name(
    plane: FakeControlPlane, url: str, start_worker: StartWorker
) -> None:
    start_worker(url, "--name", "phoenix")
    plane.wait_for("lease")
    plane.direct("restart")
    first, second = plane.wait_for("register", 2)
    assert first.body["name"] == second.body["name"] == "phoenix"
    assert first.body["pid"] == second.body["pid"]
    assert plane.of("goodbye")


def test_a_lost_worker_kills_its_task_and_registers_again(
    plane: FakeControlPlane, url: str, start_worker: StartWorker, tmp_path: Path
) -> None:
    file = tmp_path / "pids"
    task = plane.submit({"do": "linger", "file": str(file)})
    start_worker(url)
    family = pids_in(file)
    plane.script["heartbeat"].append(problem(409, "worker_gone", reason="lost"))
    wait_until_dead(*family)
    plane.wait_for("register", 2)
    plane.submit({"do": "echo"})
    (report,) = plane.wait_for("complete")
    assert report.key == "cvn_worker2_verysecret"
    assert not [call for call in plane.calls if task in call.path]


@pytest.mark.parametrize("kind", ["lease", "heartbeat"])
@pytest.mark.parametrize("refusal", [problem(401, "unauthenticated"), problem(429, "too_many_failures")])
def test_an_unknown_key_is_met_by_registering_again(
    plane: FakeControlPlane, url: str, start_worker: StartWorker, kind: str, refusal: Answer
) -> None:
    """An address from which many unknown keys have come gets 429 in place of 401."""
    plane.script[kind].append(refusal)
    start_worker(url)
    plane.wait_for("register", 2)
    plane.wait_for("lease", 2)


@pytest.mark.parametrize(("reason", "code"), [("stopped", 0), ("superseded", 4)])
def test_a_worker_that_was_stopped_or_superseded_exits(
    plane: FakeControlPlane, url: str, start_worker: StartWorker, tmp_path: Path, reason: str, code: int
) -> None:
    file = tmp_path / "pids"
    plane.submit({"do": "linger", "file": str(file)})
    worker = start_worker(url)
    family = pids_in(file)
    plane.script["heartbeat"].append(problem(409, "worker_gone", reason=reason))
    assert worker.exit_code() == code
    wait_until_dead(*family)
    assert len(plane.of("register")) == 1
