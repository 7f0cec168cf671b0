"""Handlers that behave and misbehave; what one does is said by its payload."""

import asyncio
import ctypes
import json
import logging
import os
import resource
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from enum import Enum
from multiprocessing import get_context
from pathlib import Path
from typing import Any

from worker_agent import Permanent, Postponed, Task, Transient
from worker_agent.wire import AGENT_TYPES

Json = dict[str, Any]


def echo(task: Task) -> Json:
    return {"payload": task.payload, "attempt": task.attempt, "goal": task.goal_id, "checkpoint": task.checkpoint}


def judge(task: Task) -> Json:
    if "said" in task.payload:
        task.quality(task.payload["said"])
    return {"quality": task.payload.get("written")}


def measure(task: Task) -> Json:
    for n in range(task.payload["times"]):
        task.measure("depth", n)
    task.measure("hypotheses_written", 3, counter=True, by_goal=True)
    return {}


def thrifty(task: Task) -> Json:
    return {"depth": task.max_depth, "batch": round(10 * task.batch_factor), "degradation": task.degradation}


def big(task: Task) -> Json:
    return {"text": "x" * task.payload["bytes"]}


def talk(task: Task) -> Json:
    """Print, log and wait as the payload says."""
    logging.getLogger("agent").info("logged")
    for n in range(task.payload.get("lines", 1)):
        print(f"line {n}")
    if "file" in task.payload:
        Path(task.payload["file"]).touch()
    time.sleep(task.payload.get("seconds", 0))
    print("the end", file=sys.stderr)
    return {}


def nan(_: Task) -> Json:
    return {"value": float("nan")}


def written(task: Task) -> Any:
    """Whatever the payload has as JSON."""
    return json.loads(task.payload["json"])


def many(task: Task) -> Json:
    return {"a": [[]] * task.payload["count"]}


def not_an_object(_: Task) -> Any:
    return [1, 2]


def noise(task: Task) -> Json:
    print('{"result": {"forged": true}}')
    for _ in range(task.payload["lines"]):
        print("n" * 1000)
        print("e" * 1000, file=sys.stderr)
    os.write(1, b'{"percent": 99}\n')
    subprocess.run(["echo", "from a grandchild"], check=True)
    return {"fine": True}


def segfault(_: Task) -> Json:
    print("about to fall", file=sys.stderr, flush=True)
    ctypes.string_at(0)
    return {}


def kill_self(_: Task) -> Json:
    os.kill(os.getpid(), signal.SIGKILL)
    return {}


def leave(_: Task) -> Json:
    raise SystemExit(7)


def permanent(_: Task) -> Json:
    raise Permanent("bad_input", "no such planet", planet="Vulcan", odd={1, 2})


def _lists(depth: int) -> list[Any]:
    value: list[Any] = []
    for _ in range(depth):
        value = [value]
    return value


class _Mute:
    def __str__(self) -> str:
        raise RuntimeError("no text")


DETAILS: dict[str, Callable[[], object]] = {
    "large": lambda: "x" * (11 << 20),
    "many": lambda: [[]] * 400_000,
    "long": lambda: 10**450,
    "endless": lambda: 10**5000,
    "deep": lambda: _lists(5000),
    "mute": _Mute,
}


def permanent_with(task: Task) -> Json:
    """Fail for good, with a detail that cannot be sent."""
    raise Permanent("bad_input", "no such planet", planet=DETAILS[task.payload["detail"]]())


def mute(_: Task) -> Json:
    class MuteError(Exception):
        __str__ = _Mute.__str__

    raise MuteError


async def group(_: Task) -> Json:
    """Fail in a part of a group in a group."""

    async def part() -> None:
        raise Permanent("bad_input", "no such planet")

    async with asyncio.TaskGroup() as outer, asyncio.TaskGroup() as inner:
        inner.create_task(part())
        outer.create_task(asyncio.sleep(60))
    return {}


def fork(task: Task) -> Json:
    """Fork a process that comes out of this function, in the way that the payload says."""
    child = os.fork()
    if child:
        os.waitpid(child, 0)
        return {"by": "the handler"}
    errors = {"exit": SystemExit(3), "error": ValueError("in the child"), "postponed": Postponed(5)}
    raise errors[task.payload["way"]]


def close_stdout(_: Task) -> Json:
    threading.Thread(target=time.sleep, args=(3600,)).start()
    sys.stdout.close()
    return {"fine": True}


def keep(task: Task) -> Json:
    """Report a checkpoint that is a list, or holds what the payload says."""
    kind = task.payload["checkpoint"]
    checkpoint: Any = [1] if kind == "list" else {"planet": DETAILS[kind]()}
    task.progress(50, checkpoint=checkpoint)
    return {}


def large_file(_: Task) -> Json:
    with tempfile.TemporaryFile() as file:
        file.truncate(1 << 40)
    return {}


def written_beside(_: Task) -> Json:
    Path(__file__).with_name("of-a-handler").write_text("result")
    return {}


def unstorable(_: Task) -> Json:
    raise Permanent("two\nlines\x1b[2J ", "no\0thing \ud800", key=["\0"])


def transient(_: Task) -> Json:
    raise Transient("gateway_busy", "later")


def postponed(task: Task) -> Json:
    # JSON has no infinity.
    raise Postponed(float(task.payload.get("seconds", 7.5)), "the model has no room")


def _postpone() -> None:
    raise Postponed(7.5, "the model has no room")


def postponed_by_a_process_of_a_pool(_: Task) -> Json:
    # Forked, as a process of another kind looks for the main module.
    with ProcessPoolExecutor(1, get_context("fork")) as pool:
        pool.submit(_postpone).result()
    return {}


def coded_by_an_error(_: Task) -> Json:
    raise Permanent(ValueError("no such planet"))  # type: ignore[arg-type]  # what people write


class Code(str, Enum):  # noqa: UP042 - as many still write it
    NO_PLANET = "no_planet"


def coded_by_a_member_of_an_enumeration(_: Task) -> Json:
    raise Permanent(Code.NO_PLANET)


def bug(_: Task) -> Json:
    raise ValueError("a bug")


def gulp(_: Task) -> Json:
    return {"bytes": len(bytearray(3 * 2**30))}


def spin(_: Task) -> Json:
    while True:
        pass


def advance(task: Task) -> Json:
    for step in range(5):
        task.progress(20 * step, f"step {step}", checkpoint={"step": step})
    task.progress(90)
    if task.checkpoint is None:
        raise Transient("interrupted")
    return {"resumed_at": task.checkpoint["step"]}


def advance_and_linger(task: Task) -> Json:
    task.progress(10)
    time.sleep(300)
    return {}


def finish_late(_: Task) -> Json:
    signal.signal(signal.SIGTERM, lambda *_: terminated.set())
    terminated = threading.Event()
    terminated.wait(300)
    return {"late": True}


def linger(task: Task) -> Json:
    """Start a grandchild, tell both pids, and wait; `deaf` handlers ignore SIGTERM, as do their children."""
    if task.payload.get("deaf"):
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
    grandchild = subprocess.Popen(["sleep", "300"])
    pid_file = Path(task.payload["file"])
    pid_file.with_suffix(".new").write_text(f"{os.getpid()} {grandchild.pid}")
    pid_file.with_suffix(".new").rename(pid_file)
    time.sleep(task.payload.get("seconds", 300))
    return {"lingered": True}


def stray_thread(_: Task) -> Json:
    threading.Thread(target=time.sleep, args=(300,)).start()
    return {"fine": True}


def environment(_: Task) -> Json:
    return {
        "environment": {key: value for key, value in os.environ.items() if "CONVENER" in key or key == "TRACEPARENT"}
    }


def confined(_: Task) -> Json:
    """What the process may use: bytes of memory, seconds of processor time, and threads of numeric libraries."""
    limits = {name: resource.getrlimit(getattr(resource, f"RLIMIT_{name}"))[0] for name in ("DATA", "CPU")}
    return limits | {"threads": os.environ["OMP_NUM_THREADS"], "go": os.environ["GOMAXPROCS"]}


async def asynchronous(task: Task) -> Json:
    return {"awaited": task.payload}


BEHAVIORS: dict[str, Callable[[Task], Any]] = {
    each.__name__: each
    for each in (
        echo,
        thrifty,
        judge,
        measure,
        big,
        talk,
        nan,
        written,
        many,
        not_an_object,
        noise,
        segfault,
        kill_self,
        leave,
        permanent,
        permanent_with,
        mute,
        group,
        fork,
        close_stdout,
        keep,
        large_file,
        written_beside,
        unstorable,
        transient,
        postponed,
        postponed_by_a_process_of_a_pool,
        coded_by_an_error,
        coded_by_a_member_of_an_enumeration,
        bug,
        gulp,
        spin,
        advance,
        advance_and_linger,
        finish_late,
        linger,
        stray_thread,
        environment,
        confined,
        asynchronous,
    )
}


def act(task: Task) -> Any:
    return BEHAVIORS[task.payload["do"]](task)


HANDLERS: dict[str, Callable[[Task], Any]] = dict.fromkeys(AGENT_TYPES, act)
