"""The right to use a directory, held by one process at a time."""

import fcntl
import os
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Self

from app.embedded.errors import ClusterBusy


@dataclass(frozen=True, slots=True, kw_only=True)
class Hold:
    """A lock that lasts until it is released or the process ends: the kernel takes it back even after kill -9."""

    descriptor: int

    def release(self) -> None:
        os.close(self.descriptor)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.release()


def hold(directory: Path) -> Hold:
    """Creates the directory, for its owner only, and locks it; raises ClusterBusy while somebody else holds it."""
    directory.mkdir(mode=0o700, parents=True, exist_ok=True)
    # Not inherited by children: a server that outlives its supervisor must not keep the next supervisor out.
    descriptor = os.open(directory / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        holder = os.read(descriptor, 32).decode().strip() or "unknown"
        os.close(descriptor)
        raise ClusterBusy(
            f"{directory} is in use by process {holder}. Stop that process (kill {holder}), "
            "use the Convener that it runs, or choose another state directory."
        ) from None
    os.ftruncate(descriptor, 0)
    os.write(descriptor, f"{os.getpid()}\n".encode())
    return Hold(descriptor=descriptor)
