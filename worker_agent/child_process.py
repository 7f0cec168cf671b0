"""Starts the process of one task, in a process group of its own and without the daemon's secrets."""

import json
import math
import os
import subprocess
import tempfile
from collections.abc import Mapping
from contextlib import AbstractContextManager, ExitStack
from dataclasses import dataclass, fields
from typing import IO

from worker_agent.cgroups import GroupParents, TaskGroup, task_group
from worker_agent.confinement import Confinement
from worker_agent.handlers import Handler
from worker_agent.wire import Assignment, Lease

# OpenBLAS, MKL and numexpr go by the first where they have none of their own; Go and Rust's rayon have theirs.
_THREAD_VARIABLES = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "GOMAXPROCS", "RAYON_NUM_THREADS")


@dataclass(frozen=True, slots=True, kw_only=True)
class ResourceLimits:
    """Limits of one handler: GiB of memory and cores, in each process and in all together."""

    memory_gb: float
    cpu_cores: float

    @property
    def memory_bytes(self) -> int:
        return int(self.memory_gb * 2**30)

    def within(self, assignment: Assignment | None, lease: Lease | None = None) -> "ResourceLimits":
        """These limits lowered to the assigned ones, or to what the task asks for where that is more.

        Never above those that the worker was started with.
        """
        if assignment is None:
            return self
        asked = (lease.resources if lease is not None else None) or {}
        memory_gb = max(assignment.memory_gb, float(asked.get("memory_gb", 0)))
        cpu_cores = max(assignment.cpu_cores, float(asked.get("cores", 0)))
        return ResourceLimits(memory_gb=min(self.memory_gb, memory_gb), cpu_cores=min(self.cpu_cores, cpu_cores))


@dataclass(frozen=True, slots=True, kw_only=True)
class ChildProcess:
    """A started process and the non-blocking ends of its pipes; the stdout of a program is its result.

    `temporary` removes its temporary directory when it is closed; `memory_bytes` is for all its processes together,
    `group` its control group.
    """

    process: subprocess.Popen[bytes]
    messages: IO[bytes]
    stdout: IO[bytes]
    stderr: IO[bytes]
    is_program: bool
    temporary: ExitStack
    memory_bytes: int
    group: TaskGroup | None = None


def start_child(
    lease: Lease, handler: Handler, limits: ResourceLimits, rules: Confinement, extra_environment: Mapping[str, str]
) -> ChildProcess:
    """Start the process of a task, from a thread that outlives it; `extra_environment` is added to its variables.

    Raises OSError when there is no process, pipe or file to be had, ValueError when the task cannot be passed on.
    """
    read_fd, write_fd = os.pipe()
    messages = os.fdopen(read_fd, "rb", buffering=0)
    temporary = ExitStack()
    try:
        directory = temporary.enter_context(rules.temporary_directory())
        group = None if rules.groups is None else temporary.enter_context(_task_group(rules.groups, limits, rules))
        with _task_file(lease) as task:
            # The kernel kills the child when its parent, for Linux the thread that forks here, ends: see launch.py.
            process = subprocess.Popen(
                _command(lease, handler, limits, rules, write_fd, directory, group),
                stdin=task,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                bufsize=0,
                pass_fds=(write_fd,),
                # One signal to the group then reaches the handler's own children; Ctrl-C in a terminal reaches none.
                process_group=0,
                env={**rules.environment(directory), **_task_environment(lease, limits), **extra_environment},
            )
    except (OSError, ValueError):
        messages.close()
        temporary.close()
        raise
    finally:
        # The child alone holds the writing end, so that the pipe ends with it.
        os.close(write_fd)
    assert process.stdout is not None
    assert process.stderr is not None
    for stream in (messages, process.stdout, process.stderr):
        os.set_blocking(stream.fileno(), False)
    return ChildProcess(
        process=process,
        messages=messages,
        stdout=process.stdout,
        stderr=process.stderr,
        is_program=bool(handler.command),
        temporary=temporary,
        memory_bytes=limits.memory_bytes,
        group=group,
    )


def _command(
    lease: Lease,
    handler: Handler,
    limits: ResourceLimits,
    rules: Confinement,
    pipe: int,
    temporary: str,
    group: TaskGroup | None,
) -> list[str]:
    return rules.command(
        "child",
        pipe,
        temporary,
        memory_bytes=limits.memory_bytes,
        cpu_seconds=math.ceil(lease.timeout_seconds * max(1.0, limits.cpu_cores)),
        command=list(handler.command),
        target=handler.target,
        key=handler.key,
        groups=[] if group is None else list(map(str, group.directories)),
    )


def _task_group(parents: GroupParents, limits: ResourceLimits, rules: Confinement) -> AbstractContextManager[TaskGroup]:
    # What lies in the temporary directory is memory as well; two processes are our own.
    return task_group(
        parents,
        memory_bytes=limits.memory_bytes + rules.limits.max_file_bytes,
        processes=rules.limits.max_processes + 2,
        cpu_cores=limits.cpu_cores,
    )


def _task_file(lease: Lease) -> IO[bytes]:
    """The task as the child's stdin; a file, because a pipe would block on a payload larger than its buffer."""
    file = tempfile.TemporaryFile()  # noqa: SIM115 - the caller closes it
    # All of the lease but its token, which only the daemon may use.
    task = {field.name: getattr(lease, field.name) for field in fields(lease) if field.name != "token"}
    file.write(json.dumps(task).encode())
    file.seek(0)
    return file


def _task_environment(lease: Lease, limits: ResourceLimits) -> dict[str, str]:
    # Numeric libraries and runtimes would otherwise start a thread for each core of the machine.
    threads = str(max(1, math.floor(limits.cpu_cores)))
    environment = {name: os.environ.get(name, threads) for name in _THREAD_VARIABLES}
    environment["CONVENER_TASK_ID"] = lease.task_id
    environment["CONVENER_TASK_ATTEMPT"] = str(lease.attempt)
    if lease.trace_context is not None:
        environment["TRACEPARENT"] = lease.trace_context
    return environment
