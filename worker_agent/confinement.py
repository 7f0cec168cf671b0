"""Rules under which handlers run on this system, and the command that starts a process under them."""

import json
import os
import pwd
import shutil
import site
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from enum import StrEnum
from pathlib import Path
from typing import Any

import psutil

from worker_agent import seccomp
from worker_agent.cgroups import GroupParents
from worker_agent.file_view import FileView, import_path
from worker_agent.handler_environment import inherited

# Users from here on belong to nobody (systemd's table of users); with the daemon's pid each worker has one of its own.
_FIRST_USER = 0x70000000
_NOBODY = 65534
_LAUNCH = str(Path(__file__).with_name("launch.py"))


class Method(StrEnum):
    """Means by which a system keeps handlers apart, the strongest first."""

    NAMESPACES = "namespaces"
    LANDLOCK = "landlock"
    NONE = "none"


@dataclass(frozen=True, slots=True, kw_only=True)
class HandlerLimits:
    """Limits of one task: processes and threads together, and GiB of a file and of the temporary directory."""

    max_processes: int = 256
    max_file_gb: float = 1.0

    @property
    def max_file_bytes(self) -> int:
        return int(self.max_file_gb * 2**30)


@dataclass(frozen=True, slots=True, kw_only=True)
class Confinement:
    """Rules for the handlers of one worker; `user` is their uid and gid where they differ from the daemon's."""

    method: Method
    view: FileView
    user: tuple[int, int] | None = None
    limits: HandlerLimits = HandlerLimits()
    passed_variables: tuple[str, ...] = ()
    # The control groups in which tasks have groups of their own.
    groups: GroupParents | None = None

    @property
    def weaker(self) -> Iterator["Confinement"]:
        """Yield these rules by each method, beginning with this one."""
        methods = list(Method) if sys.platform == "linux" else [Method.NONE]
        for method in methods[methods.index(self.method) :]:
            yield replace(self, method=method)

    def command(
        self, entrance: str, pipe: int, temporary: str, *, memory_bytes: int, cpu_seconds: int, **more: Any
    ) -> list[str]:
        """Command that runs `worker_agent.<entrance>` under these rules, with the message pipe `pipe`."""
        file_bytes = self.limits.max_file_bytes
        spec = {
            "entrance": entrance,
            "parent": os.getpid(),
            "fd": pipe,
            "path": import_path(),
            "directory": os.getcwd(),
            "temporary": temporary,
            "method": self.method,
            "user": self.user,
            "user_namespace": self.user is None,
            # Made here, because a process of a task would take longer to import it.
            "filter": seccomp.program(has_namespaces=self.method is Method.NAMESPACES).hex(),
            "view": {**self.view.as_json(), "temporary_bytes": file_bytes},
            "limits": {
                "memory_bytes": memory_bytes,
                "cpu_seconds": cpu_seconds,
                "file_bytes": file_bytes,
                "processes": self._process_limit(),
            },
            **more,
        }
        return [sys.executable, "-P", _LAUNCH, json.dumps(spec)]

    def environment(self, temporary: str) -> dict[str, str]:
        """Variables of a handler."""
        variables = inherited(self.passed_variables)
        variables["TMPDIR"] = temporary
        if self.user is not None or self.method is Method.NAMESPACES:
            # Its home is out of reach, but modules may have been installed there.
            variables["HOME"] = temporary
            variables.setdefault("PYTHONUSERBASE", site.getuserbase())
        if self.user is not None:
            variables["USER"] = variables["LOGNAME"] = "handler"
        return variables

    @contextmanager
    def temporary_directory(self) -> Iterator[str]:
        """Directory for the temporary files of one task, which vanishes with all that is in it."""
        if self.method is Method.NAMESPACES:
            yield "/tmp"  # noqa: S108 - the task's own
            return
        directory = tempfile.mkdtemp(prefix="convener-task-")
        try:
            if self.user is not None:
                os.chown(directory, *self.user)
            yield directory
        finally:
            shutil.rmtree(directory, ignore_errors=True)

    def _process_limit(self) -> int:
        """Limit of processes of the user, including those that run already where the user is shared."""
        if self.user is None and self.method is not Method.NAMESPACES:
            return self.limits.max_processes + _count_threads(os.getuid())
        return self.limits.max_processes


def handler_user(name: str | None) -> tuple[int, int] | None:
    """User and group that handlers run as, by name or number; None for the daemon's own. Raises ValueError.

    As root it is another: one of this worker's own where none is named, unless a container has no other.
    """
    if os.geteuid() != 0:
        if name is not None:
            raise ValueError("--handler-user: only root can run handlers as another user")
        return None
    if name is None:
        own = _FIRST_USER + os.getpid()
        return next(((uid, uid) for uid in (own, _NOBODY) if _is_mapped(uid)), None)
    try:
        entry = pwd.getpwnam(name)
        user = (entry.pw_uid, entry.pw_gid)
    except KeyError:
        if not name.isdecimal():
            raise ValueError(f"--handler-user {name}: there is no such user") from None
        user = (int(name), int(name))
    if 0 in user:
        raise ValueError("--handler-user: handlers never run as root")
    return user


def _is_mapped(uid: int) -> bool:
    """Whether the system, which may be a container, has a user of this number."""
    try:
        rows = [list(map(int, line.split())) for line in Path("/proc/self/uid_map").read_text().splitlines()]
    except (OSError, ValueError):
        return sys.platform != "linux"
    return any(first <= uid < first + count for first, _, count in rows)


def _count_threads(uid: int) -> int:
    threads = 0
    for process in psutil.process_iter():
        try:
            if process.uids().real == uid:
                threads += process.num_threads()
        except (psutil.Error, OSError):
            continue
    return threads


def protected_paths(environment: Mapping[str, str], named: Sequence[Path]) -> list[Path]:
    """Paths that no handler may see, whatever directory is shown: the service's state, people's keys, and `named`."""
    # Unlike Path.home, it leaves a user alone that has none.
    state_home = Path(environment.get("XDG_STATE_HOME") or os.path.expanduser("~/.local/state"))
    config_home = Path(environment.get("XDG_CONFIG_HOME") or os.path.expanduser("~/.config"))
    return [*named, state_home / "convener", config_home / "convener"]
