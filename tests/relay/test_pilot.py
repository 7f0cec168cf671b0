"""The pilot of a node: which file of keys it trusts, and that it restarts its workers with the key of the moment."""

import asyncio
import errno
import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from app.cli.pilot import _node, _seconds
from app.relay import pilot
from app.relay.pilot import PilotSettings, read_secrets
from app.secrecy import write_private
from tests.worker_agent.fake_control_plane import POOL_KEY, FakeControlPlane, served
from tests.worker_agent.waiting import until
from worker_agent.processes import Process


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
    times = {"SLURM_JOB_START_TIME": "1000", "SLURM_JOB_END_TIME": "1060"}
    assert [_seconds(times, now) for now in (1020.0, 760.0)] == [40.0, 60.0]


class _Process:
    """A process that runs until it is told to end, unless it `dies` at once."""

    def __init__(self, name: str, ends: list[str], *, dies: bool) -> None:
        self.returncode: int | None = None
        self._name, self._ends = name, ends
        self._over = asyncio.Event()
        if dies:
            self.terminate()

    def terminate(self) -> None:
        self.returncode = 1
        self._ends.append(self._name)
        self._over.set()

    async def wait(self) -> int | None:
        await self._over.wait()
        return self.returncode


@pytest.mark.parametrize("failing", ["relay", "b-0-1"])
async def test_a_start_that_fails_is_repeated_and_ends_no_other(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, failing: str
) -> None:
    starts: list[str] = []
    ends: list[str] = []

    def start(*words: str, **_: Any) -> _Process:
        name = words[words.index("--name") + 1] if "--name" in words else "relay"
        starts.append(name)
        assert name == "relay" or words[words.index("--hide") + 1] == str(tmp_path / "secrets")
        if name == failing and starts.count(name) == 2:
            raise BlockingIOError(errno.EAGAIN, "no process")
        if name == "relay":
            (tmp_path / "relay.sock").touch()
        return _Process(name, ends, dies=name == failing and starts.count(name) == 1)

    monkeypatch.setattr(pilot, "start_process", start)
    monkeypatch.setattr(pilot, "_FIRST_PAUSE_SECONDS", 0.01)
    monkeypatch.setattr(pilot, "_LOOK_SECONDS", 0.005)
    write_private(tmp_path / "secrets", json.dumps({"CONVENER_KEY": "k"}))
    node = pilot._Pilot(_settings(tmp_path, slots=2), tmp_path)
    running = asyncio.create_task(node.run())
    try:
        async with asyncio.timeout(10):
            while (starts.count(failing) < 3 or len(set(starts)) < 3) and not running.done():
                await asyncio.sleep(0.005)
        assert not running.done()
        assert ends == [failing], "of all only the one that died has ended"
        assert sorted(starts) == sorted(["b-0-0", "b-0-1", "relay", failing, failing])
    finally:
        node._stop.set()
        await asyncio.wait_for(asyncio.gather(running, return_exceptions=True), 10)
        for number in (signal.SIGTERM, signal.SIGINT):
            asyncio.get_running_loop().remove_signal_handler(number)
    assert sorted(ends[1:]) == ["b-0-0", "b-0-1", "relay"]
    assert ends[-1] == "relay", "workers report by the relay until they have ended"


_RELAY = """
import asyncio, sys
async def answer(reader, writer):
    await reader.readuntil(b"\\r\\n\\r\\n")
    writer.write(b"HTTP/1.1 200 OK\\r\\nContent-Length: 0\\r\\nConnection: close\\r\\n\\r\\n")
    writer.close()
    print(flush=True)
async def main():
    async with await asyncio.start_unix_server(answer, sys.argv[1]) as server:
        await server.serve_forever()
asyncio.run(main())
"""


async def test_a_relay_that_hangs_is_started_anew(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its workers have no other way, and those of one that is killed wait for a second."""
    relays: list[subprocess.Popen[bytes]] = []

    def start(*_: str, **__: Any) -> Process:
        words = [sys.executable, "-c", _RELAY, str(tmp_path / "relay.sock")]
        relays.append(subprocess.Popen(words, stdout=subprocess.PIPE))
        return Process(relays[-1])

    monkeypatch.setattr(pilot, "start_process", start)
    monkeypatch.setattr(pilot, "_FIRST_PAUSE_SECONDS", 0.01)
    monkeypatch.setattr(pilot, "_LOOK_SECONDS", 0.05)
    monkeypatch.setattr(pilot, "_ANSWER_SECONDS", 0.3, raising=False)
    keeping = asyncio.create_task(pilot._Pilot(_settings(tmp_path, slots=0), tmp_path)._keep_relay())
    try:
        async with asyncio.timeout(10):
            while not relays:
                await asyncio.sleep(0.01)
            assert relays[0].stdout is not None
            await asyncio.to_thread(relays[0].stdout.readline)
            relays[0].send_signal(signal.SIGSTOP)
            while len(relays) < 2:
                await asyncio.sleep(0.01)
        assert relays[0].returncode == -signal.SIGKILL
    finally:
        keeping.cancel()
        await asyncio.gather(keeping, return_exceptions=True)
        for relay in relays:
            relay.kill()
            relay.communicate()


def _settings(directory: Path, *, slots: int) -> PilotSettings:
    return PilotSettings(
        url="http://127.0.0.1:1",
        name="b",
        node=0,
        slots=slots,
        secrets=directory / "secrets",
        seconds=None,
        grace_seconds=1.0,
        worker_arguments=[],
    )


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
            until(lambda: f"there is no {secrets} yet" in (tmp_path / "log").read_text())
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
    said = (tmp_path / "log").read_text()
    assert ("CONVENER" in said, said.count(f"there is no {secrets} yet")) == (False, 1), "of two slots one waits aloud"


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
