"""The process of one task, or of a probe, before foreign code runs in it: it confines itself, then calls its entrance.

    python -P launch.py SPEC

SPEC (JSON) is made by `worker_agent/confinement.py`. With namespaces there are three processes: this one, which the
daemon knows; the first of the new namespaces, which ends with the handler and everything else in there with it; and
the handler. It runs between fork and exec in place of a `preexec_fn`, which is not safe beside threads.
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
import signal
import sys

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any, NoReturn

    Json = dict[str, Any]

# The exit code of a process that could not be confined; what it writes to its message pipe tells why.
UNCONFINED = 77
# Processes, memory or files that a machine has too few of for now. A system that has forbidden namespaces says ENOSPC.
_SHORTAGES = (errno.EAGAIN, errno.ENOMEM, errno.EMFILE, errno.ENFILE)
_STATUS_BYTES = 4


def main() -> None:
    spec = json.loads(sys.argv[1])
    try:
        _confine(spec)
    except (OSError, ImportError) as error:
        _report_failure(spec["fd"], error)
    if spec["entrance"] == "child":
        # Before any foreign code, which could say otherwise that this machine has no room for it, and so never fail.
        _send(spec["fd"], {"confined": True})
    sys.path[:] = spec["path"]
    from importlib import import_module

    import_module(f"worker_agent.{spec['entrance']}").main(spec)


def _confine(spec: Json) -> None:
    # The package of this very file: the path of handlers comes later, when nothing in it can do harm any more.
    sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
    from worker_agent.kernel_calls import end_with_parent
    from worker_agent.resource_limits import set_limits

    for group in spec.get("groups", ()):
        with open(f"{group}/cgroup.procs", "w", encoding="ascii") as processes:
            processes.write("0")
    if spec["method"] == "namespaces":
        end_with_parent(spec["parent"], signal.SIGKILL)
        _enter_namespaces(spec)
        os.setsid()
    else:
        _leave_terminal()
    set_limits(spec["limits"])
    if sys.platform == "linux":
        _give_up_privileges(spec)
    elif spec["user"] is not None:
        _take_user(*spec["user"])
    if spec["method"] != "namespaces":
        # Only now, because a change of user clears the request. Without its daemon nobody would enforce the handler's
        # time limit, while its task is leased to another worker.
        end_with_parent(spec["parent"], signal.SIGKILL)
    for directory in (spec["directory"], spec["temporary"]):
        try:
            os.chdir(directory)
            break
        except OSError:
            continue


def _leave_terminal() -> None:
    """Be without the terminal in which the worker was started: a task could come to the fore, and read what is typed.

    The session stays that of the worker, as whoever ends a worker that was killed ends all of its session.
    """
    with contextlib.suppress(OSError):
        terminal = os.open("/dev/tty", os.O_RDWR | os.O_NOCTTY)
        import fcntl
        import termios

        fcntl.ioctl(terminal, termios.TIOCNOTTY)
        os.close(terminal)


def _report_failure(pipe: int, error: Exception) -> NoReturn:
    message = f"the handler could not be confined: {error}"
    report: Json = {"error": {"code": "handler_unavailable", "message": message, "retryable": True}}
    if isinstance(error, OSError) and error.errno in _SHORTAGES:
        report = {"shortage": message}
    _send(pipe, report)
    os._exit(UNCONFINED)


def _send(pipe: int, message: Json) -> None:
    os.write(pipe, json.dumps(message).encode() + b"\n")


def _enter_namespaces(spec: Json) -> None:
    """Go on as the second process of new namespaces, with a root of its own. Raises OSError."""
    from worker_agent import kernel_calls, private_root

    flags = kernel_calls.CLONE_NEWNS | kernel_calls.CLONE_NEWPID | kernel_calls.CLONE_NEWIPC
    if spec["user_namespace"]:
        uid, gid = os.geteuid(), os.getegid()
        kernel_calls.unshare(flags | kernel_calls.CLONE_NEWUSER)
        for name, text in (("setgroups", "deny"), ("uid_map", f"{uid} {uid} 1"), ("gid_map", f"{gid} {gid} 1")):
            with open(f"/proc/self/{name}", "w", encoding="ascii") as file:
                file.write(text)
    else:
        kernel_calls.unshare(flags)
    outcome, outcome_end = os.pipe()
    first = os.fork()
    if first:
        os.close(outcome_end)
        _wait_for_first(first, outcome, spec["fd"])
    kernel_calls.prctl(kernel_calls.PR_SET_PDEATHSIG, signal.SIGKILL)
    os.close(outcome)
    private_root.build(spec["view"])
    handler = os.fork()
    if handler:
        _reap(handler, outcome_end, spec["fd"])
    os.close(outcome_end)


def _close_streams(*descriptors: int) -> None:
    """Leave the streams to the handler alone, so that they end with it."""
    null = os.open(os.devnull, os.O_RDWR)
    for descriptor in (0, 1, 2, *descriptors):
        os.dup2(null, descriptor)


def _wait_for_first(first: int, outcome: int, pipe: int) -> NoReturn:
    """End as the handler did."""
    # The daemon signals the whole group; the first process passes it on.
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    _close_streams(pipe)
    _, status = os.waitpid(first, 0)
    # The first process cannot be killed by its own signals, so it writes down how the handler ended.
    if text := os.read(outcome, _STATUS_BYTES):
        status = int.from_bytes(text, "little")
    code = os.waitstatus_to_exitcode(status)
    if code >= 0:
        os._exit(code)
    if -code not in (signal.SIGKILL, signal.SIGSTOP):
        signal.signal(-code, signal.SIG_DFL)
    os.kill(os.getpid(), -code)
    os._exit(128 - code)


def _pass_on(*_: object) -> None:
    # There may be nobody left, where the handler has had a signal of its own.
    with contextlib.suppress(ProcessLookupError):
        os.kill(-1, signal.SIGTERM)


def _reap(handler: int, outcome: int, pipe: int) -> NoReturn:
    """Wait for the handler, and for orphans that become children of the first process of the namespace."""
    signal.signal(signal.SIGTERM, _pass_on)
    _close_streams(pipe)
    while True:
        pid, status = os.wait()
        if pid == handler:
            os.write(outcome, status.to_bytes(_STATUS_BYTES, "little"))
            # The kernel kills all that is left in the namespace.
            os._exit(0)


def _take_user(uid: int, gid: int) -> None:
    os.setgroups([])
    os.setgid(gid)
    os.setuid(uid)


def _give_up_privileges(spec: Json) -> None:
    from worker_agent import kernel_calls, landlock

    kernel_calls.leave_session_keyring()
    if spec["user"] is not None:
        _take_user(*spec["user"])
    kernel_calls.drop_capabilities()
    kernel_calls.prctl(kernel_calls.PR_SET_NO_NEW_PRIVS, 1)
    # A change of user gives its own files in /proc to root.
    kernel_calls.prctl(kernel_calls.PR_SET_DUMPABLE, 1)
    if spec["method"] == "landlock":
        landlock.restrict(spec["view"], spec["temporary"])
    elif spec["method"] == "namespaces":
        # Where it is missing, the check at the start of the worker tells.
        with contextlib.suppress(OSError):
            landlock.scope()
    # The last, since it forbids calls of the others. Where the kernel has none, the same check tells.
    if spec["filter"]:
        with contextlib.suppress(OSError):
            kernel_calls.install_filter(bytes.fromhex(spec["filter"]))


if __name__ == "__main__":
    main()
