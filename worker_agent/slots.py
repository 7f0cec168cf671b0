"""Several workers of one host: a process that runs one for each slot, with its share of cores, memory and GPUs.

A slot whose worker dies gets another one; a worker that ends in order, as it was told to, is the end of its slot. A
stop signal goes on to every worker, and where this process is killed the kernel sends them one.
"""

import argparse
import asyncio
import contextlib
import logging
import math
import os
import signal
import socket
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from worker_agent.actions import ExitCode
from worker_agent.child_process import ResourceLimits
from worker_agent.gpus import keep_gpus
from worker_agent.kernel_calls import PARENT_ENDED
from worker_agent.processes import Process, start_process

log = logging.getLogger(__name__)
MAX_SLOTS = 1024
# Between two starts of one worker, doubled while it keeps dying within that time.
_FIRST_PAUSE_SECONDS, _LONGEST_PAUSE_SECONDS = 1.0, 30.0
# For a worker to give back its task after its grace.
_LEAVE_SECONDS = 10.0
# What another start would not change.
_FINAL_CODES = tuple(ExitCode(code) for code in ExitCode if code is not ExitCode.CRASHED)


@dataclass(frozen=True, slots=True, kw_only=True)
class Slot:
    """A worker to run: its options, which go over those that all have, and its variables."""

    name: str
    arguments: Sequence[str]
    variables: Mapping[str, str] = field(default_factory=dict)


def divide(
    options: argparse.Namespace, limits: ResourceLimits, named: Mapping[str, int], environment: Mapping[str, str]
) -> list[Slot]:
    """The slots of this host, each with an equal share; of what cannot be divided the first ones have one more.

    Raises ValueError, NoGpus.
    """
    if options.secrets_fd is not None or options.launched_as is not None:
        raise ValueError("--slots: whoever hands over secrets, or launches workers, starts one for each slot")
    count = options.slots
    memory, cores = (math.floor(amount / count * 100) / 100 for amount in (limits.memory_gb, limits.cpu_cores))
    if not (memory and cores):
        raise ValueError(f"--slots {count}: less than 0.01 GiB or cores for each")
    gpus = _gpus(options.gpus, environment)
    name = options.name or f"{socket.gethostname()}-{os.getpid()}"
    slots = []
    for number in range(count):
        arguments = ["--slots", "1", "--name", f"{name}-{number}", "--memory-gb", f"{memory:g}", "--cpu", f"{cores:g}"]
        share = _share(gpus, count, number)
        arguments += ["--gpus", str(share)]
        for resource, amount in named.items():
            arguments += ["--resource", f"{resource}={_share(amount, count, number)}"]
        if options.log_file is not None:
            arguments += ["--log-file", str(_numbered(options.log_file, number))]
        # A worker that keeps no devices hides none, and others of this host have them.
        hidden = {"CUDA_VISIBLE_DEVICES": "", "ROCR_VISIBLE_DEVICES": ""} if gpus and not share else {}
        slots.append(Slot(name=f"{name}-{number}", arguments=arguments, variables=hidden))
    return slots


def run(slots: Sequence[Slot], arguments: Sequence[str], grace_seconds: float) -> int:
    """Run a worker for each slot until all have ended; return the exit code, the highest of theirs."""
    return asyncio.run(_Slots(slots, arguments, grace_seconds).run())


class _Slots:
    def __init__(self, slots: Sequence[Slot], arguments: Sequence[str], grace_seconds: float) -> None:
        self._slots = slots
        self._arguments = arguments
        self._grace_seconds = grace_seconds
        self._stop = asyncio.Event()
        self._workers: dict[str, Process] = {}

    async def run(self) -> int:
        for number in (signal.SIGTERM, signal.SIGINT):
            asyncio.get_running_loop().add_signal_handler(number, self._pass_on, number)
        codes = await asyncio.gather(*(self._keep(slot) for slot in self._slots))
        return max(codes)

    def _pass_on(self, number: signal.Signals) -> None:
        # The second one means haste to a worker as well.
        self._stop.set()
        for worker in self._workers.values():
            with contextlib.suppress(ProcessLookupError):
                worker.send_signal(number)

    async def _keep(self, slot: Slot) -> int:
        pause = _FIRST_PAUSE_SECONDS
        while True:
            began_at = time.monotonic()
            code = await self._run(slot)
            if self._stop.is_set() or code in _FINAL_CODES:
                level = logging.INFO if code <= 0 else logging.WARNING
                log.log(level, "the worker of a slot has ended", extra={"fields": {"slot": slot.name, "code": code}})
                return max(code, 0)
            if time.monotonic() - began_at > _LONGEST_PAUSE_SECONDS:
                pause = _FIRST_PAUSE_SECONDS
            fields = {"slot": slot.name, "code": code, "again_in_seconds": pause}
            log.warning("the worker of a slot died", extra={"fields": fields})
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._stop.wait(), pause)
            if self._stop.is_set():
                return 0
            pause = min(2 * pause, _LONGEST_PAUSE_SECONDS)

    async def _run(self, slot: Slot) -> int:
        """The exit code of a worker, from its start to its end; one that cannot be started has crashed."""
        try:
            # In a session of its own, as the signals of a terminal come by way of this process, once.
            worker = start_process(
                sys.executable,
                *("-m", "worker_agent", *self._arguments, *slot.arguments),
                environment={**os.environ, **slot.variables},
                parent_ended=PARENT_ENDED,
            )
        except OSError as error:
            fields = {"slot": slot.name, "error": str(error)}
            log.warning("the worker of a slot cannot be started", extra={"fields": fields})
            return ExitCode.CRASHED
        self._workers[slot.name] = worker
        if self._stop.is_set():
            # The signal came while it was being started.
            worker.terminate()
        stopping, ending = asyncio.create_task(self._stop.wait()), asyncio.create_task(worker.wait())
        await asyncio.wait((stopping, ending), return_when=asyncio.FIRST_COMPLETED)
        stopping.cancel()
        try:
            async with asyncio.timeout(None if not self._stop.is_set() else self._grace_seconds + _LEAVE_SECONDS):
                code = await asyncio.shield(ending)
        except TimeoutError:
            worker.kill()
            code = await ending
        del self._workers[slot.name]
        return code


def _gpus(count: int | None, environment: Mapping[str, str]) -> int:
    """The number of devices to divide; those that are free for None. Workers keep theirs apart by locks."""
    keeper = keep_gpus(count, environment)
    keeper.close()
    return len(keeper.gpus)


def _share(amount: int, slots: int, number: int) -> int:
    return amount // slots + (number < amount % slots)


def _numbered(path: Path, number: int) -> Path:
    return path.with_name(f"{path.stem}-{number}{path.suffix}")
