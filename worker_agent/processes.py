"""Child processes of an event loop, each watched without a thread of its own."""

import asyncio
import contextlib
import os
import signal
import subprocess
from collections.abc import Collection, Mapping
from functools import partial

from worker_agent.exit_watcher import open_pidfd
from worker_agent.kernel_calls import end_with_parent

_POLL_SECONDS = 0.2


class Process:
    """A child process.

    Before Python 3.12 asyncio starts a thread to watch each one, and where there can be none it forgets a process that
    it has started.
    """

    def __init__(self, process: subprocess.Popen[bytes]) -> None:
        self._process = process

    @property
    def returncode(self) -> int | None:
        """None until somebody has waited for its end."""
        return self._process.returncode

    def send_signal(self, number: int) -> None:
        self._process.send_signal(number)

    def terminate(self) -> None:
        self._process.terminate()

    def kill(self) -> None:
        self._process.kill()

    async def wait(self) -> int:
        """Wait for its end; return its exit code."""
        loop, is_over = asyncio.get_running_loop(), asyncio.Event()
        descriptor = open_pidfd(self._process.pid) if self.returncode is None else None
        if descriptor is not None:
            loop.add_reader(descriptor, is_over.set)
        try:
            while (code := self._process.poll()) is None:
                is_over.clear()
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(_POLL_SECONDS if descriptor is None else None):
                        await is_over.wait()
            return code
        finally:
            if descriptor is not None:
                loop.remove_reader(descriptor)
                os.close(descriptor)


def start_process(
    *words: str,
    parent_ended: signal.Signals,
    environment: Mapping[str, str] | None = None,
    pass_fds: Collection[int] = (),
) -> Process:
    """Start a program in its own session, without an input; it gets a signal once we are killed. Raises OSError."""
    try:
        process = subprocess.Popen(
            words,
            stdin=subprocess.DEVNULL,
            env=environment,
            pass_fds=tuple(pass_fds),
            start_new_session=True,
            preexec_fn=partial(end_with_parent, os.getpid(), parent_ended),  # noqa: PLW1509 - two calls of the kernel
        )
    except subprocess.SubprocessError as error:
        raise OSError(str(error)) from error
    return Process(process)
