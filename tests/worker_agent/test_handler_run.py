"""Handlers in real processes: what they may do, and how each of their ends is reported."""

import json
import os
import re
import subprocess
import sys
import time
from pathlib import Path
from queue import SimpleQueue
from threading import Thread
from typing import Any

import pytest

from tests.worker_agent.agents import DETAILS
from tests.worker_agent.confining import refuse_to_confine, rules
from tests.worker_agent.processes import pids_in, wait_until_dead
from worker_agent import events as ev
from worker_agent.child_process import ChildProcess, ResourceLimits, start_child
from worker_agent.confinement import Confinement
from worker_agent.handler_run import HandlerRun
from worker_agent.handlers import Handler
from worker_agent.wire import Lease

PATIENCE = 60.0
PYTHON = Handler(target="tests.worker_agent.agents:act")
_PRINT_NAMES = f"{sys.executable} -c 'import json, os; print(json.dumps(dict(names=list(os.environ))))'"


class Started:
    """A run and what it posted."""

    def __init__(self, lease: Lease, handler: Handler, limits: ResourceLimits, confinement: Confinement) -> None:
        self._events: SimpleQueue[ev.Event] = SimpleQueue()
        self.progress: list[ev.ProgressMade] = []
        child = start_child(lease, handler, limits, confinement, {})
        self.run = HandlerRun(child, lease.timeout_seconds, self._events.put)

    def end(self) -> ev.Event:
        while isinstance(event := self._events.get(timeout=PATIENCE), ev.ProgressMade):
            self.progress.append(event)
        return event


def start(
    payload: dict[str, Any],
    *,
    handler: Handler = PYTHON,
    timeout_seconds: float = PATIENCE,
    memory_gb: float = 2.0,
    confinement: Confinement | None = None,
    **more: Any,
) -> Started:
    lease = Lease(
        task_id="t-1", token=1, agent_type="generation", payload=payload, timeout_seconds=timeout_seconds, **more
    )
    return Started(lease, handler, ResourceLimits(memory_gb=memory_gb, cpu_cores=1.0), confinement or rules())


@pytest.mark.parametrize("deed", ["postponed", "postponed_by_a_process_of_a_pool"])
def test_a_task_that_is_handed_back_for_later_has_not_failed(deed: str) -> None:
    end = start({"do": deed}).end()
    assert isinstance(end, ev.HandlerPostponed)
    assert (end.postponement.seconds, end.postponement.reason) == (7.5, "the model has no room")


@pytest.mark.parametrize(("seconds", "until"), [("-5", 0.0), ("inf", 3600.0)])
def test_a_task_is_handed_back_until_a_moment_that_is_past_or_never_comes(seconds: str, until: float) -> None:
    end = start({"do": "postponed", "seconds": seconds}).end()
    assert isinstance(end, ev.HandlerPostponed)
    assert end.postponement.seconds == until


@pytest.mark.parametrize(
    ("deed", "code"),
    [("coded_by_an_error", "no such planet"), ("coded_by_a_member_of_an_enumeration", "no_planet")],
)
def test_a_failure_whose_code_is_no_plain_text_is_still_permanent(deed: str, code: str) -> None:
    end = start({"do": deed}).end()
    assert isinstance(end, ev.HandlerFailed)
    assert (end.error.code, end.error.retryable) == (code, False)


def test_a_handler_that_nobody_can_watch_is_ended(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    started: list[ChildProcess] = []
    files = Path("/proc/self/fd")

    real = start_child

    def start_and_note(*given: Any) -> ChildProcess:
        started.append(real(*given))
        return started[-1]

    def fail(_: Thread) -> None:
        raise RuntimeError("can't start new thread")

    before = len(list(files.iterdir()))
    monkeypatch.setattr("tests.worker_agent.test_handler_run.start_child", start_and_note)
    monkeypatch.setattr(Thread, "start", fail)
    with pytest.raises(OSError, match="can't start new thread"):
        start({"do": "linger", "file": str(tmp_path / "pids")})
    assert started[0].process.returncode is not None
    wait_until_dead(started[0].process.pid)
    assert len(list(files.iterdir())) == before


def finished(payload: dict[str, Any], **more: Any) -> dict[str, Any]:
    end = start(payload, **more).end()
    assert isinstance(end, ev.HandlerFinished), end
    return end.result


def failure(payload: dict[str, Any], **more: Any) -> Any:
    end = start(payload, **more).end()
    assert isinstance(end, ev.HandlerFailed), end
    return end.error


def command(*words: str) -> Handler:
    return Handler(command=words)


def shell(script: str) -> Handler:
    return command("sh", "-c", script)


def test_a_function_gets_its_task_and_its_result_comes_back() -> None:
    result = finished({"do": "echo", "text": "é"}, attempt=2, goal_id="g", checkpoint={"at": 3})
    assert result == {
        "payload": {"do": "echo", "text": "é"},
        "attempt": 2,
        "goal": "g",
        "checkpoint": {"at": 3},
    }


def test_coroutine_functions_are_awaited() -> None:
    assert finished({"do": "asynchronous"}) == {"awaited": {"do": "asynchronous"}}


def test_large_payloads_and_results_pass() -> None:
    text = "x" * (3 * 2**20)
    assert finished({"do": "echo", "text": text})["payload"]["text"] == text


@pytest.mark.parametrize(
    ("payload", "code", "retryable"),
    [
        ({"do": "nan"}, "invalid_result", True),
        ({"do": "not_an_object"}, "invalid_result", True),
        ({"do": "big", "bytes": 11 * 2**20}, "result_too_large", True),
        ({"do": "permanent"}, "bad_input", False),
        ({"do": "transient"}, "gateway_busy", True),
        ({"do": "bug"}, "handler_error", True),
        ({"do": "leave"}, "handler_exited", True),
        ({"do": "segfault"}, "handler_crashed", True),
        ({"do": "kill_self"}, "handler_crashed", True),
    ],
)
def test_failures_are_told_apart(payload: dict[str, Any], code: str, retryable: bool) -> None:
    error = failure(payload)
    assert (error.code, error.retryable) == (code, retryable)


@pytest.mark.parametrize(
    ("text", "why"),
    [
        (r'{"x": "\ud800"}', "U\\+D800"),
        (r'{"\ud800": 1}', "U\\+D800"),
        (r'{"x": ["\u0000"]}', "U\\+0000"),
        (f'{{"x": {"[" * 700}"\\u0000"{"]" * 700}}}', "U\\+0000"),
        ('{"x": 1e999}', "infinity|not JSON"),
    ],
)
def test_a_result_that_no_database_can_hold_is_the_handlers_mistake(text: str, why: str) -> None:
    for error in (failure({"do": "written", "json": text}), failure({}, handler=command("printf", "%s", text))):
        assert (error.code, error.retryable) == ("invalid_result", True)
        assert re.search(why, error.message)


def test_what_only_looks_like_such_a_character_passes() -> None:
    assert finished({"do": "written", "json": r'{"x": "\\u0000"}'}) == {"x": r"\u0000"}


def test_a_result_of_too_many_values_is_the_handlers_mistake() -> None:
    error = failure({"do": "many", "count": 400_000})
    assert error.code == "result_too_large"
    assert "more values than a result may have" in error.message
    program = command(sys.executable, "-c", "print('{\"a\": [' + '[],' * 400_000 + '1]}')")
    error = failure({}, handler=program)
    assert error.code == "invalid_result"
    assert "more values than a result may have" in error.message


def test_a_result_counts_as_it_is_sent() -> None:
    program = "import json; print(json.dumps({'text': 'é' * 4_000_000}, ensure_ascii=False))"
    assert failure({}, handler=command(sys.executable, "-c", program)).code == "result_too_large"


def test_a_failure_explains_itself() -> None:
    assert "ValueError: a bug" in failure({"do": "bug"}).detail["traceback"]
    assert failure({"do": "permanent"}).detail == {"planet": "Vulcan", "odd": "{1, 2}"}
    crash = failure({"do": "segfault"})
    assert "SIGSEGV" in crash.message
    assert "about to fall" in crash.detail["output"]


@pytest.mark.parametrize("detail", list(DETAILS))
def test_a_failure_stays_permanent_whatever_its_details_are(detail: str) -> None:
    error = failure({"do": "permanent_with", "detail": detail})
    assert (error.code, error.message, error.retryable) == ("bad_input", "no such planet", False)
    assert list(error.detail) == ["left_out"]


def test_an_error_without_a_text_is_told_with_its_kind() -> None:
    error = failure({"do": "mute"})
    assert (error.code, error.message) == ("handler_error", "MuteError: it cannot be shown")


def test_a_failure_in_a_group_of_coroutines_is_that_failure() -> None:
    error = failure({"do": "group"})
    assert (error.code, error.retryable) == ("bad_input", False)


@pytest.mark.parametrize("way", ["exit", "error", "postponed"])
def test_a_process_that_the_handler_forked_does_not_speak_for_it(way: str) -> None:
    assert finished({"do": "fork", "way": way}) == {"by": "the handler"}


def test_a_closed_stream_does_not_hold_the_worker() -> None:
    started_at = time.monotonic()
    assert finished({"do": "close_stdout"}) == {"fine": True}
    assert time.monotonic() - started_at < PATIENCE / 2


@pytest.mark.parametrize(
    ("checkpoint", "why"),
    [
        ("list", "a checkpoint is a dict, not list"),
        ("large", "TooLarge: the message has .* bytes"),
        ("many", "TooLarge: the message is JSON with more values"),
    ],
)
def test_a_checkpoint_that_cannot_be_kept_is_the_handlers_mistake(checkpoint: str, why: str) -> None:
    error = failure({"do": "keep", "checkpoint": checkpoint})
    assert error.code == "handler_error"
    assert re.search(why, error.message)


@pytest.mark.skipif(sys.platform != "linux", reason="other systems do not confine handlers")
def test_an_error_of_writing_says_where_a_handler_may_write() -> None:
    assert "CONVENER_HANDLER_WRITABLE" in failure({"do": "written_beside"}).detail["hint"]


def test_an_error_for_want_of_room_says_how_much_a_handler_has() -> None:
    hint = failure({"do": "large_file"}).detail["hint"]
    assert "1 GiB" in hint
    assert "CONVENER_HANDLER_MAX_FILE_GB" in hint


def test_noise_on_stdout_and_stderr_does_not_reach_the_result() -> None:
    started = start({"do": "noise", "lines": 2000})
    end = started.end()
    assert isinstance(end, ev.HandlerFinished)
    assert end.result == {"fine": True}
    assert started.progress == []


def test_progress_arrives_and_the_last_checkpoint_with_it() -> None:
    started = start({"do": "advance"})
    assert isinstance(started.end(), ev.HandlerFailed)
    last = started.progress[-1].progress
    assert (last.percent, last.checkpoint) in [(90.0, {"step": 4}), (90.0, None)]
    checkpoints = [each.progress.checkpoint for each in started.progress if each.progress.checkpoint is not None]
    assert checkpoints[-1] == {"step": 4}


def test_a_checkpoint_is_given_back() -> None:
    assert finished({"do": "advance"}, checkpoint={"step": 4}) == {"resumed_at": 4}


def test_a_handler_cannot_take_more_memory_than_allowed() -> None:
    error = failure({"do": "gulp"}, memory_gb=0.5)
    assert error.code == "memory_limit"
    assert "the limit is 0.50 GiB" in error.message


def test_processor_time_is_limited_too() -> None:
    lease = Lease(task_id="t-1", token=1, agent_type="generation", payload={"do": "spin"}, timeout_seconds=1.0)
    events: SimpleQueue[ev.Event] = SimpleQueue()
    # The wall limit of the run is far away, that of the processor comes from the lease's own.
    limits = ResourceLimits(memory_gb=1.0, cpu_cores=1.0)
    HandlerRun(start_child(lease, PYTHON, limits, rules(), {}), PATIENCE, events.put)
    end = events.get(timeout=PATIENCE)
    assert isinstance(end, ev.HandlerFailed)
    assert end.error.code == "cpu_limit"


@pytest.mark.parametrize("deaf", [False, True])
def test_a_timeout_ends_grandchildren_too(tmp_path: Path, deaf: bool) -> None:
    file = tmp_path / "pids"
    started = start({"do": "linger", "file": str(file), "deaf": deaf}, timeout_seconds=1.5, confinement=rules(tmp_path))
    family = pids_in(file)
    end = started.end()
    assert isinstance(end, ev.HandlerTimedOut)
    assert end.after_seconds == 1.5
    wait_until_dead(*family)


def test_work_that_is_finished_when_told_to_end_is_not_thrown_away() -> None:
    assert finished({"do": "finish_late"}, timeout_seconds=1.0) == {"late": True}


def test_a_kill_ends_the_group_at_once(tmp_path: Path) -> None:
    file = tmp_path / "pids"
    started = start({"do": "linger", "file": str(file), "deaf": True}, confinement=rules(tmp_path))
    family = pids_in(file)
    started.run.kill()
    assert isinstance(started.end(), ev.HandlerKilled)
    wait_until_dead(*family)
    started.run.kill()  # too late to matter, and harmless


def test_what_a_finished_handler_leaves_running_is_ended(tmp_path: Path) -> None:
    file = tmp_path / "pids"
    started = start({"do": "linger", "file": str(file), "seconds": 1}, confinement=rules(tmp_path))
    family = pids_in(file)
    assert isinstance(started.end(), ev.HandlerFinished)
    wait_until_dead(*family)


def test_a_stray_thread_does_not_hold_the_worker() -> None:
    assert finished({"do": "stray_thread"}) == {"fine": True}


def test_secrets_stay_out_of_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in os.environ if name.startswith("CONVENER_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("CONVENER_KEY", "cvn_secret")
    monkeypatch.setenv("CONVENER_LLM_KEY", "the-gateway")
    monkeypatch.setenv("CONVENER_KEY", "token")
    trace = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
    variables = finished({"do": "environment"}, trace_context=trace)["environment"]
    assert variables == {"CONVENER_TASK_ID": "t-1", "CONVENER_TASK_ATTEMPT": "1", "TRACEPARENT": trace}


def test_only_variables_on_the_list_are_inherited(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("AWS_SECRET_ACCESS_KEY", "DATABASE_URL", "PGPASSWORD", "CONVENER_POOL_KEY", "MY_OPTION", "MY_OTHER"):
        monkeypatch.setenv(name, "x")
    monkeypatch.setenv("LC_TIME", "C")
    printed = finished({}, handler=shell(_PRINT_NAMES))
    assert {"PATH", "LC_TIME", "CONVENER_TASK_ID", "OMP_NUM_THREADS"} <= set(printed["names"])
    assert not {"AWS_SECRET_ACCESS_KEY", "DATABASE_URL", "PGPASSWORD", "CONVENER_POOL_KEY"} & set(printed["names"])
    assert not {"MY_OPTION", "MY_OTHER"} & set(printed["names"])


def test_what_is_asked_for_while_resources_are_short_reaches_the_handler() -> None:
    degradation = {"step": 3, "max_depth": 2, "batch_factor": 0.5}
    assert finished({"do": "thrifty"}, degradation=degradation) == {"depth": 2, "batch": 5, "degradation": degradation}
    assert finished({"do": "thrifty"}) == {"depth": None, "batch": 10, "degradation": None}


def test_usage_is_measured() -> None:
    end = start({"do": "big", "bytes": 8 * 2**20}).end()
    assert isinstance(end, ev.HandlerFinished)
    usage = end.usage
    assert 0 < usage.cpu_seconds < PATIENCE
    assert 0 < usage.wall_seconds < PATIENCE
    assert 20 < usage.max_memory_mb < 500


def test_a_look_whether_its_worker_is_stopped_is_no_time_of_the_task(monkeypatch: pytest.MonkeyPatch) -> None:
    looked_at: list[float] = []

    def look(_run: HandlerRun, _exit_code: int) -> bool:
        looked_at.append(time.monotonic())
        time.sleep(0.5)
        return False

    monkeypatch.setattr(HandlerRun, "_ended_with_the_worker", look)
    began_at = time.monotonic()
    end = start({"do": "kill_self"}).end()
    assert isinstance(end, ev.HandlerFailed)
    assert end.usage is not None
    assert end.usage.wall_seconds <= looked_at[0] - began_at


@pytest.mark.parametrize("error", ["EAGAIN", "ENOMEM", "EMFILE", "ENFILE"])
def test_a_machine_without_room_for_a_handler_has_not_started_it(
    error: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With a limit of five processes six attempts were burnt in nine seconds, and tasks failed for good."""
    confinement = rules()
    refuse_to_confine(error, tmp_path, monkeypatch)
    end = start({"do": "echo"}, confinement=confinement).end()
    assert isinstance(end, ev.HandlerNotStarted), end
    assert "could not be confined: [Errno" in end.reason


def test_a_confinement_that_is_forbidden_fails_the_task_here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    confinement = rules()
    refuse_to_confine("EPERM", tmp_path, monkeypatch)
    end = start({"do": "echo"}, confinement=confinement).end()
    assert isinstance(end, ev.HandlerFailed), end
    assert (end.error.code, end.error.retryable) == ("handler_unavailable", True)


def test_a_handler_that_has_begun_cannot_say_that_there_was_no_room_for_it() -> None:
    """Its task would be handed back for ever, and each worker that took it would pause."""
    error = failure({}, handler=shell("""echo '{"shortage": "none"}' >&3; exit 75"""))
    assert error.code == "temporary_failure"


def test_a_missing_function_is_no_fault_of_the_task() -> None:
    error = failure({}, handler=Handler(target="tests.worker_agent.nowhere:act"))
    assert (error.code, error.retryable) == ("handler_unavailable", True)


@pytest.mark.parametrize(
    ("payload", "quality"),
    [
        ({}, None),
        ({"said": 0.8}, 0.8),
        ({"written": 0.25}, 0.25),
        ({"said": 0, "written": 0.25}, 0.0),
    ],
)
def test_a_handler_says_how_good_its_result_is(
    payload: dict[str, Any], quality: float | None, caplog: pytest.LogCaptureFixture
) -> None:
    end = start({"do": "judge"} | payload).end()
    assert isinstance(end, ev.HandlerFinished), end
    assert end.quality == quality
    assert "left out" not in caplog.text


@pytest.mark.parametrize(("written", "shown"), [(1200, "1200"), (-0.5, "-0.5"), (True, "bool"), ("good", "str")])
def test_a_quality_that_is_none_is_told_and_loses_no_result(
    written: object, shown: str, caplog: pytest.LogCaptureFixture
) -> None:
    end = start({"do": "judge", "written": written}).end()
    assert isinstance(end, ev.HandlerFinished), end
    assert (end.result, end.quality) == ({"quality": written}, None)
    assert _reasons(caplog) == [f"quality must be a number within 0..1, not {shown}"]


def test_a_quality_outside_its_range_is_the_handlers_mistake() -> None:
    assert "quality must be within 0..1" in failure({"do": "judge", "said": 1.5}).message


# Programs.


def test_a_program_reads_the_task_and_writes_the_result() -> None:
    result = finished({"do": "anything"}, handler=command("cat"), attempt=2)
    assert result["payload"] == {"do": "anything"}
    assert result["attempt"] == 2


def test_a_program_reports_progress() -> None:
    script = """echo '{"percent": 40, "checkpoint": {"n": 1}}' >&$CONVENER_PROGRESS_FD; echo nonsense >&3; echo '{}'"""
    started = start({}, handler=shell(script))
    assert isinstance(started.end(), ev.HandlerFinished)
    assert [(each.progress.percent, each.progress.checkpoint) for each in started.progress] == [(40.0, {"n": 1})]


@pytest.mark.parametrize("script", ["""echo '{"quality": 0.5}'""", """echo '{"quality": 0.5}' >&3; echo '{}'"""])
def test_a_program_says_how_good_its_result_is(script: str) -> None:
    end = start({}, handler=shell(script)).end()
    assert isinstance(end, ev.HandlerFinished), end
    assert end.quality == 0.5


def test_a_program_that_sends_a_quality_that_is_none_is_told(caplog: pytest.LogCaptureFixture) -> None:
    end = start({}, handler=shell("""echo '{"quality": 7}' >&3; echo '{}'""")).end()
    assert isinstance(end, ev.HandlerFinished), end
    assert end.quality is None
    assert _reasons(caplog) == ["quality must be a number within 0..1, not 7"]


def _reasons(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [record.fields["why"] for record in caplog.records if "left out" in record.message]  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    ("script", "code", "retryable"),
    [
        ("echo broken >&2; exit 3", "handler_error", False),
        ("echo broken >&2; exit 75", "temporary_failure", True),
        ("echo broken >&2; kill -9 $$", "handler_crashed", True),
        ("echo broken >&2; echo '[1]'", "invalid_result", True),
        ("""echo broken >&2; echo '{"x": NaN}'""", "invalid_result", True),
        ("echo broken >&2; yes | head -c 11000000; sleep 300", "result_too_large", True),
    ],
)
def test_failures_of_programs_are_told_apart(script: str, code: str, retryable: bool) -> None:
    error = failure({}, handler=shell(script))
    assert (error.code, error.retryable) == (code, retryable)
    assert error.detail["output"] == "broken"


def test_what_a_program_wrote_in_place_of_a_result_is_shown() -> None:
    error = failure({}, handler=shell("echo loading the model; echo '{}'"))
    assert (error.code, error.detail) == ("invalid_result", {"stdout": "loading the model\n{}\n"})


def test_a_program_that_writes_much_to_stderr_does_not_block() -> None:
    assert finished({}, handler=shell("head -c 3000000 /dev/zero >&2; echo '{}'")) == {}


def test_a_missing_program_is_no_fault_of_the_task() -> None:
    error = failure({}, handler=command("/nowhere/at/all"))
    assert (error.code, error.retryable) == ("handler_unavailable", True)


def test_a_program_dies_of_a_broken_pipe_as_programs_do() -> None:
    assert finished({}, handler=shell("yes | head -n 1 >/dev/null; echo '{}'")) == {}


def test_a_child_whose_daemon_is_gone_does_not_begin() -> None:
    limits = {"memory_bytes": 10**9, "cpu_seconds": 5, "command": ["echo", "begun"]}
    *python, order = rules().command("child", 1, "/tmp", **limits)  # type: ignore[arg-type]
    orphan_order = json.dumps(json.loads(order) | {"parent": 1})
    orphan = subprocess.run([*python, orphan_order], stdout=subprocess.PIPE)
    assert (orphan.returncode, orphan.stdout) == (1, b"")


def test_the_overhead_of_a_task_is_small() -> None:
    """The aim is 60 ms on a quiet machine; here only a bound that no loaded one exceeds."""
    seconds = []
    for _ in range(5):
        began = time.monotonic()
        finished({"do": "echo"})
        seconds.append(time.monotonic() - began)
    assert min(seconds) < 1.0
