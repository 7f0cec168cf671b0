"""The server: a child process that can be started, awaited and stopped again and again."""

import asyncio
import contextlib
import errno
import os
import shutil
import signal
import subprocess
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import psutil

from app.postgres.accounts import Account, choose_account, server_environment
from app.postgres.cluster import Cluster
from app.postgres.configuration import socket_directory
from app.postgres.errors import StartFailed
from app.process_exit import until_exit

READY_POLL_SECONDS = 0.01
STATUS_LINE = 7
MESSAGE_CHARACTERS = 2_000
# What clients are told while it starts, and the second line of that.
REFUSALS = ("FATAL:  the database system is ", "DETAIL:  Consistent recovery state has not been yet reached.")
KEPT_LOGS = 8
SEGMENT_BYTES = 16 << 20


# Signals with the seconds to wait after each. A postmaster takes them as fast, then immediate shutdown; a process that
# has lost its postmaster cancels its statement, then quits. SIGKILL is safe at last, as recovery follows anyway.
END_SIGNALS = ((signal.SIGINT, 10.0), (signal.SIGQUIT, 5.0), (signal.SIGKILL, 10.0))
ORPHAN_EXIT_SECONDS = 1.0
POLL_SECONDS = 0.02


@dataclass(slots=True, kw_only=True)
class Server:
    """A PostgreSQL that lives no longer than the thread that started it, so `start` belongs in the main thread.

    The caller has locked and initialised the cluster. After `wait` has returned, `start` may be called again; it cleans
    up after a crash.
    """

    cluster: Cluster
    account: Account | None = field(default=None, init=False)
    _process: subprocess.Popen[bytes] | None = field(default=None, init=False)

    @property
    def pid(self) -> int | None:
        """Pid of the postmaster; None while it does not run."""
        return self._process.pid if self._process is not None and self._process.poll() is None else None

    @property
    def url(self) -> str:
        """URL of the database; after a restart its port differs if another program has taken the former one."""
        return self.cluster.own_url

    async def start(self) -> None:
        """Start the server and wait until it takes connections, however long recovery takes; safe to repeat.

        Raises StartFailed with the end of the log. If this is cancelled, the server runs on until `stop`.
        """
        if self.pid is None:
            await asyncio.to_thread(clean_up, self.cluster.data, socket_directory(self.cluster.directory))
            self._process = self._launch()
        while not self._is_ready():
            if self.pid is None:
                raise StartFailed(f"PostgreSQL in {self.cluster.directory} did not start: {self._log_end()}")
            await asyncio.sleep(READY_POLL_SECONDS)

    async def wait(self) -> int | None:
        """Wait until the server ends; return its exit code (-9 when killed), or None when it was never started."""
        process = self._process
        if process is None:
            return None
        # Not by a child watcher, which would tie the server to one event loop.
        while process.poll() is None:
            await until_exit(process.pid, lambda: process.poll() is None)
        return process.returncode

    async def stop(self, seconds: float = 30.0) -> None:
        """End all sessions and write a checkpoint; return when no process of the server is left. Safe to repeat.

        After `seconds` the checkpoint is given up, which costs a recovery at the next start and loses nothing.
        """
        if self._process is None:
            return
        for end_signal, timeout in ((signal.SIGINT, seconds), (signal.SIGQUIT, 10.0), (signal.SIGKILL, 10.0)):
            # A Popen sends nothing to a process that has ended.
            self._process.send_signal(end_signal)
            try:
                await asyncio.wait_for(self.wait(), timeout)
            except TimeoutError:
                continue
            break
        await asyncio.to_thread(clean_up, self.cluster.data, socket_directory(self.cluster.directory))

    def lacks_room(self) -> bool:
        """Whether its disk has no room for another segment of its log, or the end of its log says so."""
        is_full = shutil.disk_usage(self.cluster.directory).free < SEGMENT_BYTES
        return is_full or os.strerror(errno.ENOSPC) in self._log_end()

    def prune_logs(self) -> None:
        """Remove the oldest files of the server's log; does nothing where there are few."""
        with contextlib.suppress(OSError):
            # The directory is the server's, which must not lead us elsewhere.
            directory = os.open(self.cluster.directory / "log", os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
            try:
                # Their names tell their age; those of earlier versions, named by the day of the week, go first.
                names = [name for name in os.listdir(directory) if name.endswith(".log")]
                names.sort(key=lambda name: (name.startswith("postgresql-2"), name))
                for name in names[:-KEPT_LOGS]:
                    os.unlink(name, dir_fd=directory)
            finally:
                os.close(directory)

    def _launch(self) -> "subprocess.Popen[bytes]":
        cluster = self.cluster
        account = self.account = choose_account(cluster.directory, cluster.binaries)
        cluster.configure(account)
        command = account.command(cluster.directory, cluster.binaries, "postgres", "-D", str(cluster.data))
        with os.fdopen(os.open(self._start_log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "wb") as log:
            # In a session of its own: Ctrl-C in the terminal is for the supervisor, which stops the database last.
            return subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
                env=server_environment(),
            )

    @property
    def _start_log(self) -> Path:
        # Not among the logs, whose directory is the server's, which could have put a link there.
        return self.cluster.directory / "start.log"

    def _is_ready(self) -> bool:
        # PostgreSQL writes its state into postmaster.pid, where pg_ctl reads it as well.
        try:
            lines = (self.cluster.data / "postmaster.pid").read_text().splitlines()
        except FileNotFoundError:
            return False
        return len(lines) > STATUS_LINE and lines[0] == str(self.pid) and lines[STATUS_LINE].strip() == "ready"

    def _log_end(self) -> str:
        logs = [path for path in (self.cluster.directory / "log").glob("*.log") if not path.is_symlink()]
        logs.append(self._start_log)
        latest = max(logs, key=lambda path: path.stat().st_mtime)
        # Not what clients were refused with meanwhile, a hundred times a second: it would hide the reason.
        lines = [
            line for line in latest.read_text(errors="replace").splitlines() if not any(r in line for r in REFUSALS)
        ]
        text = "\n".join(lines).strip()
        end = text[-MESSAGE_CHARACTERS:]
        return end if end == text else end.partition("\n")[2] or end


def clean_up(data: Path, sockets: Path) -> None:
    """End all PostgreSQL processes of a data directory and remove its lock files; does nothing after an orderly stop.

    The caller has locked the directory, so processes that still run there have lost their supervisor. PostgreSQL itself
    would refuse to start while such a process is attached, or when the pid in a stale file is that of another program.
    """
    pid_file = data / "postmaster.pid"
    if not pid_file.exists():
        return
    postmaster_pid = read_pid(pid_file)
    end_processes([process for process in processes_of(data) if process.pid == postmaster_pid])
    # The others mostly exit at once when they notice that their postmaster is gone; one in a long statement does not.
    end_processes(survivors(processes_of(data), ORPHAN_EXIT_SECONDS))
    for lock_file in (*sockets.glob(".s.PGSQL.*"), pid_file):
        lock_file.unlink(missing_ok=True)


def read_pid(pid_file: Path) -> int | None:
    """Return the pid in the first line of a postmaster.pid; None when it has none, as after a crash at its creation."""
    try:
        return int(pid_file.read_text().split("\n", 1)[0])
    except (FileNotFoundError, ValueError):
        return None


def processes_of(data: Path) -> list[psutil.Process]:
    """Return the PostgreSQL processes of a data directory, which is their working directory."""
    # Names and pids alone would not do: other servers may run on this machine, and pids are used again.
    return [process for process in psutil.process_iter() if _works_in(process, data)]


def _works_in(process: psutil.Process, data: Path) -> bool:
    try:
        # By identity: in a mount namespace of its own a path may mean something else.
        return process.name().startswith("postgres") and Path(f"/proc/{process.pid}/cwd").samefile(data)
    except (psutil.Error, OSError):
        return False


def end_processes(processes: Sequence[psutil.Process]) -> None:
    """Send one signal after the other, each harsher than the one before, until all processes have ended."""
    alive = list(processes)
    for end_signal, seconds in END_SIGNALS:
        for process in alive:
            try:
                process.send_signal(end_signal)
            except psutil.NoSuchProcess:
                continue
        alive = survivors(alive, seconds)
        if not alive:
            return


def survivors(processes: Sequence[psutil.Process], seconds: float) -> list[psutil.Process]:
    """Wait until all processes have ended, or for some seconds; return those that have not."""
    deadline = time.monotonic() + seconds
    alive = [process for process in processes if _is_alive(process)]
    while alive and time.monotonic() < deadline:
        time.sleep(POLL_SECONDS)
        alive = [process for process in alive if _is_alive(process)]
    return alive


def _is_alive(process: psutil.Process) -> bool:
    # A zombie holds no resources; where no parent collects it, as in many containers, it stays for good.
    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False
