"""Builds the file system of one task: what it may read, a temporary directory of its own, and nothing else.

It runs in the first process of the task's namespaces, as their root.
"""

from __future__ import annotations

import contextlib
import os
import stat

from worker_agent.kernel_calls import (
    MS_BIND,
    MS_NODEV,
    MS_NOEXEC,
    MS_NOSUID,
    MS_PRIVATE,
    MS_RDONLY,
    MS_REC,
    change_root,
    make_plain,
    make_read_only,
    make_writable,
    mount,
)
from worker_agent.landlock import DEVICES

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence
    from typing import Any

    Json = dict[str, Any]

# The new root grows over /proc, because nothing that is shown to a task comes from there.
_ROOT = "/proc"
_SHELL = "/.shell"
_COVERS = "/.covers"
_TEMPORARY = ("/tmp", "/dev/shm")  # noqa: S108 - the task's own
# Directories within one that is covered which are shown as they are; each takes a mount for each attempt.
_MAX_INNER = 256
_PLAIN = MS_NOSUID | MS_NODEV


def build(view: Json) -> None:
    """Make the view the root of this process; raises OSError. `view` is made by `worker_agent/file_view.py`."""
    os.umask(0o022)
    covered = _directories_to_cover(view)
    mount("none", "/", flags=MS_REC | MS_PRIVATE)
    mount("tmpfs", _ROOT, "tmpfs", _PLAIN, "size=1m,mode=755")
    _add_readable(view)
    # The outermost first, as a directory within one that is covered may be closed, and the other way round.
    for path in sorted({*view["closed"], *covered}):
        if path in view["closed"]:
            _open_up(path)
        # Where the file system can be no part of an overlay, the file itself is covered below.
        with contextlib.suppress(OSError):
            _cover_names(path, covered.get(path, ()))
    _make_devices(view["devices"])
    for path in ("/proc", *view["writable"]):
        _make_directory(_ROOT + path)
    make_read_only(_ROOT)
    for path in _TEMPORARY:
        make_writable(_ROOT + path)
    for path in view["writable"]:
        mount(path, _ROOT + path, flags=MS_BIND | MS_REC)
        make_plain(_ROOT + path)
    for path in view["hidden"]:
        _hide(path)
    mount("proc", f"{_ROOT}/proc", "proc", _PLAIN | MS_NOEXEC)
    # Segments of System V are in no file and, unless mapped, in no process.
    with contextlib.suppress(OSError), open(f"{_ROOT}/proc/sys/kernel/shmall", "w", encoding="ascii") as pages:
        pages.write(str(view["temporary_bytes"] // os.sysconf("SC_PAGE_SIZE")))
    change_root(_ROOT)


def _add_readable(view: Json) -> None:
    # The temporary directories first, because code may lie in them. They are one, so that they have one size.
    temporary, shared = (_ROOT + path for path in _TEMPORARY)
    _make_directory(temporary)
    _make_directory(shared)
    mount("tmpfs", temporary, "tmpfs", _PLAIN, f"size={view['temporary_bytes']},mode=1777")
    os.mkdir(f"{temporary}/.shm")
    os.chmod(f"{temporary}/.shm", 0o1777)  # noqa: S103 - that of every /dev/shm
    mount(f"{temporary}/.shm", shared, flags=MS_BIND)
    for path, target in view["links"]:
        _link(path, target)
    for path in view["readable"]:
        _bind(path)


def _make_directory(path: str) -> None:
    os.makedirs(path, 0o755, exist_ok=True)


def _link(path: str, target: str) -> None:
    _make_directory(os.path.dirname(_ROOT + path))
    with contextlib.suppress(FileExistsError):
        os.symlink(target, _ROOT + path)


def _bind(path: str) -> None:
    if os.path.isdir(path):
        _make_directory(_ROOT + path)
    else:
        _make_directory(os.path.dirname(_ROOT + path))
        with open(_ROOT + path, "ab"):
            pass
    mount(path, _ROOT + path, flags=MS_BIND | MS_REC)


def _open_up(path: str) -> None:
    """Show a directory that only its owner may enter; what lies in it keeps its modes."""
    # The upper layer of an overlay gives the mode of the directory, and has nothing else in it.
    _make_directory(_ROOT + _SHELL)
    _make_directory(_ROOT + path)
    mount("overlay", _ROOT + path, "overlay", _PLAIN, f"lowerdir={_ROOT}{_SHELL}:{path}")


def _make_devices(paths: list[str]) -> None:
    for path in (*(f"/dev/{name}" for name in DEVICES), *paths):
        if os.path.exists(path):
            _bind(path)
    for name, target in (("fd", "/proc/self/fd"), ("stdin", "fd/0"), ("stdout", "fd/1"), ("stderr", "fd/2")):
        _link(f"/dev/{name}", target)
    _make_directory(f"{_ROOT}/dev/pts")
    # Without it there are no terminals for the task's programs, which few want.
    with contextlib.suppress(OSError):
        mount("devpts", f"{_ROOT}/dev/pts", "devpts", MS_NOSUID | MS_NOEXEC, "newinstance,ptmxmode=0666,mode=620")
        _link("/dev/ptmx", "pts/ptmx")


def _directories_to_cover(view: Json) -> dict[str, list[str]]:
    """Directories of hidden files with the names of those, as far as they can be an overlay's part.

    What is mounted over a file goes with the file when another one takes its name, as renewed keys do.
    """
    names: dict[str, list[str]] = {}
    for path in view["hidden"]:
        if os.path.lexists(path) and not os.path.isdir(path):
            names.setdefault(os.path.dirname(path), []).append(os.path.basename(path))
    if not names:
        return {}
    shown = [path for path in (*view["readable"], *view["closed"]) if os.path.isdir(path)]
    with open("/proc/self/mountinfo", encoding="utf-8", errors="surrogateescape") as mounts:
        points = [line.split(" ")[4].replace("\\040", " ") for line in mounts]
    return {
        directory: names[directory]
        for directory in names
        if any(contains(path, directory) for path in shown)
        and not any(contains(path, directory) for path in view["writable"])
        # What is mounted in it would be missing, and the options of a mount are parted by these.
        and not any(point != directory and contains(directory, point) for point in points)
        and not set(directory) & set(":,\\")
    }


def contains(outer: str, inner: str) -> bool:
    """Whether a path is another one or lies in it."""
    return inner == outer or inner.startswith(f"{outer.rstrip('/')}/")


def _cover_names(directory: str, names: Sequence[str]) -> None:
    """Show a directory without these names, whatever comes to bear them."""
    if not names:
        return
    layer = f"{_ROOT}{_COVERS}{directory}/.layer"
    _make_directory(layer)
    status = os.stat(_ROOT + directory)
    # Not in a user namespace that does not know them.
    with contextlib.suppress(OSError):
        os.chown(layer, status.st_uid, status.st_gid)
    os.chmod(layer, stat.S_IMODE(status.st_mode))
    for name in names:
        # A device of this number is how an overlay writes down that there is nothing.
        os.mknod(f"{layer}/{name}", stat.S_IFCHR, os.makedev(0, 0))
    mount("overlay", _ROOT + directory, "overlay", _PLAIN, f"lowerdir={layer}:{directory}")
    # An overlay keeps what a name was when it was first looked up. Files that come or change are rather in these.
    with os.scandir(directory) as entries:
        inner = [entry.path for entry in entries if entry.is_dir(follow_symlinks=False)]
    for path in inner[:_MAX_INNER]:
        with contextlib.suppress(OSError):
            _bind(path)


def _hide(path: str) -> None:
    """Cover a file or directory that lies within what is shown."""
    target = _ROOT + path
    if os.path.isdir(target):
        mount("tmpfs", target, "tmpfs", _PLAIN | MS_RDONLY, "size=4k,mode=555")
    elif os.path.lexists(target):
        mount("/dev/null", target, flags=MS_BIND)
