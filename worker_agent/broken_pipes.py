"""The end of a program whose output nobody reads any more, or has no room."""

import errno
import os
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager

from worker_agent.actions import ExitCode


@contextmanager
def ending_with_the_reader() -> Iterator[None]:
    """Write all output of the block; where its reader has gone, end this process as SIGPIPE ends others.

    Where there is no room for it, raises SystemExit after a sentence.
    """
    try:
        try:
            yield
        finally:
            # At the end of the process it would be told of as an error that nobody can handle. A program that was
            # started without any output has none.
            if sys.stdout is not None:
                sys.stdout.flush()
    except BrokenPipeError:
        end_by_broken_pipe()
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        # What is left would be tried once more at the end of the process.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        print(f"there is no room: {error.strerror}; make room on that disk", file=sys.stderr)
        raise SystemExit(ExitCode.USAGE) from None


def end_by_broken_pipe() -> None:
    """End this process by SIGPIPE, without a word: shells show 141, and know that nothing has failed."""
    signal.signal(signal.SIGPIPE, signal.SIG_DFL)
    signal.raise_signal(signal.SIGPIPE)
