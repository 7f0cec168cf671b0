"""The number of files that a server may open, and its share for connections."""

import resource
from typing import NamedTuple


class ConnectionLimits(NamedTuple):
    """Connections that may be open, and those that may wait to be taken in."""

    open: int
    waiting: int


def raise_file_limit(max_files: int) -> int:
    """Let this process open as many files as it may; return their number, or `max_files` where there is no limit."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    files = max_files if hard == resource.RLIM_INFINITY else hard
    resource.setrlimit(resource.RLIMIT_NOFILE, (files, hard))
    return files
