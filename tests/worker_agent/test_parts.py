"""The small parts of the daemon, one by one."""

import json
import logging
import os
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

import worker_agent
from tests.worker_agent.machines import assignment
from tests.worker_agent.waiting import until
from worker_agent import Permanent, Task, Transient
from worker_agent.backoff import full_jitter
from worker_agent.capacity import cpu_cores, memory_gb
from worker_agent.child_process import ResourceLimits
from worker_agent.handler_messages import HandlerMessages, NotAnObject, read_json_object
from worker_agent.local_errors import LocalErrors
from worker_agent.log_lines import set_up_logging
from worker_agent.output_buffers import HeadBuffer, LineBuffer, TailBuffer
from worker_agent.usage import UsageSampler
from worker_agent.wire import Assignment, read_assignment


@given(st.integers(-3, 10_000), st.floats(0.0, 1.0))
def test_backoff_stays_within_its_bounds(attempt: int, luck: float) -> None:
    seconds = full_jitter(attempt, random=lambda: luck)
    assert 0.0 <= seconds <= min(10.0, 0.2 * 2.0 ** min(attempt - 1, 50) if attempt > 0 else 0.0)


@given(st.lists(st.binary(max_size=50)), st.integers(1, 40))
def test_a_tail_is_the_end_and_a_whole_is_the_beginning(chunks: list[bytes], limit: int) -> None:
    tail, whole, everything = TailBuffer(limit), HeadBuffer(limit), b"".join(chunks)
    for chunk in chunks:
        tail.feed(chunk)
        whole.feed(chunk)
    assert tail.text == everything[-limit:].decode("utf-8", "replace").strip()
    assert (bytes(whole.data), whole.is_full) == (everything[:limit], len(everything) > limit)


@given(st.lists(st.binary(max_size=20)))
def test_lines_do_not_depend_on_how_they_are_cut(chunks: list[bytes]) -> None:
    lines: list[bytes] = []
    reader = LineBuffer(1000, lines.append)
    for chunk in chunks:
        reader.feed(chunk)
    assert lines == b"".join(chunks).split(b"\n")[:-1]


def test_a_line_without_end_is_not_kept() -> None:
    lines: list[bytes] = []
    reader = LineBuffer(10, lines.append)
    reader.feed(b"x" * 11)
    assert reader.is_full
    reader.feed(b"\nshort\n")
    assert lines == [b"", b"short"]


@pytest.mark.parametrize("text", [b"", b"[]", b"1", b"{", b'{"x": NaN}', b'{"x": -Infinity}', b"\xff", b"[" * 100_000])
def test_only_json_objects_are_results(text: bytes) -> None:
    with pytest.raises(NotAnObject):
        read_json_object(text)


@pytest.mark.parametrize("item", [b"[]", b"{}", b'{"":1}', b"1", b"1" * 401])
def test_what_would_fill_the_memory_of_the_worker_is_not_parsed(item: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(json, "loads", None)
    text = b'{"result":{"a":[' + b",".join([item] * (10_000_000 // (len(item) + 1))) + b"]}}"
    with pytest.raises(NotAnObject, match="more values than a result may have"):
        read_json_object(text)
    messages = HandlerMessages()
    messages.receive(text)
    assert (messages.result, messages.unreadable_count) == (None, 1)


@pytest.mark.parametrize("text", ["1," * 4_000_000, '{"a":[1]}' * 400_000, "\\" * 3_000_000, "1" * 10_000])
def test_what_stands_in_a_text_of_a_result_weighs_nothing(text: str) -> None:
    assert read_json_object(json.dumps({"a": text, "b": '"'}).encode()) == {"a": text, "b": '"'}


@given(st.binary(max_size=100))
def test_messages_survive_any_line(line: bytes) -> None:
    HandlerMessages().receive(line)


@pytest.mark.parametrize("name", ["percent", "peak_memory_mb", "measured", "postponed"])
def test_numbers_too_large_for_a_float_are_counted_as_unreadable(name: str) -> None:
    huge = 10**400
    values = {"measured": "m", "postponed": {"seconds": huge}}
    messages = HandlerMessages()
    messages.receive(json.dumps({name: values.get(name, huge), "value": huge}).encode())
    assert messages.unreadable_count == 1


@pytest.mark.parametrize("size", ["nan", "inf", -5, 1e10, "1e308"])
def test_a_memory_size_with_which_every_report_would_be_refused_is_not_believed(size: object) -> None:
    messages = HandlerMessages()
    messages.receive(json.dumps({"peak_memory_mb": size}).encode())
    assert (messages.peak_memory_mb, messages.unreadable_count) == (None, 1)


def test_messages_keep_the_newest_progress_and_the_last_checkpoint() -> None:
    messages = HandlerMessages()
    lines = ({"percent": 10, "checkpoint": {"n": 1}}, {"percent": 400, "message": 5}, {"percent": "much"}, {"sing": 1})
    for line in lines:
        messages.receive(json.dumps(line).encode())
    progress = messages.take_progress()
    assert progress is not None
    assert (progress.percent, progress.message, progress.checkpoint) == (100.0, "5", {"n": 1})
    assert messages.take_progress() is None
    assert messages.unreadable_count == 1


def test_local_errors_keep_their_order_and_their_number() -> None:
    errors = LocalErrors()
    for number in range(60):
        errors.add(f"error {number}")
    taken = errors.take()
    assert [taken[0]["message"], taken[-1]["message"], len(taken)] == ["error 10", "error 59", 50]
    errors.add("later")
    errors.put_back(taken[:2])
    assert [each["message"] for each in errors.take()] == ["error 10", "error 11", "later"]


@pytest.mark.parametrize("character", ["a", "\u4e2d", "\U0001f600", "\x01", '"'])
def test_local_errors_fit_into_a_heartbeat(character: str) -> None:
    errors = LocalErrors()
    for _ in range(60):
        errors.add(character * 3000)
    assert len(json.dumps(errors.take())) < 60_000


def test_the_sampler_sees_processor_time_and_memory() -> None:
    sampler = UsageSampler()
    until(lambda: sum(range(200_000)) and sampler.sample(None)[0] > 0)
    assert sampler.sample(os.getpid())[1] > sampler.sample(None)[1] > 1
    assert sampler.sample(2**22 + 1)[1] > 1  # nobody has that number


def test_the_container_limits_what_there_is(tmp_path: Path) -> None:
    assert cpu_cores(tmp_path) >= 1
    assert memory_gb(tmp_path) > 0
    (tmp_path / "cpu.max").write_text("50000 100000\n")
    (tmp_path / "memory.max").write_text(f"{2**28}\n")
    assert (cpu_cores(tmp_path), memory_gb(tmp_path)) == (0.5, 0.25)
    (tmp_path / "cpu.max").write_text("max 100000\n")
    (tmp_path / "memory.max").write_text("max\n")
    assert cpu_cores(tmp_path) >= 1
    assert memory_gb(tmp_path) > 0.25


def test_the_limit_of_any_group_around_it_counts(tmp_path: Path) -> None:
    """A job of Slurm and a unit of systemd are groups of the machine's own hierarchy, whose root has no limits."""
    membership, step = tmp_path / "cgroup", tmp_path / "slurmstepd.scope/job_7/step_0"
    step.mkdir(parents=True)
    membership.write_text("0::/slurmstepd.scope/job_7/step_0\n")
    (step / "memory.max").write_text("max\n")
    (step.parent / "memory.max").write_text(f"{2**28}\n")
    (step.parent / "cpu.max").write_text("50000 100000\n")
    assert (cpu_cores(tmp_path, membership), memory_gb(tmp_path, membership)) == (0.5, 0.25)


def test_so_does_that_of_an_older_hierarchy(tmp_path: Path) -> None:
    membership, job = tmp_path / "cgroup", tmp_path / "memory/slurm/uid_0/job_7"
    job.mkdir(parents=True)
    membership.write_text("5:memory:/slurm/uid_0/job_7\n1:name=systemd:/init.scope\n")
    (tmp_path / "memory/memory.limit_in_bytes").write_text("9223372036854771712\n")
    assert memory_gb(tmp_path, membership) > 0.25
    (job / "memory.limit_in_bytes").write_text(f"{2**28}\n")
    assert memory_gb(tmp_path, membership) == 0.25


@pytest.mark.parametrize("as_json", [False, True])
def test_log_lines_can_be_read_by_machines(as_json: bool, capsys: pytest.CaptureFixture[str]) -> None:
    root = logging.getLogger()
    previous_setup = (root.handlers[:], root.level)
    try:
        set_up_logging("info", as_json=as_json)
        logging.getLogger("worker_agent").info("task started", extra={"fields": {"task": "t-1", "why": 'a "b"\nc'}})
    finally:
        root.handlers[:], root.level = previous_setup[0], previous_setup[1]
    (line,) = capsys.readouterr().err.splitlines()
    if as_json:
        assert json.loads(line).items() >= {"message": "task started", "task": "t-1", "why": 'a "b"\nc'}.items()
    else:
        assert line.endswith(r'INFO    worker_agent: task started (task=t-1, why="a \"b\"\nc")')


def test_a_task_can_be_made_to_test_a_handler() -> None:
    reports: list[object] = []
    task = Task(agent_type="ranking", payload={"n": 1}, report=reports.append)
    task.progress(50, checkpoint={"n": 1})
    assert reports == [{"percent": 50, "message": None, "checkpoint": {"n": 1}}]
    Task(agent_type="ranking", payload={}).progress(100)
    for percent in (-1, 100.1, float("nan")):
        with pytest.raises(ValueError, match="percent"):
            task.progress(percent)


def test_failures_say_whether_to_try_again() -> None:
    assert (Permanent("x").retryable, Transient("x").retryable) == (False, True)
    assert (Transient("busy", "later", host="h").detail, str(Permanent("x"))) == ({"host": "h"}, "x")


def test_the_version_is_that_of_the_package() -> None:
    assert worker_agent.__version__ == version("convener")


@pytest.mark.parametrize(
    ("assigned", "memory_gb", "cpu_cores"), [(None, 4.0, 2.0), (assignment(memory_gb=2, cpu_cores=0.5), 2.0, 0.5)]
)
def test_limits_are_as_the_control_plane_has_them(
    assigned: Assignment | None, memory_gb: float, cpu_cores: float
) -> None:
    assert ResourceLimits(memory_gb=4, cpu_cores=2).within(assigned) == ResourceLimits(
        memory_gb=memory_gb, cpu_cores=cpu_cores
    )


def test_limits_never_pass_what_the_worker_was_started_with() -> None:
    own = ResourceLimits(memory_gb=1, cpu_cores=0.5)
    assert own.within(assignment(memory_gb=64, cpu_cores=16)) == own


@pytest.mark.parametrize("wrong", [{"memory_gb": 0}, {"cpu_cores": -1}, {"memory_gb": "much"}, {"version": ...}])
def test_an_assignment_that_makes_no_sense_is_not_read(wrong: dict[str, Any]) -> None:
    sound = {"version": "one", "memory_gb": 1, "cpu_cores": 1}
    assert read_assignment({"assignment": sound}) is not None
    broken = {key: value for key, value in (sound | wrong).items() if value is not ...}
    with pytest.raises((KeyError, TypeError, ValueError)):
        read_assignment({"assignment": broken})


def test_an_answer_of_an_older_control_plane_brings_no_assignment() -> None:
    assert read_assignment({"worker_id": "w", "state": "ready", "directives": []}) is None
