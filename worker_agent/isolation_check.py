"""Attempts, from within the confinement of handlers and before foreign code runs, at all that it is to prevent."""

from __future__ import annotations

import contextlib
import errno
import os
import sys

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    Json = dict[str, Any]


def attempts(spec: Json) -> Json:
    """Why each protection does not hold, by its name; empty where the attempt at breaking it failed, as it should."""
    is_apart = _namespace("pid") != spec["check"]["pid_namespace"]
    return {
        "privileges": _privileges(),
        "files": why_files_are_open(spec),
        "code": _code(spec["check"]["code"]),
        "processes": "" if is_apart else _processes(spec["parent"]),
        # Elsewhere the daemon, to which the kernel gives orphans, ends them.
        "descendants": "" if sys.platform == "linux" else "this system cannot tell what a handler has started",
        "temporary_files": "" if is_apart else "the temporary directory is one of its own, but its size is not limited",
        "sockets": _sockets(*spec["check"]["sockets"]),
        "system_calls": _system_calls(),
    }


def _namespace(kind: str) -> str:
    with contextlib.suppress(OSError):
        return os.readlink(f"/proc/self/ns/{kind}")
    return ""


def _privileges() -> str:
    if os.getuid() == 0:
        return "handlers run as root"
    with contextlib.suppress(OSError), open("/proc/self/status", encoding="ascii", errors="replace") as status:
        fields = dict(line.split(":", 1) for line in status if ":" in line)
        if int(fields["CapEff"], 16) or int(fields["CapPrm"], 16):
            return "handlers have capabilities"
        return "" if fields["NoNewPrivs"].strip() == "1" else "handlers may start programs that change their user"
    return "this system cannot forbid programs that change their user"


def why_files_are_open(spec: Json) -> str:
    """Why handlers can read secrets, or let others read them; empty where they cannot."""
    if spec["method"] == "none" and spec["user"] is None:
        return "handlers run as the user of the worker and can read all that it can"
    for path in spec["view"]["hidden"]:
        files = [path]
        with contextlib.suppress(OSError):
            files = [os.path.join(path, name) for name in os.listdir(path)]
        for file in files:
            with contextlib.suppress(OSError), open(file, "rb") as stream:
                if stream.read(1):
                    return f"{file} can be read"
    with contextlib.suppress(OSError):
        os.chmod(spec["check"]["sockets"][0], 0o600)
        return "Landlock does not cover modes of files, so handlers can open those of their user to others"
    return ""


def _code(directories: list[str]) -> str:
    for directory in directories:
        path = os.path.join(directory, f".convener-check-{os.getpid()}")
        with contextlib.suppress(OSError):
            os.close(os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600))
            os.unlink(path)
            return f"{directory}, from which code is imported, can be written to"
    return ""


def _processes(daemon: int) -> str:
    try:
        os.kill(daemon, 0)
    except OSError:
        pass
    else:
        return "handlers can send signals to the worker and to whatever else its user runs"
    with contextlib.suppress(OSError), open(f"/proc/{daemon}/environ", "rb"):
        return "handlers can read the environment of the worker"
    with contextlib.suppress(OSError), open(f"/proc/{daemon}/cmdline", "rb"):
        return "handlers can see which processes run, though neither signal nor trace them"
    return ""


def _system_calls() -> str:
    if sys.platform != "linux":
        return "this system has no filter of system calls"
    from worker_agent import seccomp

    # Without the filter the kernel finds fault with their arguments instead.
    outcomes = dict(seccomp.harmless_attempts())
    if not outcomes:
        return f"there is no filter of system calls for {os.uname().machine}"
    open_calls = [name for name, error in outcomes.items() if error not in (errno.EPERM, errno.ENOSYS)]
    return f"no filter of system calls is in force, so the kernel answers {open_calls[0]}" if open_calls else ""


def _sockets(path: str, abstract_name: str) -> str:
    import socket

    reasons = {
        path: "Landlock does not cover sockets in the file system, which then only ask for a key or a password",
        f"\0{abstract_name}": "Landlock has no scopes before Linux 6.12, so sockets without a file can be reached",
    }
    for address, reason in reasons.items():
        with contextlib.suppress(OSError), socket.socket(socket.AF_UNIX) as client:
            client.connect(address)
            return reason
    return ""
