"""GPUs of this machine: found by the programs of their makers, and each kept for one worker by a lock on a file.

The kernel takes a lock from a process however it ends, so that a killed worker leaves its devices to the next one.
"""

import fcntl
import json
import os
import re
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

_PROGRAM_SECONDS = 20.0
_LOCKS = ("/run/lock", "/tmp")  # noqa: S108 - a place that all workers of the host can write to
_WAIT_SECONDS = 10.0
_NVIDIA = ["nvidia-smi", "--query-gpu=index,uuid", "--format=csv,noheader"]
_AMD = ["rocm-smi", "--showuniqueid", "--json"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Gpu:
    """A device: its maker, its number in the list of the maker's program, and its name for life."""

    maker: str
    index: int
    uuid: str


class NoGpus(ValueError):
    """Fewer devices are to be had than this worker was to keep."""


def find_gpus(environment: Mapping[str, str]) -> list[Gpu]:
    """The devices of this machine that the environment of this process does not hide; none without the programs.

    Raises NoGpus for an answer that cannot be understood: to ignore devices might share them.
    """
    nvidia = [gpu for gpu in _nvidia(_answer(_NVIDIA)) if _is_visible(gpu, environment.get("CUDA_VISIBLE_DEVICES"))]
    amd = [gpu for gpu in _amd(_answer(_AMD)) if _is_visible(gpu, environment.get("ROCR_VISIBLE_DEVICES"))]
    return nvidia + amd


def _answer(command: Sequence[str]) -> str:
    try:
        result = subprocess.run(command, check=False, capture_output=True, text=True, timeout=_PROGRAM_SECONDS)
    except FileNotFoundError:
        return ""
    except (OSError, subprocess.SubprocessError) as error:
        raise NoGpus(f"{command[0]} cannot be asked for the GPUs: {error}") from None
    if result.returncode == 0:
        return result.stdout
    message = (result.stdout + result.stderr).strip().splitlines() or [""]
    if "No devices were found" in message[0]:
        return ""
    # The program is there, and its driver is not.
    raise NoGpus(f"{command[0]} ended with {result.returncode}: {message[0][:200]}")


def _nvidia(text: str) -> list[Gpu]:
    """Read lines such as `0, GPU-1b724e78-eef5-4163-d43c-e4da15d41176`."""
    gpus = []
    for line in filter(None, map(str.strip, text.splitlines())):
        match = re.fullmatch(r"(\d+), *(GPU-[0-9a-fA-F-]+)", line)
        if match is None:
            raise NoGpus(f"nvidia-smi answers what is no GPU: {line[:200]}")
        gpus.append(Gpu(maker="nvidia", index=int(match[1]), uuid=match[2]))
    return gpus


def _amd(text: str) -> list[Gpu]:
    """Read an object such as `{"card0": {"Unique ID": "0x8c2a9ec4d3e1b0f7"}}`."""
    if not text.strip():
        return []
    try:
        cards = {name: card for name, card in json.loads(text).items() if re.fullmatch(r"card\d+", name)}
        ids = {int(name[4:]): str(card.get("Unique ID", "N/A")) for name, card in cards.items()}
    except (ValueError, AttributeError) as error:
        raise NoGpus(f"rocm-smi answers what is no list of GPUs: {error}") from None
    # Some have no id; then its place in the list is the only name.
    return [
        Gpu(maker="amd", index=index, uuid=f"GPU-{unique[2:]}" if unique.startswith("0x") else str(index))
        for index, unique in sorted(ids.items())
    ]


def _is_visible(gpu: Gpu, visible: str | None) -> bool:
    if visible is None:
        return True
    return any(
        word == str(gpu.index) or (word.startswith("GPU-") and gpu.uuid.startswith(word))
        for word in map(str.strip, visible.split(","))
    )


class GpuKeeper:
    """The devices of one worker, locked until this process ends."""

    def __init__(self, gpus: Sequence[Gpu] = (), locks: Sequence[int] = ()) -> None:
        self.gpus = tuple(gpus)
        self._locks = locks

    def environment(self, count: int) -> dict[str, str]:
        """Variables by which a task sees as many of the devices as it asked for, and no others."""
        if not self.gpus:
            return {}
        chosen = self.gpus[:count]
        nvidia = ",".join(gpu.uuid for gpu in chosen if gpu.maker == "nvidia")
        amd = [str(gpu.index) for gpu in chosen if gpu.maker == "amd"]
        if self.gpus[0].maker == "nvidia":
            return {"CUDA_VISIBLE_DEVICES": nvidia}
        # The runtime numbers anew what ROCR_VISIBLE_DEVICES leaves, and these two count in the new numbers.
        numbers = ",".join(map(str, range(len(amd))))
        variables = {"ROCR_VISIBLE_DEVICES": ",".join(amd), "HIP_VISIBLE_DEVICES": numbers}
        return {**variables, "CUDA_VISIBLE_DEVICES": numbers}

    def close(self) -> None:
        """Leave the devices to others."""
        for lock in self._locks:
            os.close(lock)


def keep_gpus(
    count: int | None, environment: Mapping[str, str], sleep: Callable[[float], None] = time.sleep
) -> GpuKeeper:
    """Lock so many devices that no other worker has, all that are free for None. Raises NoGpus.

    Waits some seconds: of a worker that was killed a moment ago they come free as the kernel ends it.
    """
    if count == 0:
        return GpuKeeper()
    gpus = find_gpus(environment)
    if len({gpu.maker for gpu in gpus}) > 1:
        raise NoGpus("GPUs of two makers: hide those of one by CUDA_VISIBLE_DEVICES or ROCR_VISIBLE_DEVICES")
    if count is not None and len(gpus) < count:
        raise NoGpus(f"--gpus {count}: this machine has {len(gpus)}")
    directory = _lock_directory(environment)
    held_locks = _lock_free(directory, gpus, {}, count)
    end = time.monotonic() + _WAIT_SECONDS
    while count is not None and len(held_locks) < count and time.monotonic() < end:
        sleep(0.2)
        held_locks = _lock_free(directory, gpus, held_locks, count)
    if count is not None and len(held_locks) < count:
        for lock in held_locks.values():
            os.close(lock)
        freedom = f"{len(held_locks)} of {len(gpus)} are free"
        raise NoGpus(f"--gpus {count}: {freedom}, other workers of this host keep the others")
    return GpuKeeper(list(held_locks), list(held_locks.values()))


def _lock_free(
    directory: Path, gpus: Sequence[Gpu], held_locks: Mapping[Gpu, int], count: int | None
) -> dict[Gpu, int]:
    """Lock as many further devices as are wanted and free; return all locks in the order of the devices."""
    locks = dict(held_locks)
    for gpu in gpus:
        if gpu not in locks and len(locks) != count and (lock := _lock(directory, gpu)) is not None:
            locks[gpu] = lock
    return {gpu: locks[gpu] for gpu in gpus if gpu in locks}


def _lock_directory(environment: Mapping[str, str]) -> Path:
    if named := environment.get("CONVENER_GPU_LOCKS"):
        return Path(named)
    return next((Path(path) for path in _LOCKS if os.access(path, os.W_OK)), Path(_LOCKS[-1]))


def _lock(directory: Path, gpu: Gpu) -> int | None:
    """The descriptor of the locked file of a device; None while another worker has it."""
    path = directory / f"convener-gpu-{gpu.maker}-{gpu.uuid}.lock"
    try:
        # One that another user has made may be locked, but in a directory for all not be opened as if it were new.
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except FileNotFoundError:
        descriptor = os.open(path, os.O_RDONLY | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o644)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(descriptor)
        return None
    return descriptor
