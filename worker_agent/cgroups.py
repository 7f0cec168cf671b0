"""A control group for each task, where this process may make some: of version 2, or of version 1 by controller.

Of version 2 that is so where the group above this worker's own was delegated to it, or is root's. systemd delegates it
for a unit with `Delegate=yes` and `DelegateSubgroup=`: the unit's own group is then free of processes, so that groups
below it can have limits.
"""

import contextlib
import os
import signal
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

_MOUNTS = (Path("/sys/fs/cgroup"), Path("/sys/fs/cgroup/unified"))
_MEMBERSHIP = Path("/proc/self/cgroup")
_DELEGATION_MARKS = ("user.delegate", "trusted.delegate")
_CONTROLLERS = ("memory", "pids", "cpu")
_PREFIX = "convener-task-"
_END_SECONDS = 2.0
_CPU_PERIOD = 100_000


@dataclass(frozen=True, slots=True, kw_only=True)
class GroupParents:
    """Groups in which tasks may have groups of their own: the one of version 2, and those of version 1."""

    unified: Path | None = None
    controllers: tuple[tuple[str, Path], ...] = ()

    def limits(self, controller: str) -> bool:
        """Whether groups in them can have a limit of `memory`, `pids` or `cpu`."""
        if controller in dict(self.controllers):
            return True
        return self.unified is not None and controller in _words(self.unified / "cgroup.subtree_control")


@dataclass(frozen=True, slots=True)
class TaskGroup:
    """The groups of one task, one for each hierarchy."""

    directories: tuple[Path, ...]

    def has_run_out_of_memory(self) -> bool:
        """Whether the kernel has ended a process for the memory that they have together."""
        files = (directory / name for directory in self.directories for name in ("memory.events", "memory.oom_control"))
        return any(_fields(file).get("oom_kill", "0") != "0" for file in files)

    def peak_bytes(self) -> int:
        """The most memory that they had; 0 where the kernel does not say."""
        names = ("memory.peak", "memory.max_usage_in_bytes")
        figures = [_words(directory / name) for directory in self.directories for name in names]
        return max((int(words[0]) for words in figures if words), default=0)


def group_parents(mounts: tuple[Path, ...] = _MOUNTS, membership: Path = _MEMBERSHIP) -> GroupParents | None:
    """The groups in which tasks may have groups of their own; None where there is none."""
    own = _own_groups(membership)
    unified = _unified_parent(mounts, own.get("", "/"))
    free = {
        name: path for name in _CONTROLLERS if name in own and (path := _own_directory(mounts[0] / name, own[name]))
    }
    for parent in filter(None, (unified, *free.values())):
        _remove_left_over(parent)
    return GroupParents(unified=unified, controllers=tuple(free.items())) if unified or free else None


@contextmanager
def task_group(parents: GroupParents, *, memory_bytes: int, processes: int, cpu_cores: float) -> Iterator[TaskGroup]:
    """Groups for one task, with those limits that are possible here; all that is left in them ends with it."""
    name = f"{_PREFIX}{_own_mark()}-{time.monotonic_ns()}"
    quota = max(1000, round(cpu_cores * _CPU_PERIOD))
    limits = {
        "memory.max": str(memory_bytes),
        "memory.swap.max": "0",
        # One process that is missing would leave the others in a state that nobody thought of.
        "memory.oom.group": "1",
        "pids.max": str(processes),
        "cpu.max": f"{quota} {_CPU_PERIOD}",
    }
    older_limits = {
        "memory": {"memory.limit_in_bytes": str(memory_bytes), "memory.memsw.limit_in_bytes": str(memory_bytes)},
        "pids": {"pids.max": str(processes)},
        "cpu": {"cpu.cfs_period_us": str(_CPU_PERIOD), "cpu.cfs_quota_us": str(quota)},
    }
    groups = [] if parents.unified is None else [(parents.unified / name, limits)]
    groups += [(parent / name, older_limits[controller]) for controller, parent in parents.controllers]
    with contextlib.ExitStack() as made:
        for directory, values in groups:
            made.enter_context(_group(directory, values))
        yield TaskGroup(tuple(directory for directory, _ in groups))


@contextmanager
def _group(directory: Path, limits: Mapping[str, str]) -> Iterator[None]:
    directory.mkdir()
    try:
        for name, value in limits.items():
            _set(directory / name, value)
        yield
    finally:
        _end(directory)


def _own_groups(membership: Path) -> dict[str, str]:
    """This process's group by controller; that of version 2 under the empty name."""
    groups: dict[str, str] = {}
    with contextlib.suppress(OSError):
        for line in membership.read_text().splitlines():
            _, names, path = line.split(":", 2)
            groups |= dict.fromkeys(names.split(","), path)
    return groups


def _unified_parent(mounts: tuple[Path, ...], own: str) -> Path | None:
    for mount in mounts:
        group = (mount / own.lstrip("/")).parent
        if not group.is_relative_to(mount):
            continue
        if any(_mark(group, name) == b"1" for name in _DELEGATION_MARKS):
            # Refused for those that this system has not, or not here.
            for controller in _CONTROLLERS:
                _set(group / "cgroup.subtree_control", f"+{controller}")
            return group
        # Nobody delegates to root, who may make groups wherever others can have limits.
        if os.geteuid() == 0 and "memory" in _words(group / "cgroup.subtree_control") and os.access(group, os.W_OK):
            return group
    return None


def _own_directory(mount: Path, own: str) -> Path | None:
    """The group of version 1 of this process, if it may make others in there."""
    # In a container the path may be that of the host.
    directory = next((path for path in (mount / own.lstrip("/"), mount) if path.is_dir()), None)
    if directory is None or not (directory / "cgroup.procs").exists() or not os.access(directory, os.W_OK):
        return None
    return directory


def _remove_left_over(parent: Path) -> None:
    """End what workers that died in the middle of a task have left running, and remove its groups."""
    # Only those of the same namespace can be looked for by their number.
    for directory in parent.glob(f"{_PREFIX}{_namespace()}-*"):
        pid, start, *_ = directory.name.removeprefix(f"{_PREFIX}{_namespace()}-").split("-")
        if _started_at(int(pid)) != start:
            _end(directory)


def _own_mark() -> str:
    """The namespace and number of this process and the time of its start, as another may get that number later."""
    return f"{_namespace()}-{os.getpid()}-{_started_at(os.getpid())}"


def _namespace() -> int:
    return os.stat("/proc/self/ns/pid").st_ino


def _started_at(pid: int) -> str:
    """The start of a process in ticks since that of the system; empty without one."""
    with contextlib.suppress(OSError):
        # The name of the program may have blanks and brackets.
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[19]
    return ""


def _end(group: Path) -> None:
    if (group / "cgroup.kill").exists():
        _set(group / "cgroup.kill", "1")
    _remove(group)


def _words(file: Path) -> list[str]:
    with contextlib.suppress(OSError):
        return file.read_text().split()
    return []


def _fields(file: Path) -> dict[str, str]:
    words = _words(file)
    return dict(zip(words[::2], words[1::2], strict=False))


def _mark(group: Path, name: str) -> bytes:
    with contextlib.suppress(OSError, AttributeError):
        return os.getxattr(group, name)
    return b""


def _set(file: Path, value: str) -> None:
    with contextlib.suppress(OSError), file.open("w") as stream:
        stream.write(value)


def _remove(group: Path) -> None:
    """Remove the group, which takes until its last process is gone."""
    deadline = time.monotonic() + _END_SECONDS
    while time.monotonic() < deadline:
        with contextlib.suppress(OSError):
            group.rmdir()
            return
        # Version 1 has no other way to end them.
        for pid in _words(group / "cgroup.procs"):
            with contextlib.suppress(OSError):
                os.kill(int(pid), signal.SIGKILL)
        time.sleep(0.01)
