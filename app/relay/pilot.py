"""The pilot of a node: in a job of a batch scheduler, it runs a relay and the workers of the node until the job ends.

It keeps its workers running: one that has died or left is started again, with the key that the file holds by then. It
ends when it is told to, or shortly before the end of the job, which its workers know too.
"""

import asyncio
import contextlib
import json
import logging
import os
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import httpx

from app.secrecy import PRIVATE_FILE, handed_over
from worker_agent.connections.clients import MAX_SOCKET_PATH_BYTES, open_async_client
from worker_agent.connections.trust import SYSTEM_TRUST
from worker_agent.processes import Process, start_process

log = logging.getLogger(__name__)
_SOCKET = "relay.sock"
# A file of keys comes once the control plane has seen that the job runs.
_LOOK_SECONDS = 0.5
# Between two starts of one worker, doubled while it keeps dying within that time.
_FIRST_PAUSE_SECONDS, _LONGEST_PAUSE_SECONDS = 1.0, 30.0
# For a worker to give back its task after its grace, and for the relay to pass that on.
_KILL_SECONDS = 5.0
_RELAY_SECONDS = 6.0
# Of the relay to be asked whether it lives. Workers count as lost when they are silent for longer than both.
_ANSWER_SECONDS, _MAX_MISSES = 3.0, 2
# When the pilot is killed: a job is not over while its outputs are open.
_PILOT_ENDED = signal.SIGTERM


@dataclass(frozen=True, slots=True, kw_only=True)
class PilotSettings:
    """The node's share of a job: workers `NAME-NODE-0` and up to `slots`; `secrets` is a file that holds their keys.

    The job ends in `seconds` from now; None: nobody knows.
    """

    url: str
    name: str
    node: int
    slots: int
    secrets: Path
    seconds: float | None
    grace_seconds: float
    worker_arguments: Sequence[str]
    relay_arguments: Sequence[str] = ()


def run(settings: PilotSettings) -> None:
    """Run until SIGTERM or SIGINT, or until the job is about to end. Raises OSError."""
    directory = Path(_make_directory())
    try:
        asyncio.run(_Pilot(settings, directory).run())
    finally:
        shutil.rmtree(directory, ignore_errors=True)


def read_secrets(path: Path) -> Mapping[str, str] | None:
    """The variables in a file of secrets; None where there is none yet. Raises ValueError, OSError.

    A file that others can read is refused, as are links, which may lead to one.
    """
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
    except FileNotFoundError:
        return None
    with os.fdopen(descriptor, encoding="utf-8") as file:
        if os.fstat(file.fileno()).st_mode & 0o777 & ~PRIVATE_FILE:
            raise ValueError(f"others can read {path}: its keys are not used")
        values = json.load(file)
    if not isinstance(values, dict) or not all(isinstance(value, str) for value in values.values()):
        raise ValueError(f"{path} is no JSON object of texts")
    return values


class _Pilot:
    def __init__(self, settings: PilotSettings, directory: Path) -> None:
        self._settings = settings
        self._socket = directory / _SOCKET
        self._stop = asyncio.Event()
        self._trouble = ""
        self._ends_at = None if settings.seconds is None else time.monotonic() + settings.seconds

    async def run(self) -> None:
        """Run the relay and the workers."""
        for number in (signal.SIGTERM, signal.SIGINT):
            asyncio.get_running_loop().add_signal_handler(number, self._stop.set)
        relay = asyncio.create_task(self._keep_relay(), name="relay")
        names = [f"worker {slot}" for slot in range(self._settings.slots)]
        workers = [asyncio.create_task(self._keep_worker(slot), name=name) for slot, name in enumerate(names)]
        for task in (relay, *workers):
            task.add_done_callback(_tell_failure)
        try:
            # A worker's own end before that of the job is no reason to end the others, nor is a failure of its keeper.
            # The relay goes last: by it they report what they have done.
            await asyncio.gather(*workers, return_exceptions=True)
        finally:
            relay.cancel()
            await asyncio.gather(relay, return_exceptions=True)
        log.info("all workers of this node have ended")

    async def _keep_relay(self) -> None:
        listen, path = f"unix:{self._socket}", str(self._socket)
        words = ["-m", "app.cli", "relay", "--url", self._settings.url, "--listen", listen]
        words += self._settings.relay_arguments
        while True:
            try:
                await self._run_relay(words)
                with contextlib.suppress(FileNotFoundError):
                    os.unlink(path)
            except OSError as error:
                log.warning("the relay cannot be started: %s", error)
            await asyncio.sleep(_FIRST_PAUSE_SECONDS)

    async def _run_relay(self, words: Sequence[str]) -> None:
        process = start_process(sys.executable, *words, parent_ended=_PILOT_ENDED)
        watching = asyncio.create_task(self._kill_when_hung(process), name="watch of the relay")
        watching.add_done_callback(_tell_failure)
        try:
            code = await process.wait()
            log.warning("the relay has ended with %d, starting another", code)
        finally:
            watching.cancel()
            await _end(process, _RELAY_SECONDS)

    async def _kill_when_hung(self, relay: Process) -> None:
        """Kill a relay that has answered and does so no more, as the workers have no other way."""
        has_answered, misses = False, 0
        async with open_async_client(f"unix:{self._socket}", SYSTEM_TRUST, timeout=_ANSWER_SECONDS) as client:
            while misses < _MAX_MISSES:
                await asyncio.sleep(_LOOK_SECONDS)
                try:
                    await client.get("/livez")
                except httpx.HTTPError:
                    misses += has_answered
                else:
                    has_answered, misses = True, 0
        log.warning("the relay hangs, and is killed")
        relay.kill()

    async def _keep_worker(self, slot: int) -> None:
        pause = _FIRST_PAUSE_SECONDS
        while not self._is_over():
            secrets = await self._secrets()
            if secrets is None:
                return
            began_at = time.monotonic()
            try:
                end = f"has ended with {await self._run_worker(slot, secrets)}"
            except OSError as error:
                end = f"cannot be started: {error}"
            if self._is_over():
                return
            # One that has lived for long starts anew at once; one that dies again and again does so at intervals.
            pause = _FIRST_PAUSE_SECONDS if time.monotonic() - began_at > _LONGEST_PAUSE_SECONDS else pause * 2
            pause = min(pause, _LONGEST_PAUSE_SECONDS)
            log.info("worker %d %s; starting it again in %.0f s", slot, end, pause)
            await self._wait(pause)

    async def _secrets(self) -> Mapping[str, str] | None:
        """The secrets, as soon as there are some; None where the pilot is told to end before."""
        while not self._is_over():
            secrets, level, trouble = None, logging.INFO, f"there is no {self._settings.secrets} yet"
            try:
                secrets = read_secrets(self._settings.secrets)
            except (OSError, ValueError) as error:
                # Shared file systems have bad moments, and files are replaced while they are read.
                level, trouble = logging.WARNING, str(error)
            if secrets is None and self._trouble != trouble:
                self._trouble = trouble
                log.log(level, "cannot read the keys: %s", trouble)
            if secrets is not None and self._socket.exists():
                return secrets
            await self._wait(_LOOK_SECONDS)
        return None

    async def _run_worker(self, slot: int, secrets: Mapping[str, str]) -> int:
        settings = self._settings
        words = [
            "-m",
            "worker_agent",
            "--url",
            f"unix:{self._socket}",
            "--name",
            f"{settings.name}-{settings.node}-{slot}",
        ]
        words += ["--hide", str(settings.secrets)]
        words += [*settings.worker_arguments, "--grace", f"{settings.grace_seconds:g}"]
        if self._ends_at is not None:
            words += ["--seconds-left", f"{max(0.0, self._ends_at - time.monotonic()):.1f}"]
        with handed_over(secrets) as descriptor:
            words += ["--secrets-fd", str(descriptor)]
            process = start_process(sys.executable, *words, pass_fds=(descriptor,), parent_ended=_PILOT_ENDED)
        stopping = asyncio.create_task(self._stop.wait())
        ending = asyncio.create_task(process.wait())
        try:
            await asyncio.wait((stopping, ending), return_when=asyncio.FIRST_COMPLETED)
        finally:
            stopping.cancel()
            await _end(process, settings.grace_seconds + _KILL_SECONDS)
        return await ending

    def _is_over(self) -> bool:
        return self._stop.is_set() or (self._ends_at is not None and time.monotonic() >= self._ends_at - _KILL_SECONDS)

    async def _wait(self, seconds: float) -> None:
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self._stop.wait(), seconds)


def _tell_failure(task: asyncio.Task[None]) -> None:
    if not task.cancelled() and (error := task.exception()) is not None:
        log.error("the keeper of the %s has failed", task.get_name(), exc_info=error)


async def _end(process: Process, seconds: float) -> None:
    """SIGTERM now, SIGKILL when the seconds are over."""
    if process.returncode is not None:
        return
    with contextlib.suppress(ProcessLookupError):
        process.terminate()
    try:
        await asyncio.wait_for(process.wait(), seconds)
    except TimeoutError:
        with contextlib.suppress(ProcessLookupError):
            process.kill()
        await process.wait()


def _make_directory() -> str:
    """A directory of this user alone, short enough for the path of a socket in it."""
    for place in (tempfile.gettempdir(), "/tmp"):  # noqa: S108 - its mode is 0700
        directory = tempfile.mkdtemp(prefix="convener-", dir=place)
        if len(os.fsencode(os.path.join(directory, _SOCKET))) <= MAX_SOCKET_PATH_BYTES:
            return directory
        os.rmdir(directory)
    raise OSError("no directory is short enough for a unix socket: set TMPDIR")
