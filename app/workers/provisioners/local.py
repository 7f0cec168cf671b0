"""Worker daemons as processes on this machine, which are watched for their exit and outlive a crash of ours.

Each worker leads a session of its own, so that whatever it leaves behind can be found and ended. Its command line
names owner and worker, by which a later run of the control plane recognizes it: its environment cannot be read. Its
secrets come through a pipe.
"""

import asyncio
import contextlib
import logging
import os
import signal
import subprocess
import sys
from collections.abc import Awaitable, Callable, Mapping
from pathlib import Path
from uuid import UUID

import psutil

from app.process_exit import until_exit
from app.secrecy import handed_over, make_private, open_log
from app.workers.provisioners.base import Handle
from app.workers.provisioners.last_error import last_error
from app.workers.provisioners.process_tables import Origin, is_start_of, own_table, seconds_since_start, start_marks

log = logging.getLogger(__name__)
OWNER_VARIABLE = "CONVENER_OWNER"
_MARK, _LOG_FILE = "--launched-as=", "--log-file="
# At the end the database may be away for good; an exit that is not reported is found when the loops start again.
_REPORT_SECONDS = 3.0
_HALT_SECONDS = 1.5
# Hears which worker has ended, how, and the last error in its log.
Exit = Callable[[UUID, str, str | None], Awaitable[None]]


class LocalProvisioner:
    """Runs `python -m worker_agent` as child processes."""

    kind = "local"

    def __init__(
        self,
        *,
        host: str,
        owner: str,
        arguments: list[str],
        environment: Mapping[str, str],
        secrets: Mapping[str, str],
        logs: Path,
        on_exit: Exit,
    ) -> None:
        """`owner` tells our workers from those of another Convener on this machine.

        `secrets` are variables that each worker gets, but not in its environment.
        """
        self.host = host
        self._owner = owner
        self._arguments = arguments
        self._environment = dict(environment)
        self._secrets = dict(secrets)
        self._logs = logs
        self._on_exit = on_exit
        self._watchers: dict[UUID, asyncio.Task[None]] = {}
        self._stopping: dict[UUID, asyncio.Task[None]] = {}
        self._children: dict[int, subprocess.Popen[bytes]] = {}
        self._log_begins: dict[int, int] = {}
        self._has_told_of_twin = False

    async def start(self, worker_id: UUID, name: str, key: str) -> Handle:
        """Start the worker unless it runs already."""
        present = (await self.find()).get(worker_id)
        if present is None:
            present = await asyncio.to_thread(self._spawn, worker_id, name, key)
        self.adopt(worker_id, present)
        return present

    def stop(self, worker_id: UUID, handle: Handle, grace_seconds: float) -> None:
        """SIGTERM now, which drains; again when the grace is over, and soon SIGKILL to its whole session."""
        # Once: a repetition must not begin the grace anew.
        if worker_id not in self._stopping and own_table().origin(handle) is Origin.HERE:
            task = asyncio.create_task(self._end(handle, grace_seconds), name=f"stop {worker_id}")
            self._stopping[worker_id] = task
            task.add_done_callback(lambda _: self._stopping.pop(worker_id, None))

    async def stop_all(self, grace_seconds: float, *, report_seconds: float = _REPORT_SECONDS) -> None:
        """End every worker of this owner; used when the control plane stops in order.

        The exits are reported meanwhile, for at most `report_seconds` more.
        """
        for worker_id, handle in (await self.find()).items():
            self.stop(worker_id, handle, grace_seconds)
        await asyncio.gather(*self._stopping.values(), return_exceptions=True)
        if self._watchers and report_seconds:
            await asyncio.wait(self._watchers.values(), timeout=report_seconds)

    async def kill_all(self) -> None:
        """End every worker of this owner at once, and all that its tasks have started."""
        for handle in (await self.find()).values():
            _end_session(handle)

    def is_running(self, handle: Handle) -> bool:
        """Whether the process of the handle, not another with its pid, still runs."""
        return _process(handle) is not None

    def is_foreign(self, handle: Handle, silent_seconds: float) -> bool:
        """Whether the process is in the table of another machine, or of a twin of this one that may be alive."""
        match own_table().origin(handle):
            case Origin.HERE:
                return False
            case Origin.RESTARTED:
                return silent_seconds <= seconds_since_start()
            case Origin.ELSEWHERE:
                return True

    def tell_of_twin(self, handle: Handle, heard_seconds_ago: float | None) -> None:
        """Warn, once, where a foreign process has been heard of since the process table here began."""
        is_alive = heard_seconds_ago is not None and heard_seconds_ago < seconds_since_start()
        if is_alive and not self._has_told_of_twin:
            self._has_told_of_twin = True
            log.warning("another machine keeps the pool of host %s: set CONVENER_HOST_NAME on one of them", self.host)

    async def find(self) -> dict[UUID, Handle]:
        """Search the processes of this machine for those that carry our mark."""
        return await asyncio.to_thread(self._find)

    def adopt(self, worker_id: UUID, handle: Handle) -> None:
        """Watch the process until it exits."""
        if worker_id not in self._watchers and own_table().origin(handle) is Origin.HERE:
            task = asyncio.create_task(self._watch(worker_id, handle), name=f"watch {worker_id}")
            self._watchers[worker_id] = task

    def _find(self) -> dict[UUID, Handle]:
        handles = {}
        for process in psutil.process_iter():
            with contextlib.suppress(psutil.Error, OSError, ValueError):
                # Only leaders of sessions are workers: between fork and exec a handler's process looks like its worker.
                # The status of each is a file to read, which few come to.
                if os.getsid(process.pid) != process.pid or process.status() == psutil.STATUS_ZOMBIE:
                    continue
                # A handler, which as root has another user, could have such a command line as well.
                if process.uids().real != os.getuid():
                    continue
                mark = f"{_MARK}{self._owner}:"
                words = process.cmdline()
                for argument in words:
                    if argument.startswith(mark):
                        logs = [word.removeprefix(_LOG_FILE) for word in words if word.startswith(_LOG_FILE)]
                        handles[UUID(argument.removeprefix(mark))] = _handle(process, *logs[:1])
        return handles

    def _spawn(self, worker_id: UUID, name: str, key: str) -> Handle:
        make_private(self._logs)
        variables = {**self._environment, OWNER_VARIABLE: self._owner}
        command = [sys.executable, "-m", "worker_agent", "--name", name, *self._arguments]
        log_file = self._logs / f"{name}.log"
        command += [f"{_LOG_FILE}{log_file}", f"{_MARK}{self._owner}:{worker_id}"]
        with (
            handed_over({**self._secrets, "CONVENER_KEY": key}) as secrets,
            os.fdopen(open_log(log_file), "ab") as output,
        ):
            log_begin = os.fstat(output.fileno()).st_size
            child = subprocess.Popen(
                [*command, f"--secrets-fd={secrets}"],
                env=variables,
                pass_fds=(secrets,),
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                # Signals to our own session, such as Ctrl-C, must not reach it: it is stopped in order.
                start_new_session=True,
            )
        self._children[child.pid], self._log_begins[child.pid] = child, log_begin
        return _handle(psutil.Process(child.pid), str(log_file))

    async def _end(self, handle: Handle, grace_seconds: float) -> None:
        process = _process(handle)
        if process is None:
            return
        # To a worker the second signal means to give its task back now.
        for seconds in (grace_seconds, min(grace_seconds, _HALT_SECONDS)):
            with contextlib.suppress(psutil.NoSuchProcess, TimeoutError):
                process.send_signal(signal.SIGTERM)
                await asyncio.wait_for(_exit(handle), seconds)
                break
        _end_session(handle)

    async def _watch(self, worker_id: UUID, handle: Handle) -> None:
        try:
            await _exit(handle)
            # Handlers of tasks may outlive a worker that was killed.
            _end_session(handle)
            child = self._children.pop(handle["pid"], None)
            code = child.wait(timeout=5) if child else None
            await self._on_exit(worker_id, _describe(code), await self._tell_of_exit(worker_id, handle, code))
        finally:
            self._watchers.pop(worker_id, None)

    async def _tell_of_exit(self, worker_id: UUID, handle: Handle, code: int | None) -> str | None:
        """Log that the process has ended; return the last error in its log, unless it ended in order."""
        begin = self._log_begins.pop(handle["pid"], 0)
        log_file, about = handle.get("log"), {"worker_id": str(worker_id), "pid": handle["pid"], "code": code}
        if code == 0 or worker_id in self._stopping or log_file is None:
            log.info("worker process ended", extra=about)
            return None
        error = await asyncio.to_thread(last_error, Path(log_file), begin, self._secrets.values())
        text = f"the last error in its log is: {error}" if error else "there is no error in its log"
        log.warning("a worker has died, %s; %s; see %s", _describe(code), text, log_file, extra=about)
        return error


def _handle(process: psutil.Process, log_file: str | None = None) -> Handle:
    # A pid may belong to another process by now; together with the time of its start it is unique.
    return {"pid": process.pid, **start_marks(process), "log": log_file, **own_table().marks()}


def _process(handle: Handle) -> psutil.Process | None:
    with contextlib.suppress(psutil.NoSuchProcess):
        process = psutil.Process(handle["pid"])
        if is_start_of(process, handle) and process.is_running() and process.status() != psutil.STATUS_ZOMBIE:
            return process
    return None


def _is_reused(handle: Handle) -> bool:
    """Whether another process has the pid by now, which the kernel allows only once the session is empty."""
    with contextlib.suppress(psutil.NoSuchProcess):
        return not is_start_of(psutil.Process(handle["pid"]), handle)
    return False


async def _exit(handle: Handle) -> None:
    """Wait until the process has ended."""
    if _process(handle) is not None:
        await until_exit(handle["pid"], lambda: _process(handle) is not None)


def _end_session(handle: Handle) -> None:
    """Kill whatever is left of the session that this worker led: handlers of its tasks and their children."""
    leader = handle["pid"]
    if _is_reused(handle):
        return
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error, OSError):
            if os.getsid(process.pid) == leader:
                process.kill()


def _describe(code: int | None) -> str:
    if code is None:
        return "the process ended"
    if code < 0:
        return f"the process was killed by {signal.Signals(-code).name}"
    return f"the process exited with code {code}"
