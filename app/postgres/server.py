"""The running server: a foreground child that is started, awaited and stopped, as often as it takes."""

import asyncio
import signal
import subprocess
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import psutil

from app.postgres.accounts import choose_account
from app.postgres.cluster import Cluster
from app.postgres.errors import StartFailed

READY_POLL_SECONDS = 0.01
EXIT_POLL_SECONDS = 0.05
STATUS_LINE = 7
MESSAGE_CHARACTERS = 2_000


# Each step with the seconds it is given. For a postmaster: fast, then immediate shutdown; for one of its processes
# without it: cancel the statement, then quit at once. Killing the last ones is safe: recovery follows anyway.
ENDING = ((signal.SIGINT, 10.0), (signal.SIGQUIT, 5.0), (signal.SIGKILL, 10.0))
ORPHANS_LEAVE_SECONDS = 1.0
POLL_SECONDS = 0.02


@dataclass(slots=True, kw_only=True)
class Server:
    """A PostgreSQL that lives no longer than the thread that started it: call `start` from the main thread.

    The caller holds the cluster and has initialised it. When `wait` has returned, `start` may be called again: it
    recovers what a crash has left.
    """

    cluster: Cluster
    _process: subprocess.Popen[bytes] | None = field(default=None, init=False)

    @property
    def pid(self) -> int | None:
        """The pid of the postmaster; None while it does not run."""
        return self._process.pid if self._process is not None and self._process.poll() is None else None

    @property
    def url(self) -> str:
        """As `postgresql://user:password@127.0.0.1:port/database`; the port differs after a restart if it was taken."""
        return self.cluster.url

    async def start(self) -> None:
        """Returns when the server takes connections; safe to repeat. Raises StartFailed with the end of the log.

        Waits as long as a recovery takes. When cancelled, the server runs on: `stop` it.
        """
        if self.pid is None:
            await asyncio.to_thread(clear_remains, self.cluster.data, self.cluster.directory)
            self._process = self._launch()
        while not self._is_ready():
            if self.pid is None:
                raise StartFailed(f"PostgreSQL in {self.cluster.directory} did not start: {self._last_words()}")
            await asyncio.sleep(READY_POLL_SECONDS)

    async def wait(self) -> int | None:
        """Waits until the server ends, however it ends; returns its exit code (-9 if killed), None if never started."""
        # Polled, because a child watcher would tie the server to one event loop.
        while self.pid is not None:  # noqa: ASYNC110
            await asyncio.sleep(EXIT_POLL_SECONDS)
        return self._process.returncode if self._process is not None else None

    async def stop(self, seconds: float = 30.0) -> None:
        """Ends all sessions and writes a checkpoint; returns when no process of the server is left; safe to repeat.

        After `seconds` it goes without the checkpoint, which costs a recovery at the next start and loses nothing.
        """
        if self._process is None:
            return
        for step, patience in ((signal.SIGINT, seconds), (signal.SIGQUIT, 10.0), (signal.SIGKILL, 10.0)):
            # A Popen sends nothing to a process that has ended.
            self._process.send_signal(step)
            try:
                await asyncio.wait_for(self.wait(), patience)
            except TimeoutError:
                continue
            break
        await asyncio.to_thread(clear_remains, self.cluster.data, self.cluster.directory)

    def _launch(self) -> "subprocess.Popen[bytes]":
        cluster = self.cluster
        account = choose_account(cluster.directory, cluster.binaries)
        cluster.configure(account)
        command = account.command(cluster.directory, cluster.binaries.program("postgres"), "-D", str(cluster.data))
        start_log = cluster.directory / "log" / "start.log"
        with start_log.open("wb") as log:
            account.own(start_log)
            # A session of its own: Ctrl-C in the terminal is for the supervisor, which stops the database last.
            return subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stdout=log, stderr=subprocess.STDOUT, start_new_session=True
            )

    def _is_ready(self) -> bool:
        """PostgreSQL writes its state into postmaster.pid, where pg_ctl reads it as well."""
        try:
            lines = (self.cluster.data / "postmaster.pid").read_text().splitlines()
        except FileNotFoundError:
            return False
        return len(lines) > STATUS_LINE and lines[0] == str(self.pid) and lines[STATUS_LINE].strip() == "ready"

    def _last_words(self) -> str:
        logs: list[Path] = list((self.cluster.directory / "log").glob("*.log"))
        latest = max(logs, key=lambda path: path.stat().st_mtime)
        return latest.read_text(errors="replace").strip()[-MESSAGE_CHARACTERS:]


def clear_remains(data: Path, sockets: Path) -> None:
    """Ends every PostgreSQL process in a data directory and removes its lock files; blocks while they shut down.

    The caller holds the directory, so whatever still runs there has lost its supervisor. PostgreSQL alone would refuse
    to start while a process without its postmaster is attached, and also when the pid in a stale file means another
    program today. Does nothing after an orderly stop.
    """
    pid_file = data / "postmaster.pid"
    if not pid_file.exists():
        return
    recorded = recorded_pid(pid_file)
    end([process for process in processes_of(data) if process.pid == recorded])
    # Without their postmaster the others notice and leave, mostly at once; one amid a long statement does not.
    end(survivors(processes_of(data), ORPHANS_LEAVE_SECONDS))
    for lock_file in (*sockets.glob(".s.PGSQL.*"), pid_file):
        lock_file.unlink(missing_ok=True)


def recorded_pid(pid_file: Path) -> int | None:
    """The first line of a postmaster.pid; None when there is none, as after a kill amid its creation."""
    try:
        return int(pid_file.read_text().split("\n", 1)[0])
    except (FileNotFoundError, ValueError):
        return None


def processes_of(data: Path) -> list[psutil.Process]:
    """Every PostgreSQL process works in its data directory: that tells ours from others and from re-used pids."""
    return [process for process in psutil.process_iter() if _works_in(process, data)]


def _works_in(process: psutil.Process, data: Path) -> bool:
    try:
        return process.name().startswith("postgres") and Path(process.cwd()) == data
    except psutil.Error:
        return False


def end(processes: Sequence[psutil.Process]) -> None:
    """Ends processes in order, each step harsher than the one before; returns when all are gone."""
    alive = list(processes)
    for step, seconds in ENDING:
        for process in alive:
            try:
                process.send_signal(step)
            except psutil.NoSuchProcess:
                continue
        alive = survivors(alive, seconds)
        if not alive:
            return


def survivors(processes: Sequence[psutil.Process], seconds: float) -> list[psutil.Process]:
    """Waits until all have ended, or for some seconds; returns those that have not."""
    deadline = time.monotonic() + seconds
    alive = [process for process in processes if _lives(process)]
    while alive and time.monotonic() < deadline:
        time.sleep(POLL_SECONDS)
        alive = [process for process in alive if _lives(process)]
    return alive


def _lives(process: psutil.Process) -> bool:
    # A zombie holds nothing any more, and where nobody collects it, as in many containers, it stays for good.
    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False
