"""The end of a program whose output nobody reads any more."""

import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def ending_with_the_reader() -> Iterator[None]:
    """Write all output of the block; where its reader has gone, end this process as SIGPIPE ends others."""
    try:
        try:
            yield
        finally:
            # At the end of the process it would be told of as an error that nobody can handle.
            sys.stdout.flush()
    except BrokenPipeError:
        end_by_broken_pipe()


def end_by_broken_pipe() -> None:
    """End this process by SIGPIPE, without a word: shells show 141, and know that nothing has failed."""
    signal.signal(signal.SIGPIPE, signal.SIG_DFL)
    signal.raise_signal(signal.SIGPIPE)
