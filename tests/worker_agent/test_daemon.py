"""The daemon as a real process against a control plane over real HTTP."""

import re
import shutil
import time
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from tests.worker_agent.conftest import StartWorker
from tests.worker_agent.fake_control_plane import LOST, POOL_KEY, Answer, FakeControlPlane, foreign, problem, served
from tests.worker_agent.processes import pids_in, wait_until_dead
from tests.worker_agent.waiting import until

UNAVAILABLE = Answer(status=503, body={"code": "shutting_down"}, headers=(("retry-after", "0.2"),))


def test_the_whole_day_of_a_worker(plane: FakeControlPlane, url: str, start_worker: StartWorker) -> None:
    tasks = [plane.submit({"do": "echo", "n": n}, goal_id="g", checkpoint={"n": n}) for n in range(3)]
    options = ("--name", "one", "--capabilities", "generation,ranking", "--memory-gb", "2", "--cpu", "1.5")
    worker = start_worker(url, *options, "--labels", "site=lab", "rack=3")
    completions = plane.wait_for("complete", 3)
    until(lambda: len(plane.of("lease")) >= 2)
    worker.signal()
    assert worker.exit_code() == 0

    registration = plane.of("register")[0]
    assert registration.key == POOL_KEY
    assert registration.body["capabilities"] == ["generation", "ranking"]
    assert registration.body["name"] == "one"
    assert (registration.body["memory_gb"], registration.body["cpu_cores"]) == (2.0, 1.5)
    assert registration.body["labels"].items() >= {"site": "lab", "rack": "3"}.items()

    assert [call.path for call in completions] == [f"/leases/{task}/complete" for task in tasks]
    for n, call in enumerate(completions):
        assert call.key == "cvn_worker1_verysecret"
        assert call.body["token"] == n + 1
        assert call.body["result"] == {
            "payload": {"do": "echo", "n": n},
            "attempt": 1,
            "goal": "g",
            "checkpoint": {"n": n},
        }
        assert call.body["usage"].keys() == {"wall_seconds", "cpu_seconds", "max_memory_mb"}
    # The second and third task came with the completion of the one before.
    assert [call.kind for call in plane.calls if call.kind in ("lease", "complete")][:4] == ["lease", *["complete"] * 3]
    assert plane.calls.index(plane.of("heartbeat")[0]) < plane.calls.index(plane.of("lease")[0])
    assert plane.of("goodbye")[0].body == {"reason": "stop signal"}
    assert "verysecret" not in worker.log.read_text()


def test_a_launched_worker_without_usable_handlers_reports_why(
    plane: FakeControlPlane, url: str, start_worker: StartWorker
) -> None:
    worker = start_worker(url, "--launched-as", "test", "--handlers", "no_such_module")
    reports = plane.wait_for("heartbeat", 2)
    assert all("No module named 'no_such_module'" in report.body["not_ready_reason"] for report in reports)
    worker.signal()
    assert worker.exit_code() == 0


def test_heartbeats_tell_state_lease_and_load(
    plane: FakeControlPlane, url: str, start_worker: StartWorker, tmp_path: Path
) -> None:
    file = tmp_path / "pids"
    task = plane.submit({"do": "linger", "file": str(file)})
    worker = start_worker(url, "--grace", "0")
    pids_in(file)
    until(lambda: plane.of("heartbeat")[-1].body["state"] == "busy")
    body = plane.of("heartbeat")[-1].body
    assert body["lease"] == {"task_id": task, "token": 1}
    assert body["memory_mb"] > 10
    assert body["cpu_percent"] >= 0
    worker.signal()
    assert worker.exit_code() == 0


def test_a_lost_answer_is_asked_for_again_under_the_same_id(
    plane: FakeControlPlane, url: str, start_worker: StartWorker
) -> None:
    task = plane.submit({"do": "echo"})
    plane.script["register"] += [LOST, UNAVAILABLE]
    plane.script["lease"] += [LOST, UNAVAILABLE]
    plane.script["complete"] += [LOST, UNAVAILABLE]
    start_worker(url)
    reports = plane.wait_for("complete", 3)
    leases = plane.of("lease")[:3]
    assert len({call.body["request_id"] for call in leases}) == 1
    assert len({call.body["request_id"] for call in plane.of("register")}) == 1
    assert len(plane.of("register")) == 3
    assert {call.path for call in reports} == {f"/leases/{task}/complete"}
    assert len({str(call.body) for call in reports}) == 1


def test_a_fenced_completion_is_not_reported_again(
    plane: FakeControlPlane, url: str, start_worker: StartWorker
) -> None:
    first = plane.submit({"do": "echo"})
    plane.script["complete"].append(problem(409, "lease_superseded"))
    start_worker(url)
    plane.wait_for("complete")
    second = plane.submit({"do": "echo"})
    until(lambda: plane.of("complete")[-1].path == f"/leases/{second}/complete")
    assert [call.path for call in plane.calls if first in call.path] == [f"/leases/{first}/complete"]


def test_whoever_registers_anew_shows_the_key_that_its_file_has_by_then(
    plane: FakeControlPlane, url: str, start_worker: StartWorker, tmp_path: Path
) -> None:
    """As after a rotation; with that of its start it was refused, and ended."""
    file = tmp_path / "pool.key"
    file.write_text("cvn_pool_former\n")
    start_worker(url, "--key-file", str(file))
    for count, text in enumerate(("cvn_pool_rotated\n", ""), 2):
        plane.wait_for("lease", count - 1)
        file.write_text(text)
        plane.script["heartbeat"].append(problem(409, "worker_gone", reason="lost"))
        plane.wait_for("register", count)
    # One that is just being written is no key.
    assert [call.key for call in plane.of("register")] == ["cvn_pool_former", "cvn_pool_rotated", "cvn_pool_former"]


def test_a_cancelled_task_is_killed_and_not_reported(
    plane: FakeControlPlane, url: str, start_worker: StartWorker, tmp_path: Path
) -> None:
    file = tmp_path / "pids"
    task = plane.submit({"do": "linger", "file": str(file), "deaf": True})
    start_worker(url)
    family = pids_in(file)
    plane.direct("cancel_task", task_id=task, token=1)
    wait_until_dead(*family)
    plane.submit({"do": "echo"})
    plane.wait_for("complete")
    assert not [call for call in plane.calls if task in call.path]


def test_a_refused_progress_ends_the_task(plane: FakeControlPlane, url: str, start_worker: StartWorker) -> None:
    task = plane.submit({"do": "advance_and_linger"})
    plane.script["progress"].append(problem(409, "lease_superseded"))
    start_worker(url)
    plane.wait_for("progress")
    plane.submit({"do": "echo"})
    plane.wait_for("complete")
    assert {call.kind for call in plane.calls if task in call.path} == {"progress"}


def test_a_checkpoint_arrives_before_the_failure(plane: FakeControlPlane, url: str, start_worker: StartWorker) -> None:
    plane.submit({"do": "advance"})
    plane.script["progress"] += [UNAVAILABLE] * 2
    start_worker(url)
    (failure,) = plane.wait_for("fail")
    earlier_calls = plane.calls[: plane.calls.index(failure)]
    progress = [call.body for call in earlier_calls if call.kind == "progress"]
    assert progress[-1] == {"token": 1, "percent": 90.0, "checkpoint": {"step": 4}}
    assert failure.body["error"]["code"] == "interrupted"


def test_finished_work_survives_an_outage(
    plane: FakeControlPlane, url: str, start_worker: StartWorker, tmp_path: Path
) -> None:
    plane.lease_seconds = 2.0
    file = tmp_path / "pids"
    plane.submit({"do": "linger", "file": str(file), "seconds": 2.5})
    start_worker(url)
    pids_in(file)
    plane.away = True
    began = time.monotonic()
    until(lambda: time.monotonic() > began + 4.0)
    beats_in_vain = [call for call in plane.of("heartbeat") if call.at > began]
    assert len(beats_in_vain) >= 4  # at least one a second
    assert not plane.of("complete")  # not before a heartbeat has renewed the lease
    plane.away = False
    back = time.monotonic()
    (report,) = plane.wait_for("complete")
    assert report.body["result"] == {"lingered": True}
    assert any(back < call.at < report.at and call.body["lease"] for call in plane.of("heartbeat"))


def test_a_control_plane_that_comes_late_is_waited_for(plane: FakeControlPlane, start_worker: StartWorker) -> None:
    with served(FakeControlPlane()) as address:
        port = int(address.rsplit(":", 1)[-1])
    worker = start_worker(address)
    until(lambda: "ConnectError" in worker.log.read_text())
    plane.submit({"do": "echo"})
    with served(plane, port):
        plane.wait_for("complete")


@pytest.mark.parametrize(
    ("answer", "code", "advice"),
    [
        (problem(401, "unauthorized"), 3, "CONVENER_KEY"),
        (problem(403, "forbidden"), 3, "CONVENER_KEY"),
        (problem(422, "invalid", errors=[{"path": "name", "message": "too long"}]), 2, "too long"),
        (problem(404, "not_found"), 2, "--url"),
        (foreign(404), 2, "--url"),
        (foreign(401), 2, "--url"),
        (problem(409, "worker_gone", reason="superseded"), 4, "replacement"),
    ],
)
def test_a_refused_registration_says_what_to_do(
    plane: FakeControlPlane, url: str, start_worker: StartWorker, answer: Answer, code: int, advice: str
) -> None:
    plane.script["register"].append(answer)
    worker = start_worker(url)
    assert worker.exit_code() == code
    text = worker.log.read_text()
    assert advice in text
    assert "verysecret" not in text
    assert "()" not in text


def test_what_a_stranger_refuses_costs_neither_task_nor_result_nor_worker(
    plane: FakeControlPlane, url: str, start_worker: StartWorker
) -> None:
    plane.submit({"do": "talk", "seconds": 1.5})
    plane.script["complete"] += [foreign(403), foreign(404)]
    start_worker(url)
    plane.wait_for("logs")
    plane.script["heartbeat"] += [foreign(404), foreign(401)]
    reports = plane.wait_for("complete", 3)
    assert not plane.script["heartbeat"]
    assert len({str(call.body) for call in reports}) == 1
    assert (len(plane.of("register")), plane.of("fail")) == (1, [])


def test_a_result_that_is_refused_is_reported_as_a_failure(
    plane: FakeControlPlane, url: str, start_worker: StartWorker
) -> None:
    plane.submit({"do": "echo"})
    plane.script["complete"].append(problem(422, "invalid", detail="a NUL"))
    start_worker(url)
    (failure,) = plane.wait_for("fail")
    message = "the service refused the result: 422 invalid: a NUL"
    assert failure.body["error"] == {"code": "invalid_result", "message": message, "detail": {}, "retryable": False}


def test_errors_that_no_database_can_hold_are_made_fit(
    plane: FakeControlPlane, url: str, start_worker: StartWorker
) -> None:
    plane.submit({"do": "unstorable"})
    start_worker(url)
    (failure,) = plane.wait_for("fail")
    assert failure.body["error"] == {
        "code": "two\ufffdlines\ufffd[2J",
        "message": "no\ufffdthing ?",
        "retryable": False,
        "detail": {"key": ["\ufffd"]},
    }


def test_a_heartbeat_is_not_refused_twice_for_the_same_errors(
    plane: FakeControlPlane, url: str, start_worker: StartWorker
) -> None:
    plane.script["lease"].append(problem(409, "busy"))
    plane.script["heartbeat"] += [Answer(body={"directives": []}), problem(422, "invalid")]
    start_worker(url)
    plane.wait_for("heartbeat", 4)
    reported_errors = [call.body["errors"] for call in plane.of("heartbeat")]
    assert sum(any("RequestLease" in error["message"] for error in errors) for errors in reported_errors) <= 1


def test_local_errors_travel_with_the_next_heartbeat(
    plane: FakeControlPlane, url: str, start_worker: StartWorker
) -> None:
    plane.script["lease"].append(problem(409, "busy"))
    start_worker(url)
    until(lambda: any(call.body["errors"] for call in plane.of("heartbeat")))
    errors = [error for call in plane.of("heartbeat") for error in call.body["errors"]]
    assert "409 busy" in errors[0]["message"]
    assert errors[0]["at"]


def test_a_start_before_the_control_plane_leaves_no_error(
    plane: FakeControlPlane, url: str, start_worker: StartWorker
) -> None:
    plane.script["register"] += [UNAVAILABLE, UNAVAILABLE]
    worker = start_worker(url)
    plane.wait_for("heartbeat", 2)
    assert [error for call in plane.of("heartbeat") for error in call.body["errors"]] == []
    # But for the time of a line, which may end in these three digits.
    assert not re.search(r"(?<!\.)\b503\b", worker.log.read_text())


def test_a_task_without_a_handler_goes_to_another_worker(
    plane: FakeControlPlane, url: str, start_worker: StartWorker
) -> None:
    plane.submit({"do": "echo"}, agent_type="ranking")
    start_worker(url, "--capabilities", "generation")
    (failure,) = plane.wait_for("fail")
    assert (failure.body["error"]["code"], failure.body["error"]["retryable"]) == ("handler_unavailable", True)


def test_a_worker_that_has_no_room_for_a_handler_hands_its_task_back_and_says_so(
    plane: FakeControlPlane, url: str, start_worker: StartWorker, tmp_path: Path
) -> None:
    directory = tmp_path / "temporary"
    directory.mkdir()
    directory.chmod(0o777)
    start_worker(url, TMPDIR=str(directory))
    plane.wait_for("lease")
    shutil.rmtree(directory)
    plane.submit({"do": "echo"})
    (release,) = plane.wait_for("release")
    assert "no handler can be started here" in release.body["reason"]
    until(lambda: "can be started here" in str([call.body["errors"] for call in plane.of("heartbeat")]))
    directory.mkdir()
    directory.chmod(0o777)
    plane.submit({"do": "echo"})
    plane.wait_for("complete")
    assert plane.of("lease")[-1].at - release.at >= 1.0
    assert plane.of("fail") == []


def _confinement(plane: FakeControlPlane, count: int) -> Any:
    plane.submit({"do": "confined"}, timeout_seconds=50)
    return plane.wait_for("complete", count)[-1].body["result"]


def test_new_limits_hold_for_the_next_task_and_never_pass_the_workers_own(
    plane: FakeControlPlane, url: str, start_worker: StartWorker
) -> None:
    plane.assignment = {"version": "one", "agent": "ranking", "memory_gb": 1.5, "cpu_cores": 2, "compute_seconds": None}
    start_worker(url, "--memory-gb", "3", "--cpu", "4")
    assert _confinement(plane, 1) == {"DATA": 1.5 * 2**30, "CPU": 100, "threads": "2", "go": "2"}
    plane.assignment |= {"version": "two", "memory_gb": 64, "cpu_cores": 16}
    until(lambda: plane.of("heartbeat")[-1].body.get("assignment") == "two")
    assert _confinement(plane, 2) == {"DATA": 3 * 2**30, "CPU": 200, "threads": "4", "go": "4"}


def test_limits_whose_answer_was_lost_are_told_again(
    plane: FakeControlPlane, url: str, start_worker: StartWorker
) -> None:
    plane.assignment = {"version": "one", "agent": None, "memory_gb": 1.5, "cpu_cores": 0.5, "compute_seconds": None}
    plane.script["heartbeat"].extend([LOST, LOST])
    start_worker(url)
    until(lambda: plane.of("heartbeat") and plane.of("heartbeat")[-1].body.get("assignment") == "one")
    assert not any("assignment" in beat.body for beat in plane.of("heartbeat")[:3])
    assert _confinement(plane, 1)["DATA"] == 1.5 * 2**30


def _output(plane: FakeControlPlane) -> dict[str, str]:
    pieces = [piece for call in plane.of("logs") for piece in call.body["pieces"]]
    return {stream: "".join(p["text"] for p in pieces if p["stream"] == stream) for stream in ("stdout", "stderr")}


def test_what_a_successful_handler_prints_and_logs_arrives_before_its_result(
    plane: FakeControlPlane, url: str, start_worker: StartWorker
) -> None:
    plane.submit({"do": "talk", "lines": 3})
    plane.submit({"do": "echo"})
    start_worker(url)
    plane.wait_for("complete", 2)
    kinds = [call.kind for call in plane.calls if call.kind in ("logs", "complete")]
    assert kinds == ["logs", "complete", "complete"], "one call for a short task, none for a silent one"
    assert _output(plane)["stdout"] == "line 0\nline 1\nline 2\n"
    assert re.fullmatch(r"[-0-9]+ [0-9:,]+ INFO agent: logged\nthe end\n", _output(plane)["stderr"])


def test_output_is_sent_while_a_handler_runs(plane: FakeControlPlane, url: str, start_worker: StartWorker) -> None:
    plane.submit({"do": "talk", "seconds": 300})
    start_worker(url)
    plane.wait_for("logs")
    assert _output(plane)["stdout"] == "line 0\n"
    assert plane.of("complete") == []


def test_much_output_costs_few_calls(plane: FakeControlPlane, url: str, start_worker: StartWorker) -> None:
    plane.submit({"do": "talk", "lines": 1_000_000})
    start_worker(url)
    plane.wait_for("complete")
    calls = plane.of("logs")
    assert all(later.at - earlier.at > 0.9 for earlier, later in pairwise(calls[:-4]))
    text = _output(plane)["stdout"]
    assert text.startswith("line 0\nline 1\n")
    assert text.endswith("line 999998\nline 999999\n")
    assert sum(len(piece["text"]) for call in calls for piece in call.body["pieces"]) <= 65_536 * (len(calls) + 1)


def test_a_control_plane_that_keeps_no_output_gets_results_all_the_same(
    plane: FakeControlPlane, url: str, start_worker: StartWorker
) -> None:
    plane.script["logs"].append(problem(404, "not_found"))
    plane.submit({"do": "talk"})
    start_worker(url)
    plane.wait_for("complete")
    assert len(plane.of("logs")) == 1
