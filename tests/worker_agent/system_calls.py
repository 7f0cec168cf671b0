"""A program that makes system calls, refused and ordinary ones, and prints as JSON what became of them."""

import asyncio
import ctypes
import errno
import json
import mmap
import multiprocessing
import os
import resource
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from typing import Any

_NEWUSER = 0x10000000
# Those of x86-64.
_CALLS: dict[str, tuple[int, ...]] = {
    "ptrace": (101, 16, 0, 0, 0),
    "bpf": (321, -1, 0, 0),
    "perf_event_open": (298, 0, 0, -1, -1, 0),
    "userfaultfd": (323, 1),
    "io_uring_setup": (425, 8, 0),
    "io_uring_enter": (426, -1, 0, 0, 0, 0, 0),
    "io_uring_register": (427, -1, 0, 0, 0),
    "add_key": (248, 0, 0, 0, 0, 0),
    "request_key": (249, 0, 0, 0, 0),
    "keyctl": (250, -1),
    "kexec_load": (246, 0, 0, 0, 0),
    "init_module": (175, 0, 0, 0),
    "finit_module": (313, -1, 0, 0),
    "mount": (165, 0, 0, 0, 0, 0),
    "fsopen": (430, 0, 0),
    "swapon": (167, 0, 0),
    "open_by_handle_at": (304, -1, 0, 0),
    "setns": (308, -1, 0),
    "unshare": (272, _NEWUSER),
    "unshare of several": (272, _NEWUSER | 0x20000),
    "unshare of others": (272, 0x00000001),
    "clone": (56, _NEWUSER | 17, 0, 0, 0, 0),
    "clone3": (435, 0, 0),
    "TIOCSTI": (16, -1, 0x5412, 0),
    "TIOCSTI in 64 bits": (16, -1, 7 << 32 | 0x5412, 0),
    "TIOCLINUX": (16, -1, 0x541C, 0),
    "PR_SET_DUMPABLE": (157, 4, 0, 0, 0, 0),
    "PR_GET_DUMPABLE": (157, 3, 0, 0, 0, 0),
    "shmget": (29, 0, 4096, 0o600),
    "shmat": (30, -1, 0, 0),
    "semctl": (66, -1, 0, 0),
    "msgrcv": (70, -1, 0, 0, 0, 0),
    "prlimit of others": (302, 1, 7, 1, 0),
    "prlimit of others in 64 bits": (302, 1, 7, 1 << 32, 0),
    "prlimit of its own": (302, 0, 7, 0, 0),
    "another ioctl": (16, -1, 0x5413, 0),
    "mount by the numbers of x32": (0x40000000 | 165, 0, 0, 0, 0),
}


def refused() -> dict[str, Any]:
    libc = ctypes.CDLL(None, use_errno=True)
    outcomes: dict[str, Any] = {}
    for name, (number, *arguments) in _CALLS.items():
        result = libc.syscall(ctypes.c_long(number), *map(ctypes.c_long, arguments))
        outcomes[name] = errno.errorcode[ctypes.get_errno()] if result < 0 else result
    return outcomes


def ordinary() -> dict[str, Any]:
    with ThreadPoolExecutor(8) as threads:
        squares = sum(threads.map(lambda n: n * n, range(100)))
    pools: list[Any] = []
    for method in ("fork", "spawn"):
        try:
            with multiprocessing.get_context(method).Pool(2) as pool:
                pools.append(pool.map(abs, [-1, 2]))
        except PermissionError:
            pools.append("no semaphores")
    shell = subprocess.run(["sh", "-c", "sleep 0 & wait; echo $((6*7))"], capture_output=True, text=True, check=True)
    with mmap.mmap(-1, 1 << 20) as shared:
        shared[:4] = b"data"
    spawned = os.waitstatus_to_exitcode(os.waitpid(os.posix_spawnp("true", ["true"], {}), 0)[1])
    limits = resource.prlimit(os.getpid(), resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, limits)
    return {"threads": squares, "pools": pools, "shell": shell.stdout, "spawned": spawned, "loop": asyncio.run(_true())}


async def _true() -> int:
    return await (await asyncio.create_subprocess_exec("true")).wait()


if __name__ == "__main__":
    print(json.dumps({"refused": refused, "ordinary": ordinary}[sys.argv[1]]()))
