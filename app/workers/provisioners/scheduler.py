"""Batch schedulers, of which blocks of nodes are asked for as jobs: the interface, and the run of their commands."""

import asyncio
import contextlib
import os
import re
import signal
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Protocol

from app.workers.provisioners.engine import CALL_SECONDS

# With the kill less than the turn that waits for it, which would cut off a slow command before that is told of.
_COMMAND_SECONDS = CALL_SECONDS - 5.0
_MAX_OUTPUT_BYTES = 64 << 20
_MAX_REASON_LENGTH = 300
# A killed program that still does not end, in the middle of a system call for one, is left to the system.
_KILL_SECONDS = 2.0


class JobState(StrEnum):
    """States of a job, as far as they matter to its workers; one that is ending still has processes, or its nodes."""

    QUEUED = "queued"
    RUNNING = "running"
    SUSPENDED = "suspended"
    ENDING = "ending"
    ENDED = "ended"


@dataclass(frozen=True, slots=True, kw_only=True)
class JobRequest:
    """A job of `nodes` nodes; `script` runs on the first, and writes its output to the file `log`."""

    name: str
    comment: str
    nodes: int
    walltime_seconds: int
    script: str
    log: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    """A job as its scheduler tells of it; `reason` is why it waits, or how it ended.

    One that is stuck waits for somebody to release or change it, and for nothing else. `nodes` are those that one which
    runs still has; None: nobody tells.
    Times are seconds since 1970 by the scheduler's clock.
    """

    id: str
    name: str
    state: JobState
    reason: str
    started_at: float | None = None
    ends_at: float | None = None
    is_stuck: bool = False
    nodes: int | None = None


class SchedulerError(Exception):
    """A command of the scheduler failed, or did not answer; `is_refusal` when it answered that it will not do it."""

    def __init__(self, message: str, *, is_refusal: bool = False) -> None:
        super().__init__(message)
        self.is_refusal = is_refusal


class BatchScheduler(Protocol):
    """The batch scheduler of a cluster, through its own commands. Every method raises SchedulerError."""

    kind: str

    async def submit(self, request: JobRequest) -> str:
        """Submit a job; return its id."""
        ...

    async def jobs(self) -> Sequence[Job]:
        """The jobs of this user that have not ended, and maybe those that have lately."""
        ...

    async def cancel(self, job_ids: Sequence[str]) -> None:
        """Cancel jobs; one that has ended is no error."""
        ...


class SchedulerCommands:
    """The commands of a batch scheduler; `away_signs` are what they say where the service itself cannot be reached."""

    def __init__(self, environment: Mapping[str, str], away_signs: Sequence[str]) -> None:
        self._environment = dict(environment)
        self._away_signs = tuple(away_signs)

    async def run(self, *words: str, text: str | None = None) -> str:
        """Run one; return what it prints. Raises SchedulerError, which is a refusal only where the service answered."""
        try:
            return await run_command(*words, environment=self._environment, text=text)
        except SchedulerError as error:
            if error.is_refusal and any(sign in str(error).lower() for sign in self._away_signs):
                raise SchedulerError(str(error)) from None
            raise

    async def submit(self, program: str, *words: str, script: str, job_id: re.Pattern[str]) -> str:
        """Submit a script by a program whose last line has the id of the job, the group `id`. Raises SchedulerError."""
        printed = (await self.run(program, *words, text=script)).strip()
        match = job_id.fullmatch(printed.rpartition("\n")[2].strip())
        if match is None:
            raise SchedulerError(f"{program}: printed {printed[:100]!r} instead of the id of a job")
        return match["id"]


async def run_command(
    *words: str,
    environment: Mapping[str, str],
    text: str | None = None,
    seconds: float = _COMMAND_SECONDS,
) -> str:
    """Run a command of the scheduler; return what it prints. Raises SchedulerError with the last that it said."""
    program = words[0]
    try:
        process = await asyncio.create_subprocess_exec(
            *words,
            stdin=asyncio.subprocess.DEVNULL if text is None else asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
            env={**environment, "LC_ALL": "C"},
            start_new_session=True,
        )
    except OSError as error:
        raise SchedulerError(f"{program} cannot be started: {error.strerror}", is_refusal=True) from None
    try:
        async with asyncio.timeout(seconds):
            output, errors = await process.communicate(None if text is None else text.encode())
    except BaseException as error:
        await _end(process)
        if isinstance(error, TimeoutError):
            raise SchedulerError(f"{program} has not answered within {seconds:.0f} s") from None
        raise
    if process.returncode:
        # Many begin what they say with their own name.
        raise SchedulerError(f"{program}: {_last_line(errors or output).removeprefix(f'{program}: ')}", is_refusal=True)
    if len(output) > _MAX_OUTPUT_BYTES:
        raise SchedulerError(f"{program} prints more than {_MAX_OUTPUT_BYTES >> 20} MiB")
    return output.decode(errors="replace")


async def _end(process: asyncio.subprocess.Process) -> None:
    # It leads a session of its own: sites wrap commands, and what a wrapper runs would stay, also where that has ended.
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    try:
        async with asyncio.timeout(_KILL_SECONDS):
            await process.wait()
    except TimeoutError:
        return


def _last_line(output: bytes) -> str:
    lines = [line.strip() for line in output.decode(errors="replace").splitlines() if line.strip()]
    return lines[-1][:_MAX_REASON_LENGTH] if lines else "failed without a word"
