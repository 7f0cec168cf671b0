"""The running server: a foreground child that is started, awaited and stopped, as often as it takes."""

import asyncio
import signal
import subprocess
from dataclasses import dataclass, field
from pathlib import Path

from app.embedded.accounts import choose_account
from app.embedded.cluster import Cluster
from app.embedded.errors import StartFailed
from app.embedded.remains import clear_remains

READY_POLL_SECONDS = 0.01
EXIT_POLL_SECONDS = 0.05
STATUS_LINE = 7
MESSAGE_CHARACTERS = 2_000


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
