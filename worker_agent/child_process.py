"""Starts the process of one task, in a process group of its own and without the daemon's secrets."""

import json
import math
import os
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from typing import IO

from worker_agent.handler_environment import inherited
from worker_agent.handlers import Handler
from worker_agent.wire import Assignment, Lease

# OpenBLAS, MKL and numexpr go by the first where they have none of their own; Go and Rust's rayon have theirs.
_THREAD_VARIABLES = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "GOMAXPROCS", "RAYON_NUM_THREADS")


@dataclass(frozen=True, slots=True, kw_only=True)
class ResourceLimits:
    """Limits of one handler: GiB of memory in each process, and cores on average over its time limit."""

    memory_gb: float
    cpu_cores: float

    def within(self, assignment: Assignment | None) -> "ResourceLimits":
        """These limits lowered to the assigned ones, never above those that the worker was started with."""
        if assignment is None:
            return self
        return ResourceLimits(
            memory_gb=min(self.memory_gb, assignment.memory_gb), cpu_cores=min(self.cpu_cores, assignment.cpu_cores)
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class ChildProcess:
    """A started process and the non-blocking ends of its pipes; `output` is the stdout of a program, else None."""

    process: subprocess.Popen[bytes]
    messages: IO[bytes]
    console: IO[bytes]
    output: IO[bytes] | None


def start_child(
    lease: Lease,
    handler: Handler,
    limits: ResourceLimits,
    extra_environment: Mapping[str, str],
    passed: Sequence[str] = (),
) -> ChildProcess:
    """Start the process of a task, from a thread that outlives it; `extra_environment` is added to its variables.

    `passed` are patterns of the variables that it inherits besides the usual ones.

    Raises OSError when there is no process, pipe or file to be had, ValueError when the task cannot be passed on.
    """
    read_fd, write_fd = os.pipe()
    messages = os.fdopen(read_fd, "rb", buffering=0)
    try:
        with _task_file(lease) as task:
            # The kernel kills the child when its parent, for Linux the thread that forks here, ends: see `confine`.
            process = subprocess.Popen(
                [sys.executable, "-m", "worker_agent.child", _spec(lease, handler, limits, write_fd)],
                stdin=task,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE if handler.command else subprocess.STDOUT,
                bufsize=0,
                pass_fds=(write_fd,),
                # One signal to the group then reaches the handler's own children; Ctrl-C in a terminal reaches none.
                process_group=0,
                env={**_environment(lease, limits, passed), **extra_environment},
            )
    except (OSError, ValueError):
        messages.close()
        raise
    finally:
        # The child alone holds the writing end, so that the pipe ends with it.
        os.close(write_fd)
    return _child_process(process, messages)


def _child_process(process: subprocess.Popen[bytes], messages: IO[bytes]) -> ChildProcess:
    assert process.stdout is not None
    for stream in (messages, process.stdout, process.stderr):
        if stream is not None:
            os.set_blocking(stream.fileno(), False)
    if process.stderr is None:
        return ChildProcess(process=process, messages=messages, console=process.stdout, output=None)
    return ChildProcess(process=process, messages=messages, console=process.stderr, output=process.stdout)


def _spec(lease: Lease, handler: Handler, limits: ResourceLimits, fd: int) -> str:
    return json.dumps(
        {
            "parent": os.getpid(),
            "fd": fd,
            "memory_bytes": int(limits.memory_gb * 2**30),
            "cpu_seconds": math.ceil(lease.timeout_seconds * max(1.0, limits.cpu_cores)),
            "command": list(handler.command),
            "target": handler.target,
            "key": handler.key,
        }
    )


def _task_file(lease: Lease) -> IO[bytes]:
    """The task as the child's stdin; a file, because a pipe would block on a payload larger than its buffer."""
    file = tempfile.TemporaryFile()  # noqa: SIM115 - the caller closes it
    # All of the lease but its token, which only the daemon may use.
    task = {field.name: getattr(lease, field.name) for field in fields(lease) if field.name != "token"}
    file.write(json.dumps(task).encode())
    file.seek(0)
    return file


def _environment(lease: Lease, limits: ResourceLimits, passed: Sequence[str]) -> dict[str, str]:
    environment = inherited(passed)
    environment["CONVENER_TASK_ID"] = lease.task_id
    environment["CONVENER_TASK_ATTEMPT"] = str(lease.attempt)
    # Numeric libraries and runtimes would otherwise start a thread for each core of the machine.
    for name in _THREAD_VARIABLES:
        environment.setdefault(name, str(max(1, math.floor(limits.cpu_cores))))
    if lease.trace_context is not None:
        environment["TRACEPARENT"] = lease.trace_context
    return environment
