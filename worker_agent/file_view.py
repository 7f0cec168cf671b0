"""The part of the file system that handlers see: the system's programs, their own code, and what the operator names."""

import contextlib
import glob
import os
import site
import stat
import sys
import sysconfig
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from worker_agent.private_root import contains
from worker_agent.wire import JsonObject

_SYSTEM = (
    *("/usr", "/bin", "/sbin", "/lib", "/lib32", "/lib64", "/libx32", "/etc", "/opt", "/nix/store", "/gnu/store"),
    *("/sys/devices", "/sys/class", "/sys/bus", "/sys/dev", "/sys/block", "/sys/module"),
)
# Files of the system that lie elsewhere and are linked to from /etc.
_LINKED = ("/etc/resolv.conf", "/etc/localtime", "/etc/ssl/certs/ca-certificates.crt")
_ACCELERATORS = ("/dev/nvidia*", "/dev/dri", "/dev/kfd", "/dev/accel", "/dev/dxg", "/dev/infiniband")
# Not even where code is said to lie there: others' files do.
NEVER_SHOWN = ("/", "/tmp", "/var/tmp", "/dev/shm", "/proc", "/run")  # noqa: S108 - that is why
# A file by which a state directory of the service is recognised, and files that hold passwords by custom.
_STATE_MARK = "operator.key"
_PASSWORD_FILES = (".env", ".pgpass", ".pg_service.conf")
_DEPTH = 3


class UnreadableCode(ValueError):
    """Handlers could not read their own code."""


@dataclass(frozen=True, slots=True, kw_only=True)
class FileView:
    """Paths that handlers may read or write, and what lies in them that they may not; all without symbolic links."""

    readable: tuple[str, ...]
    # Directories whose modes keep the handlers' user out, although their code lies there.
    closed: tuple[str, ...] = ()
    writable: tuple[str, ...] = ()
    hidden: tuple[str, ...] = ()
    links: tuple[tuple[str, str], ...] = ()
    devices: tuple[str, ...] = ()
    code: tuple[str, ...] = ()

    def as_json(self) -> JsonObject:
        names = ("readable", "closed", "writable", "hidden", "links", "devices")
        return {name: list(getattr(self, name)) for name in names}


def import_path() -> list[str]:
    """Directories in which a handler's modules are looked for: the current one first, unless Python is told not to."""
    # The first entry of the daemon is that of its script, or the current directory.
    rest = [path for path in (sys.path if sys.flags.safe_path else sys.path[1:]) if path]
    return [os.path.abspath(path) for path in (rest if sys.flags.safe_path else [os.getcwd(), *rest])]


def view_files(
    *,
    programs: Iterable[str] = (),
    readable: Sequence[Path] = (),
    writable: Sequence[Path] = (),
    hidden: Sequence[Path] = (),
    uid: int | None = None,
) -> FileView:
    """View for handlers that run as user `uid`, or as this process's own for None.

    Raises UnreadableCode when that user could not read what it needs, ValueError for paths that make no sense.
    """
    code = _existing([*import_path(), sys.prefix, sys.base_prefix, os.path.dirname(__file__), *programs])
    # A handler that could write where code is imported from would run in the daemon, or in the next task.
    writable_paths = [_real(path) for path in writable]
    for path in writable_paths:
        if any(contains(path, directory) for directory in code):
            raise ValueError(f"--writable {path}: code is imported from there, so handlers may not change it")
    links = [(path, os.readlink(path)) for path in _SYSTEM if os.path.islink(path)]
    system = [path for path in _SYSTEM if os.path.exists(path) and not os.path.islink(path)]
    linked = [os.path.realpath(path) for path in _LINKED if os.path.exists(path)]
    needed_paths = [path for path in (*linked, *code, *(_real(path) for path in readable)) if path not in NEVER_SHOWN]
    shown = _outermost(needed_paths, [*system, *writable_paths])
    closed = [path for path in dict.fromkeys(needed_paths) if not _is_open(path, uid)]
    if files := [path for path in closed if not os.path.isdir(path)]:
        raise UnreadableCode(f"{files[0]} cannot be read by user {uid}, which runs handlers: `chmod o+r {files[0]}`")
    # Not in Python's own directories, which hold thousands of files; but in those of code that lies in the system's.
    own = {os.path.realpath(path) for path in (sys.prefix, sys.base_prefix, *sysconfig.get_paths().values())}
    searched = [path for path in needed_paths if path not in own]
    directories = {path for path in (*_outermost(searched, writable_paths), *writable_paths) if os.path.isdir(path)}
    return FileView(
        readable=(*system, *(path for path in shown if path not in closed)),
        closed=tuple(closed),
        writable=tuple(writable_paths),
        hidden=tuple(sorted({*map(os.path.realpath, map(str, hidden)), *_secrets(directories)})),
        links=(*links, ("/var/tmp", "/tmp"), ("/var/run", "/run")),  # noqa: S108 - the task's own
        devices=tuple(path for pattern in _ACCELERATORS for path in glob.glob(pattern)),
        code=tuple(dict.fromkeys(code)),
    )


def _existing(paths: Iterable[str]) -> list[str]:
    """Paths that exist, as they are and without symbolic links."""
    user_site = [site.getuserbase()] if site.getusersitepackages() in sys.path else []
    return [os.path.realpath(path) for path in (*paths, *user_site) if path and os.path.exists(path)]


def _real(path: Path) -> str:
    """Raises ValueError when there is nothing."""
    if not path.exists():
        raise ValueError(f"{path}: there is no such file or directory, which handlers were to have")
    return os.path.realpath(path)


def _outermost(paths: Sequence[str], others: Sequence[str]) -> list[str]:
    """Paths that lie in no other of them, nor in `others`."""
    unique = list(dict.fromkeys(paths))
    return [
        path
        for path in unique
        if not any(contains(outer, path) for outer in others)
        and not any(outer != path and contains(outer, path) for outer in unique)
    ]


def _is_open(path: str, uid: int | None) -> bool:
    if uid is None:
        return True
    status = os.stat(path)
    needed = 0o5 if stat.S_ISDIR(status.st_mode) else 0o4
    return status.st_uid == uid or status.st_mode & needed == needed


def _secrets(directories: Iterable[str], depth: int = _DEPTH) -> Iterator[str]:
    """Yield state directories of the service, and files with passwords, near the top of these directories."""
    for directory in directories:
        with contextlib.suppress(OSError), os.scandir(directory) as entries:
            inner = []
            for entry in entries:
                if entry.name == _STATE_MARK:
                    yield os.path.realpath(directory)
                elif entry.name in _PASSWORD_FILES:
                    yield os.path.realpath(entry.path)
                elif depth > 1 and entry.is_dir(follow_symlinks=False):
                    inner.append(entry.path)
            yield from _secrets(inner, depth - 1)
