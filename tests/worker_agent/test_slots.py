"""A host that is divided into slots: equal shares, a worker for each, and one process by which all are ended."""

import asyncio
import errno
import signal
from pathlib import Path
from typing import Any

import psutil
import pytest

from tests.worker_agent.conftest import StartWorker, Worker
from tests.worker_agent.fake_control_plane import POOL_KEY, FakeControlPlane
from tests.worker_agent.processes import pids_in, wait_until_dead
from tests.worker_agent.test_gpus import NVIDIA, program
from tests.worker_agent.waiting import until
from worker_agent import slots as supervisor
from worker_agent.options import read_options, read_slots
from worker_agent.slots import Slot

_ENVIRONMENT = {"CONVENER_URL": "http://127.0.0.1:8765/", "CONVENER_KEY": POOL_KEY}
_HANDLERS = ("--handlers", "tests.worker_agent.agents")


def slots(*arguments: str, **environment: str) -> list[Slot]:
    return list(read_slots(arguments, _ENVIRONMENT | environment)[0])


def test_one_worker_is_no_slot() -> None:
    assert slots() == slots("--slots", "1") == slots("--slots", "4", "--check-isolation") == []


def test_each_slot_has_an_equal_share_and_the_first_what_cannot_be_divided() -> None:
    given = ["--slots=3", "--name=lab", "--memory-gb=32", "--cpu=8", "--resource", "scope=1", "--resource", "seats=5"]
    given += [*_HANDLERS, "--labels", "a=b"]
    shares = slots(*given)
    assert [slot.name for slot in shares] == ["lab-0", "lab-1", "lab-2"]
    profiles = [read_options([*given, *slot.arguments], _ENVIRONMENT)[0].profile for slot in shares]
    assert [profile["name"] for profile in profiles] == ["lab-0", "lab-1", "lab-2"]
    assert {(profile["memory_gb"], profile["cpu_cores"]) for profile in profiles} == {(10.66, 2.66)}
    assert [profile["resources"] for profile in profiles] == [{"scope": 1, "seats": 2}, {"seats": 2}, {"seats": 1}]
    assert all(profile["labels"]["a"] == "b" for profile in profiles)


def test_devices_are_divided_and_who_has_none_hides_those_of_the_others(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    program(tmp_path / "bin", "nvidia-smi", NVIDIA)
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}:/usr/bin:/bin")
    locks = {"CONVENER_GPU_LOCKS": str(tmp_path)}
    shares = slots("--slots=3", "--gpus=all", **locks)
    assert [slot.arguments[slot.arguments.index("--gpus") + 1] for slot in shares] == ["1", "1", "0"]
    assert [slot.variables.get("CUDA_VISIBLE_DEVICES") for slot in shares] == [None, None, ""]
    assert [slot.variables for slot in slots("--slots=3")] == [{}, {}, {}]


def test_each_has_a_log_of_its_own(tmp_path: Path) -> None:
    first, second = slots("--slots=2", CONVENER_LOG_FILE=str(tmp_path / "worker.log"))
    assert str(tmp_path / "worker-0.log") in first.arguments
    assert str(tmp_path / "worker-1.log") in second.arguments


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--slots=0",), "--slots must be from 1 to 1024"),
        (("--slots=1025",), "--slots must be from 1 to 1024"),
        (("--slots=2", "--cpu=0.01"), "less than 0.01 GiB or cores for each"),
        (("--slots=2", "--secrets-fd=3"), "starts one for each slot"),
        (("--slots=2", "--launched-as=me"), "starts one for each slot"),
        (("--slots=2", "--gpus=3"), "--gpus 3: this machine has"),
    ],
)
def test_what_cannot_be_divided_is_told(
    capsys: pytest.CaptureFixture[str], arguments: tuple[str, ...], message: str
) -> None:
    with pytest.raises(SystemExit) as caught:
        slots(*arguments, PATH="")
    assert caught.value.code == 2
    assert message in capsys.readouterr().err


def _workers(parent: Worker) -> dict[str, psutil.Process]:
    """The workers of the slots by name."""
    found = {}
    for child in psutil.Process(parent.process.pid).children():
        words = child.cmdline()
        if "--name" in words:
            found[words[len(words) - 1 - words[::-1].index("--name") + 1]] = child
    return found


def _wait_until_leasing(plane: FakeControlPlane) -> None:
    """Wait until the last worker of either name asks for a task; of two calls both may be of one worker."""
    names = [call.body["name"] for call in plane.of("register")]
    last = {name: f"cvn_worker{number}_verysecret" for number, name in enumerate(names, 1)}
    assert len(last) == 2
    until(lambda: {call.key for call in plane.of("lease")}.issuperset(last.values()))


def test_a_worker_that_dies_is_started_again_and_a_signal_ends_all(
    plane: FakeControlPlane, url: str, start_worker: StartWorker
) -> None:
    parent = start_worker(url, "--slots", "2", "--name", "lab", "--memory-gb", "4", "--cpu", "2")
    registered = [call.body for call in plane.wait_for("register", 2)]
    assert {body["name"] for body in registered} == {"lab-0", "lab-1"}
    assert {(body["memory_gb"], body["cpu_cores"]) for body in registered} == {(2, 1)}
    workers = _workers(parent)
    workers["lab-1"].kill()
    assert plane.wait_for("register", 3)[2].body["name"] == "lab-1"
    assert _workers(parent)["lab-0"] == workers["lab-0"]
    _wait_until_leasing(plane)
    pids = [worker.pid for worker in _workers(parent).values()]
    parent.signal()
    assert parent.exit_code() == 0
    wait_until_dead(*pids)
    assert len(plane.of("goodbye")) == 2


def test_workers_end_in_order_where_their_parent_is_killed(
    plane: FakeControlPlane, url: str, start_worker: StartWorker
) -> None:
    parent = start_worker(url, "--slots", "2")
    plane.wait_for("register", 2)
    _wait_until_leasing(plane)
    pids = [worker.pid for worker in _workers(parent).values()]
    assert len(pids) == 2
    parent.signal(signal.SIGKILL)
    wait_until_dead(*pids)
    until(lambda: len(plane.of("goodbye")) == 2)


def test_a_task_ends_in_order_where_the_parent_of_its_worker_is_killed(
    plane: FakeControlPlane, url: str, start_worker: StartWorker, tmp_path: Path
) -> None:
    """The kernel tells a worker of the end of each thread of its parent, which is no order to make haste."""
    files = [tmp_path / f"pids-{number}" for number in range(2)]
    for file in files:
        plane.submit({"do": "linger", "file": str(file), "seconds": 1.5})
    parent = start_worker(url, "--slots", "2")
    family = [pid for file in files for pid in pids_in(file)]
    parent.signal(signal.SIGKILL)
    wait_until_dead(*family)
    until(lambda: len(plane.of("goodbye")) == 2)
    assert len(plane.of("complete")) == 2
    assert not plane.of("release")


def test_what_no_start_would_change_ends_all_with_its_code(start_worker: StartWorker) -> None:
    parent = start_worker("http://127.0.0.1:1", "--slots", "2", CONVENER_KEY="")
    assert parent.exit_code() == 2
    assert parent.log.read_text().count("no usable pool key") == 2


class _Process:
    """A worker that runs until it gets a signal, unless it `dies` at once."""

    def __init__(self, *, dies: bool) -> None:
        self.signals: list[int] = []
        self._dies = dies
        self._over = asyncio.Event()

    def send_signal(self, number: int) -> None:
        self.signals.append(number)
        self._over.set()

    async def wait(self) -> int:
        if self._dies:
            return 1
        await self._over.wait()
        return 0


async def test_a_start_that_fails_is_repeated_and_ends_no_other(monkeypatch: pytest.MonkeyPatch) -> None:
    started: dict[str, list[_Process | None]] = {"a": [], "b": []}

    def start(*words: str, **_: Any) -> _Process:
        processes = started[words[-1]]
        if words[-1] == "b" and len(processes) == 1:
            processes.append(None)
            raise BlockingIOError(errno.EAGAIN, "no process")
        process = _Process(dies=words[-1] == "b" and not processes)
        processes.append(process)
        return process

    monkeypatch.setattr(supervisor, "start_process", start)
    monkeypatch.setattr(supervisor, "_FIRST_PAUSE_SECONDS", 0.01)
    host = supervisor._Slots([Slot(name=name, arguments=["--name", name]) for name in started], [], 1.0)
    running = asyncio.create_task(host.run())
    try:
        async with asyncio.timeout(10):
            while len(started["b"]) < 3 and not running.done():
                await asyncio.sleep(0.005)
        assert not running.done()
        (undisturbed,), (_, _, last) = started["a"], started["b"]
        assert undisturbed is not None
        assert last is not None
        assert undisturbed.signals == []
        host._pass_on(signal.SIGTERM)
        assert await asyncio.wait_for(running, 10) == 0
        assert undisturbed.signals == last.signals == [signal.SIGTERM]
    finally:
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)
        for number in (signal.SIGTERM, signal.SIGINT):
            asyncio.get_running_loop().remove_signal_handler(number)
