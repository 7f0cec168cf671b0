"""Keeps secrets inside a process: no dumps, no environment that others read, and files for their owner only."""

import contextlib
import ctypes
import json
import os
import resource
import sys
from collections.abc import Collection, Iterator, Mapping, MutableMapping
from pathlib import Path

SECRETS_FD = "CONVENER_SECRETS_FD"
PRIVATE_FILE, PRIVATE_DIRECTORY = 0o600, 0o700
_PR_GET_DUMPABLE, _PR_SET_DUMPABLE = 3, 4


def close_process() -> None:
    """Keep other processes of this user out of our memory, environment and descriptors, and dump no core.

    Only on Linux; it ends with the next exec, and children have to do it themselves.
    """
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_DUMPABLE, 0, 0, 0, 0)


def is_closed() -> bool:
    """Whether this process is closed to others of its user."""
    return sys.platform == "linux" and bool(ctypes.CDLL(None).prctl(_PR_GET_DUMPABLE, 0, 0, 0, 0) == 0)


def wipe(environment: MutableMapping[str, str], names: Collection[str]) -> None:
    """Remove variables, and overwrite them where the kernel shows the environment with which this process began."""
    library = ctypes.CDLL(None)
    library.getenv.restype = ctypes.c_void_p
    for name in set(names) & set(environment):
        if environment is os.environ and (address := library.getenv(name.encode())):
            ctypes.memset(address, ord("x"), len(ctypes.string_at(address)))
        del environment[name]


@contextlib.contextmanager
def handed_over(secrets: Mapping[str, str]) -> Iterator[int]:
    """A descriptor from which one child can read the secrets, and nobody after it."""
    reader, writer = os.pipe()
    try:
        with os.fdopen(writer, "wb") as pipe:
            pipe.write(json.dumps(dict(secrets)).encode())
        yield reader
    finally:
        os.close(reader)


def take_over(environment: MutableMapping[str, str]) -> dict[str, str]:
    """The secrets that the parent handed over; none where it did not. Raises OSError, ValueError."""
    number = environment.pop(SECRETS_FD, None)
    if number is None:
        return {}
    with os.fdopen(int(number), "rb") as pipe:
        secrets: dict[str, str] = json.loads(pipe.read())
    return secrets


def open_log(path: Path) -> int:
    """A descriptor that appends to a log which only its owner can read, also where the file was open to others."""
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, PRIVATE_FILE)
    os.fchmod(descriptor, PRIVATE_FILE)
    return descriptor


def write_private(path: Path, text: str) -> None:
    """Write a file that only its owner can read, also where it was open to others; readers meanwhile see the former."""
    draft = path.with_name(f".{path.name}.{os.getpid()}")
    draft.unlink(missing_ok=True)
    # The mode is given at creation: a chmod afterwards would leave a moment in which others can read the key.
    descriptor = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL, PRIVATE_FILE)
    try:
        with os.fdopen(descriptor, "w") as file:
            os.fchmod(descriptor, PRIVATE_FILE)
            file.write(text)
        draft.replace(path)
    except BaseException:
        draft.unlink(missing_ok=True)
        raise


def make_private(directory: Path) -> None:
    """Make a directory, and close it and the files in it to everybody but their owner; parents that it makes, too."""
    # Those that mkdir makes by itself do not get the mode.
    for path in (*reversed(directory.parents), directory):
        path.mkdir(mode=PRIVATE_DIRECTORY, exist_ok=True)
    directory.chmod(PRIVATE_DIRECTORY)
    for path in directory.iterdir():
        # A draft may have taken its file's place meanwhile.
        with contextlib.suppress(FileNotFoundError):
            if path.is_file() and not path.is_symlink():
                path.chmod(PRIVATE_FILE)
