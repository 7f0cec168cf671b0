"""Real processes that stand in for workers: their exit is seen, they are found again, and nothing is left of them."""

import asyncio
import json
import os
import signal
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from uuid import UUID, uuid4

import psutil
import pytest

from app.workers.provisioners import local
from app.workers.provisioners.local import OWNER_VARIABLE, LocalProvisioner
from tests.support.sql import until
from tests.workers.provisioners import fake_worker

KEY = "cvn_launch_verysecret"


class Machine:
    """This machine, and the control planes that come and go on it."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.environment = dict(os.environ) | fake_worker.install(directory)
        self.owner = f"test {uuid4()}"
        self.exits: list[tuple[UUID, str]] = []
        self.errors: list[str | None] = []
        self.listening = asyncio.Event()
        self.listening.set()
        self._planes: list[LocalProvisioner] = []

    def log_file(self, name: str) -> Path:
        return self.directory / "logs" / f"{name}.log"

    def plane(self, how: str = "obey", owner: str | None = None) -> LocalProvisioner:
        """A control plane as it is after a start; what it knew before is forgotten."""

        async def on_exit(worker_id: UUID, reason: str, error: str | None) -> None:
            self.exits.append((worker_id, reason))
            self.errors.append(error)
            await self.listening.wait()

        plane = LocalProvisioner(
            host="here",
            owner=owner or self.owner,
            arguments=["--url", "http://nowhere"],
            environment=self.environment | {"FAKE_WORKER": how},
            secrets={"CONVENER_LLM_KEY": "verysecret of the model"},
            logs=self.directory / "logs",
            on_exit=on_exit,
        )
        self._planes.append(plane)
        return plane

    async def ready(self, count: int = 1) -> None:
        """So many workers have come up."""
        marks = self.directory / "ready"

        async def there() -> bool:
            return marks.exists() and len(marks.read_text().splitlines()) == count

        await until(there)

    async def exited(self, count: int = 1) -> list[tuple[UUID, str]]:
        """What was reported, once so many exits were."""

        async def told() -> bool:
            return len(self.exits) >= count

        await until(told)
        return self.exits

    async def close(self) -> None:
        """Leave nothing behind."""
        for plane in self._planes:
            await plane.stop_all(0)


@pytest.fixture
async def machine(tmp_path: Path) -> AsyncIterator[Machine]:
    machine = Machine(tmp_path)
    yield machine
    await machine.close()


def _alive(pid: int) -> bool:
    return psutil.pid_exists(pid) and psutil.Process(pid).status() != psutil.STATUS_ZOMBIE


async def _gone(pid: int) -> None:
    async def gone() -> bool:
        return not _alive(pid)

    await until(gone)


async def test_a_worker_gets_its_name_and_a_log_and_its_secrets_where_nobody_else_can_read_them(
    machine: Machine,
) -> None:
    plane, worker_id = machine.plane(), uuid4()
    handle = await plane.start(worker_id, "here-1", KEY)
    await machine.ready()
    process = psutil.Process(handle["pid"])
    assert process.environ()[OWNER_VARIABLE] == machine.owner
    assert os.getsid(handle["pid"]) == handle["pid"]
    assert plane.is_running(handle)
    assert await plane.find() == {worker_id: handle}
    path = machine.directory / "logs" / "here-1.log"
    log = path.read_text()
    mark = f"--launched-as={machine.owner}:{worker_id}"
    assert f"hello {['--name', 'here-1', '--url', 'http://nowhere', f'--log-file={path}', mark]}" in log
    for value in (*process.environ().values(), *process.cmdline(), log):
        assert "verysecret" not in value
    secrets = json.loads((machine.directory / "secrets").read_text())
    assert secrets == {"CONVENER_LLM_KEY": "verysecret of the model", "CONVENER_KEY": KEY}
    assert not [file for file in process.open_files() if "pipe" in file.path]


async def test_an_exit_is_reported_with_its_code_and_the_last_error_in_its_log(
    machine: Machine, caplog: pytest.LogCaptureFixture
) -> None:
    machine.log_file("here-1").parent.mkdir()
    machine.log_file("here-1").write_text("an error of a former worker of this name\n")
    plane, worker_id = machine.plane("exit"), uuid4()
    handle = await plane.start(worker_id, "here-1", KEY)
    assert await machine.exited() == [(worker_id, "the process exited with code 7")]
    assert not plane.is_running(handle)
    assert await plane.find() == {}
    assert not psutil.pid_exists(handle["pid"]), "the dead child was not reaped"
    assert machine.errors == ["No module named 'nowhere', ***, cvn_id_***"]
    assert handle["log"] == str(machine.log_file("here-1"))
    (record,) = [record for record in caplog.records if record.levelname == "WARNING"]
    assert all(word in record.getMessage() for word in ("exited with code 7", "'nowhere'", handle["log"]))


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGSEGV])
async def test_a_kill_is_reported_with_its_signal_and_only_once(machine: Machine, number: signal.Signals) -> None:
    plane, worker_id = machine.plane(), uuid4()
    handle = await plane.start(worker_id, "here-1", KEY)
    plane.adopt(worker_id, handle)
    await machine.ready()
    os.kill(handle["pid"], number)
    assert await machine.exited() == [(worker_id, f"the process was killed by {number.name}")]
    await plane.stop_all(0)
    assert len(machine.exits) == 1


async def test_starting_twice_is_starting_once(machine: Machine) -> None:
    plane, worker_id = machine.plane(), uuid4()
    first = await plane.start(worker_id, "here-1", KEY)
    await machine.ready()
    assert await plane.start(worker_id, "here-1", KEY) == first
    assert await machine.plane().start(worker_id, "here-1", KEY) == first, "after a restart too"
    assert list(await plane.find()) == [worker_id]


async def test_a_restarted_control_plane_finds_its_workers_and_sees_them_end(machine: Machine) -> None:
    worker_id = uuid4()
    process = subprocess.Popen(
        [sys.executable, "-m", "worker_agent", f"--launched-as={machine.owner}:{worker_id}"],
        env=machine.environment,
        start_new_session=True,
        stdout=subprocess.DEVNULL,
    )
    await machine.ready()
    plane = machine.plane()
    found = await plane.find()
    assert found[worker_id]["pid"] == process.pid
    plane.adopt(worker_id, found[worker_id])
    assert plane.is_running(found[worker_id])
    process.kill()
    # Whoever is not its parent cannot know the code.
    assert await machine.exited() == [(worker_id, "the process ended")]
    assert not plane.is_running(found[worker_id]), "a zombie does not run"
    process.wait()


async def test_a_worker_that_was_dead_before_it_was_adopted_is_reported(machine: Machine) -> None:
    first, worker_id = machine.plane("exit"), uuid4()
    handle = await first.start(worker_id, "here-1", KEY)
    await machine.exited()
    machine.plane().adopt(worker_id, handle)
    assert (await machine.exited(2))[1] == (worker_id, "the process ended")


async def test_a_pid_that_is_somebody_elses_by_now_is_not_our_worker(machine: Machine) -> None:
    plane = machine.plane()
    process = psutil.Process()
    handle = {"pid": process.pid, "created": process.create_time() - 100}
    assert not plane.is_running(handle)
    plane.stop(uuid4(), handle, 0)
    await plane.stop_all(0)
    assert process.is_running()


@pytest.mark.skipif(sys.platform != "linux", reason="other systems keep the time of a start itself")
@pytest.mark.parametrize("seconds", [-86_400, 3600])
async def test_a_worker_is_known_and_ended_also_when_the_clock_was_set(
    machine: Machine, monkeypatch: pytest.MonkeyPatch, seconds: int
) -> None:
    """The kernel reckons the time of its boot back from the clock, and with it those of all starts."""
    plane, worker_id = machine.plane("stubborn"), uuid4()
    handle = json.loads(json.dumps(await plane.start(worker_id, "here-1", KEY)))
    await machine.ready()
    booted_at = psutil.boot_time()
    monkeypatch.setattr("psutil._psplatform.boot_time", lambda: booted_at + seconds)
    assert plane.is_running(handle)
    plane.stop(worker_id, handle, 0.1)
    assert await machine.exited() == [(worker_id, "the process was killed by SIGKILL")]
    assert not plane.is_running(handle)


@pytest.mark.skipif(sys.platform != "linux", reason="other systems keep the time of a start itself")
async def test_workers_that_were_found_before_the_clock_was_set_are_ended_with_the_service(
    machine: Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The walk over all processes keeps the time of a start that it has once reckoned."""
    plane, worker_id = machine.plane(), uuid4()
    handle = await plane.start(worker_id, "here-1", KEY)
    await machine.ready()
    assert await plane.find() == {worker_id: handle}
    booted_at = psutil.boot_time()
    monkeypatch.setattr("psutil._psplatform.boot_time", lambda: booted_at + 3600)
    assert plane.is_running((await plane.find())[worker_id])
    await plane.stop_all(0)
    assert not psutil.pid_exists(handle["pid"])


async def test_a_handle_of_an_earlier_version_names_its_worker(machine: Machine) -> None:
    plane, worker_id = machine.plane(), uuid4()
    handle = await plane.start(worker_id, "here-1", KEY)
    handle.pop("since_boot", None)
    assert plane.is_running(handle)
    assert not plane.is_running({**handle, "created": handle["created"] - 100})


async def test_the_workers_of_another_owner_are_left_alone(machine: Machine) -> None:
    ours, theirs = machine.plane(), machine.plane(owner=f"another {uuid4()}")
    one, other = uuid4(), uuid4()
    await ours.start(one, "here-1", KEY)
    handle = await theirs.start(other, "here-1", KEY)
    await machine.ready(2)
    assert list(await ours.find()) == [one]
    assert list(await theirs.find()) == [other]
    await ours.stop_all(5)
    assert theirs.is_running(handle)
    assert [worker_id for worker_id, _ in machine.exits] == [one]


@pytest.fixture
def orphan(machine: Machine) -> Iterator[list[int]]:
    """Children of a worker, ended at last should the test fail."""
    pids: list[int] = []
    yield pids
    for pid in pids:
        if _alive(pid):
            psutil.Process(pid).kill()


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
async def test_nothing_is_left_of_a_worker_that_died(
    machine: Machine, orphan: list[int], number: signal.Signals
) -> None:
    """A handler in a process group of its own outlives its worker, but not the session that the worker led."""
    plane, worker_id = machine.plane("parent"), uuid4()
    handle = await plane.start(worker_id, "here-1", KEY)
    await machine.ready()
    child = int((machine.directory / "children").read_text())
    orphan.append(child)
    os.kill(handle["pid"], number)
    await machine.exited()
    await _gone(child)


async def test_a_polite_request_is_enough_for_most(machine: Machine) -> None:
    plane, worker_id = machine.plane(), uuid4()
    handle = await plane.start(worker_id, "here-1", KEY)
    await machine.ready()
    plane.stop(worker_id, handle, 600)
    assert await machine.exited() == [(worker_id, "the process was killed by SIGTERM")]


async def test_the_stubborn_are_killed_after_the_grace(machine: Machine) -> None:
    plane, worker_id = machine.plane("stubborn"), uuid4()
    handle = await plane.start(worker_id, "here-1", KEY)
    await machine.ready()
    plane.stop(worker_id, handle, 0.3)
    plane.stop(worker_id, handle, 600)
    assert await machine.exited() == [(worker_id, "the process was killed by SIGKILL")]
    assert not plane.is_running(handle)


async def test_stopping_all_waits_until_every_exit_is_reported(machine: Machine) -> None:
    plane, ids = machine.plane(), [uuid4() for _ in range(3)]
    for number, worker_id in enumerate(ids):
        await plane.start(worker_id, f"here-{number}", KEY)
    await machine.ready(3)
    await plane.stop_all(30)
    assert {worker_id for worker_id, _ in machine.exits} == set(ids)
    assert await plane.find() == {}


async def test_stopping_all_does_not_wait_for_a_report_that_nobody_takes(
    machine: Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(local, "_REPORT_SECONDS", 0.1)
    plane, worker_id = machine.plane(), uuid4()
    handle = await plane.start(worker_id, "here-1", KEY)
    await machine.ready()
    machine.listening.clear()
    await plane.stop_all(30)
    assert not plane.is_running(handle)
    machine.listening.set()


async def test_what_cannot_be_started_is_an_error_of_the_system(
    machine: Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "executable", str(machine.directory / "no-python"))
    plane = machine.plane()
    with pytest.raises(OSError, match="No such file"):
        await plane.start(uuid4(), "here-1", KEY)
    assert await plane.find() == {}


async def test_many_exits_at_once_are_all_seen(machine: Machine) -> None:
    plane, ids = machine.plane("exit"), [uuid4() for _ in range(6)]
    await asyncio.gather(*(plane.start(worker_id, f"here-{number}", KEY) for number, worker_id in enumerate(ids)))
    assert {worker_id for worker_id, _ in await machine.exited(6)} == set(ids)
    assert {reason for _, reason in machine.exits} == {"the process exited with code 7"}
