"""The process that runs one task, once `worker_agent/launch.py` has confined it: a python function or a program.

The task is JSON on stdin. The specification names the message pipe's `fd`, and either `target` and `key` or `command`.
On the message pipe every line is one JSON object:
{"percent", "message", "checkpoint"}, {"quality"}, {"measured", "value", "counter", "by_goal"}, {"result"}, {"error"} or
{"postponed": {"seconds", "reason"}}. stdout and stderr belong to the handler.
"""

from __future__ import annotations

import errno
import json
import os
import sys
from _thread import allocate_lock  # threading would cost each task two milliseconds

from worker_agent.failures import Failure, Postponed
from worker_agent.handler_loading import load_handler
from worker_agent.json_weight import TOO_HEAVY, is_too_heavy
from worker_agent.resource_limits import file_limit_gb, memory_limit_gb, peak_memory_mb
from worker_agent.task import Task

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    Json = dict[str, Any]

PROGRESS_FD = 3
MAX_RESULT_BYTES = 10 * 1024 * 1024
_TRACEBACK_CHARACTERS = 4000
_WRITABLE_HINT = (
    "a handler writes to its temporary directory, and to those of --writable (for the pool CONVENER_HANDLER_WRITABLE) "
    "that are open to user {}, which it runs as"
)
_ROOM_HINT = (
    "a file of a task may have {:g} GiB, and all its temporary files together as much (--max-file-gb, for the pool "
    "CONVENER_HANDLER_MAX_FILE_GB); where it has written elsewhere, make room on that disk"
)


class MessagePipe:
    """The message pipe to the daemon; whole lines only, from any thread."""

    def __init__(self, fd: int) -> None:
        # Processes that the handler starts must not write messages in its name.
        os.set_inheritable(fd, False)
        self._fd = fd
        self._lock = allocate_lock()

    def send(self, message: Json) -> None:
        """Raises ValueError, TypeError or RecursionError when the message is not JSON that the daemon would take."""
        self.write(_encode(message))

    def write(self, line: bytes) -> None:
        rest = memoryview(line + b"\n")
        with self._lock:
            while rest:
                rest = rest[os.write(self._fd, rest) :]


def main(spec: Json) -> None:
    pipe = MessagePipe(spec["fd"])
    if spec["command"]:
        _exec_program(spec["command"], pipe, spec["fd"])
    else:
        _run_function(spec["target"], spec["key"], pipe)
    try:
        pipe.send({"peak_memory_mb": peak_memory_mb()})
        for stream in (sys.stdout, sys.stderr):
            stream.flush()
    finally:
        # A thread that the handler left behind must not keep the worker from its next task, nor may a closed stream.
        os._exit(0)


def _run_function(target: str, key: str | None, pipe: MessagePipe) -> None:
    import faulthandler

    faulthandler.enable()
    # What is printed can be followed, and is not lost with the process.
    sys.stdout.reconfigure(line_buffering=True)  # type: ignore[union-attr]  # nobody has replaced it yet
    task = Task(**json.load(sys.stdin.buffer), report=pipe.send)
    # The task has been read; a handler that reads stdin gets its end instead of waiting.
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    process = os.getpid()
    try:
        end = _encode_result(_call_handler(target, key, task))
    except BaseException as error:
        # A process that the handler forked may come out of it too, and does not speak for the task.
        if os.getpid() != process:
            raise
        end = _encode(_describe_end(error))
    if os.getpid() == process:
        pipe.write(end)


def _call_handler(target: str, key: str | None, task: Task) -> object:
    try:
        function = load_handler(target, key)
    except Exception as error:
        raise Failure("handler_unavailable", f"{target}: {type(error).__name__}: {error}") from error
    _show_logs()
    result = function(task)
    if hasattr(result, "__await__"):
        import asyncio

        result = asyncio.run(result)
    return result


def _show_logs() -> None:
    """Have what the handler logs written to stderr from level INFO on, unless it sets up logging itself."""
    # It would cost every other task the import.
    if "logging" in sys.modules:
        import logging

        # The last resort steps aside for whatever the handler sets up, before or while it runs.
        shown = logging.StreamHandler()
        shown.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(name)s: %(message)s"))
        logging.lastResort = shown
        if logging.root.level == logging.WARNING:
            logging.root.setLevel(logging.INFO)


def _encode_result(result: object) -> bytes:
    if not isinstance(result, dict):
        raise Failure("invalid_result", f"a handler returns a dict, not {type(result).__name__}")
    try:
        return _encode({"result": result}, "the result")
    except TooLarge as error:
        raise Failure("result_too_large", str(error)) from error
    except (TypeError, ValueError, RecursionError) as error:
        raise Failure("invalid_result", f"the result is not JSON: {error}") from error


class TooLarge(ValueError):
    """JSON that the daemon would not take."""


def _encode(message: Json, name: str = "the message") -> bytes:
    line = json.dumps(message, allow_nan=False).encode()
    if len(line) > MAX_RESULT_BYTES:
        raise TooLarge(f"{name} has {len(line)} bytes, the limit is {MAX_RESULT_BYTES}")
    if is_too_heavy(line):
        raise TooLarge(f"{name} is JSON {TOO_HEAVY}")
    return line


def _describe_end(error: BaseException) -> Json:
    # asyncio.TaskGroup puts one around whatever a part of the handler raises.
    while isinstance(error, BaseExceptionGroup) and len(error.exceptions) == 1:
        error = error.exceptions[0]
    if isinstance(error, Postponed):
        return {"postponed": {"seconds": error.seconds, "reason": error.reason}}
    return {"error": _describe_error(error)}


def _describe_error(error: BaseException) -> Json:
    """The error as the wire has it; anything but a Failure is retryable."""
    if isinstance(error, MemoryError):
        limit = f"the limit is {memory_limit_gb():.2f} GiB for each process, and for all of the task together"
        return _error_object(
            "memory_limit", f"the handler ran out of memory ({str(error) or 'MemoryError'}); {limit}", True, {}
        )
    if isinstance(error, Failure):
        return _error_object(error.code, str(error), error.retryable, error.detail)
    import traceback

    tail = "".join(traceback.format_exception(error))[-_TRACEBACK_CHARACTERS:]
    code = "handler_exited" if isinstance(error, SystemExit) else "handler_error"
    detail = {"traceback": tail}
    if hint := _hint_for(error):
        detail["hint"] = hint
    try:
        text = str(error)
    except Exception:
        text = "it cannot be shown"
    return _error_object(code, f"{type(error).__name__}: {text}", True, detail)


def _hint_for(error: BaseException) -> str | None:
    """The remedy of an error of a file."""
    number = error.errno if isinstance(error, OSError) else None
    if number in (errno.EROFS, errno.EACCES):
        return _WRITABLE_HINT.format(os.getuid())
    return _ROOM_HINT.format(file_limit_gb()) if number in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG) else None


def _error_object(code: str, message: str, retryable: bool, detail: Json) -> Json:
    """The error without details that cannot be sent, as whether to try again matters more."""
    try:
        plain = json.loads(json.dumps(detail, default=str, allow_nan=False))
        _encode(plain, "the detail")
    except Exception as error:  # whatever writes itself as text, or fails to
        plain = {"left_out": f"{type(error).__name__}: {error}"[:500]}
    return {"code": code, "message": message[:1000], "retryable": retryable, "detail": plain}


def _exec_program(command: list[str], pipe: MessagePipe, fd: int) -> None:
    import signal

    signal.signal(signal.SIGPIPE, signal.SIG_DFL)
    os.environ["CONVENER_PROGRESS_FD"] = str(PROGRESS_FD)
    try:
        # dup2 leaves the original to close on exec, so that a failed exec can still be reported.
        if fd == PROGRESS_FD:
            os.set_inheritable(fd, True)
        else:
            os.dup2(fd, PROGRESS_FD, inheritable=True)
        os.execvp(command[0], command)  # noqa: S606 - a handler that is a program is one by the operator's choice
    except OSError as error:
        pipe.send({"error": _error_object("handler_unavailable", f"{command[0]}: {error}", True, {})})
