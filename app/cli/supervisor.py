"""A small supervisor: PostgreSQL, the API and the loops as children that are restarted when they die.

The children end with this process, however it ends: on Linux the kernel signals them, and the next start ends those
that are left over, which it finds by their record.
"""

import asyncio
import contextlib
import json
import logging
import os
import signal
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil

from app.postgres.accounts import bound_command
from app.postgres.errors import EmbeddedError
from app.postgres.server import Server
from app.secrecy import SECRETS_FD, handed_over, open_log, write_private
from app.workers.provisioners.last_error import last_error
from app.workers.provisioners.process_tables import is_start_of, start_marks

log = logging.getLogger(__name__)
# A child that ran for longer does not crash when it starts: it takes some two seconds for that.
_CALM_SECONDS = 4.0
_LONGEST_PAUSE_SECONDS = 5.0
_PRUNE_SECONDS = 60.0
_LEFTOVER_SECONDS = 3.0


@dataclass(slots=True, kw_only=True)
class Program:
    """A Python module that runs as a child; `stop_seconds` is its time to end in order.

    Variables in `secrets` are handed over by a pipe, since every program of this user may look at an environment.
    """

    name: str
    module: str
    environment: Mapping[str, str]
    stop_seconds: float
    secrets: Mapping[str, str] = field(default_factory=dict, repr=False)
    output: Path | None = None
    restarts: int = 0
    _process: asyncio.subprocess.Process | None = field(default=None, init=False)

    @property
    def pid(self) -> int | None:
        """The pid while it runs."""
        running = self._process is not None and self._process.returncode is None
        return self._process.pid if running and self._process else None

    async def start(self) -> None:
        """Start it, bound to the life of this process."""
        # With `-P` a directory named `app` where the user stands is not imported as ours.
        command = bound_command(Path.cwd(), sys.executable, "-P", "-m", self.module)
        output = open_log(self.output) if self.output else None
        try:
            with handed_over(self.secrets) as descriptor:
                self._process = await asyncio.create_subprocess_exec(
                    *command,
                    env={**self.environment, SECRETS_FD: str(descriptor)},
                    pass_fds=[descriptor],
                    stdin=asyncio.subprocess.DEVNULL,
                    stdout=output,
                    stderr=output,
                    # Ctrl-C must reach this process alone, which then stops the children in order.
                    start_new_session=True,
                )
        finally:
            if output is not None:
                os.close(output)

    async def wait(self) -> int:
        """Wait for its end; return its exit code."""
        assert self._process is not None
        return await self._process.wait()

    def send(self, number: signal.Signals) -> None:
        """Send it a signal, if it runs."""
        if self.pid is not None:
            with contextlib.suppress(ProcessLookupError):
                os.kill(self.pid, number)

    async def stop(self, number: signal.Signals = signal.SIGTERM) -> None:
        """Ask it to end by this signal; kill it after `stop_seconds`."""
        if self._process is None or self._process.returncode is not None:
            return
        self.send(number)
        try:
            await asyncio.wait_for(self._process.wait(), self.stop_seconds)
        except TimeoutError:
            log.warning("%s did not stop within %.0f s; killing it", self.name, self.stop_seconds)
            self._process.kill()
            await self._process.wait()


class Supervisor:
    """Keeps the children running until `stop`. Programs start in the given order and stop in reverse."""

    def __init__(self, server: Server | None, programs: list[Program], record: Path) -> None:
        self._server = server
        self._programs = programs
        self._record = record
        self._keepers: list[asyncio.Task[None]] = []
        self._server_restarts = 0
        self._hurry: signal.Signals | None = None

    async def start_programs(self) -> None:
        """Start all programs and begin to watch everything."""
        for program in self._programs:
            await program.start()
        self._write_record()
        self._keepers = [asyncio.create_task(self._keep(program)) for program in self._programs]
        if self._server is not None:
            self._keepers.append(asyncio.create_task(self._keep_server(self._server)))
            self._keepers.append(asyncio.create_task(_keep_logs_few(self._server)))

    def hasten(self) -> None:
        """Let what stops, or will, not wait for tasks; called again, not for anything."""
        if self._hurry is not None:
            for program in self._programs:
                program.send(self._hurry)
        self._hurry = signal.SIGINT

    async def stop(self) -> None:
        """End the programs in order, and PostgreSQL last."""
        # The keepers first, which would start again what is stopped here.
        for keeper in self._keepers:
            keeper.cancel()
        await asyncio.gather(*self._keepers, return_exceptions=True)
        # The loops before the API, because their workers still hand tasks back through it.
        for program in reversed(self._programs):
            await program.stop(self._hurry or signal.SIGTERM)
        if self._server is not None:
            await self._server.stop()
        self._record.unlink(missing_ok=True)

    def restarts(self) -> dict[str, int]:
        """Number of restarts of each child."""
        return {program.name: program.restarts for program in self._programs} | {"postgres": self._server_restarts}

    async def _keep(self, program: Program) -> None:
        pause = 0.1
        while True:
            started_at = asyncio.get_running_loop().time()
            code = await program.wait()
            # A single crash costs 0.1 s; in a crash loop the pauses double.
            if asyncio.get_running_loop().time() - started_at > _CALM_SECONDS:
                pause = 0.1
            text = f"{program.name} {_describe_exit(code)}{await asyncio.to_thread(_cause, program)}"
            log.warning("%s; starting it again in %.1f s", text, pause)
            await asyncio.sleep(pause)
            pause = min(_LONGEST_PAUSE_SECONDS, pause * 2)
            try:
                await program.start()
            except OSError:
                # The next turn finds the old process ended, and tries again after a longer pause.
                log.exception("%s could not be started, trying again", program.name)
            program.restarts += 1
            self._note_restart()

    async def _keep_server(self, server: Server) -> None:
        pause = 0.1
        while True:
            url = server.url
            code = await server.wait()
            log.warning("PostgreSQL %s; starting it again", _describe_exit(code))
            try:
                await server.start()
            except Exception as error:
                is_expected = isinstance(error, EmbeddedError | OSError)
                reason = "; ".join(str(error).splitlines())
                log.error("PostgreSQL could not be started, trying again: %s", reason, exc_info=not is_expected)
                pause = min(_LONGEST_PAUSE_SECONDS, pause * 2)
            else:
                pause = 0.1
            if server.url != url:  # the programs have the old address in their environment
                log.error("PostgreSQL came back at another address; stop Convener and start it again")
            self._server_restarts += 1
            await asyncio.sleep(pause)

    def _note_restart(self) -> None:
        """Write the record where that is possible: a full disk must not end the watch over the children."""
        try:
            self._write_record()
        except OSError as error:
            log.warning("%s could not be written (%s)", self._record, error.strerror or error)

    def _write_record(self) -> None:
        records = []
        for pid in (program.pid for program in self._programs):
            with contextlib.suppress(psutil.NoSuchProcess):
                if pid is not None:
                    records.append({"pid": pid, **start_marks(psutil.Process(pid))})
        write_private(self._record, json.dumps(records))


async def _keep_logs_few(server: Server) -> None:
    while True:
        await asyncio.to_thread(server.prune_logs)
        await asyncio.sleep(_PRUNE_SECONDS)


def end_leftovers(record: Path) -> int:
    """End the children of a supervisor that was killed; return the number that were still running."""
    try:
        records = json.loads(record.read_text())
    except (FileNotFoundError, ValueError):
        return 0
    leftovers = [process for entry in records if (process := _recorded_process(entry))]
    for process in leftovers:
        with contextlib.suppress(psutil.NoSuchProcess):
            process.terminate()
    _, stubborn = psutil.wait_procs(leftovers, timeout=_LEFTOVER_SECONDS)
    for process in stubborn:
        with contextlib.suppress(psutil.NoSuchProcess):
            process.kill()
    psutil.wait_procs(stubborn, timeout=_LEFTOVER_SECONDS)
    record.unlink(missing_ok=True)
    return len(leftovers)


def _recorded_process(entry: dict[str, Any]) -> psutil.Process | None:
    # Pids are reused, so only its start tells whether this is still the recorded process.
    with contextlib.suppress(psutil.NoSuchProcess):
        process = psutil.Process(entry["pid"])
        if is_start_of(process, entry):
            return process
    return None


def _cause(program: Program) -> str:
    """The last error in the log of a program that has one, and where that is."""
    if program.output is None:
        return ""
    error = last_error(program.output, secrets=program.secrets.values())
    return f" ({error}; see {program.output})" if error else f" (see {program.output})"


def _describe_exit(code: int | None) -> str:
    if code is not None and code < 0:
        return f"was killed by {signal.Signals(-code).name}"
    return f"ended with code {code}"
