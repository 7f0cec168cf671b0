"""Clears what a killed server or a killed supervisor left behind, so that PostgreSQL will start again."""

import signal
import time
from collections.abc import Sequence
from pathlib import Path

import psutil

# Each step with the seconds it is given. For a postmaster: fast, then immediate shutdown; for one of its processes
# without it: cancel the statement, then quit at once. Killing the last ones is safe: recovery follows anyway.
ENDING = ((signal.SIGINT, 10.0), (signal.SIGQUIT, 5.0), (signal.SIGKILL, 10.0))
ORPHANS_LEAVE_SECONDS = 1.0
POLL_SECONDS = 0.02


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
