"""GPUs as the programs of their makers tell of them, kept for one worker each. No test here has a real one."""

import os
import signal
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

import pytest

from tests.worker_agent.waiting import until
from worker_agent import gpus
from worker_agent.gpus import Gpu, NoGpus, find_gpus, keep_gpus

# As recorded of nvidia-smi 550 with `--query-gpu=index,uuid --format=csv,noheader`, and of rocm-smi 6 with
# `--showuniqueid --json`.
NVIDIA = "0, GPU-1b724e78-eef5-4163-d43c-e4da15d41176\n1, GPU-5b03d1e4-1c56-8d62-cbd7-2f9f8b0a3c11\n"
AMD = (
    '{"card0": {"Unique ID": "0x8c2a9ec4d3e1b0f7"}, "card1": {"Unique ID": "N/A"}, "system": {"Driver version": "6.7"}}'
)
FIRST, SECOND = (line.split(", ")[1] for line in NVIDIA.split("\n")[:2])


def program(directory: Path, name: str, text: str, code: int = 0) -> None:
    """A program that prints this."""
    directory.mkdir(exist_ok=True)
    (directory / f"{name}.txt").write_text(text)
    script = directory / name
    script.write_text(f"#!/bin/sh\ncat {directory}/{name}.txt\nexit {code}\n")
    script.chmod(0o755)


@pytest.fixture
def machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A directory that comes first in PATH, for programs; and no others of makers of GPUs."""
    directory = tmp_path / "bin"
    directory.mkdir()
    monkeypatch.setenv("PATH", f"{directory}:/usr/bin:/bin")
    return directory


@pytest.fixture
def locks(tmp_path: Path) -> Mapping[str, str]:
    (tmp_path / "locks").mkdir()
    return {"CONVENER_GPU_LOCKS": str(tmp_path / "locks")}


def test_devices_of_both_makers_are_found(machine: Path) -> None:
    assert find_gpus({}) == []
    program(machine, "nvidia-smi", NVIDIA)
    program(machine, "rocm-smi", AMD)
    assert find_gpus({}) == [
        Gpu(maker="nvidia", index=0, uuid=FIRST),
        Gpu(maker="nvidia", index=1, uuid=SECOND),
        Gpu(maker="amd", index=0, uuid="GPU-8c2a9ec4d3e1b0f7"),
        Gpu(maker="amd", index=1, uuid="1"),
    ]


@pytest.mark.parametrize(("visible", "found"), [("1", [1]), (SECOND[:12], [1]), ("", []), ("0,1", [0, 1])])
def test_what_a_scheduler_hides_is_not_there(machine: Path, visible: str, found: list[int]) -> None:
    program(machine, "nvidia-smi", NVIDIA)
    assert [gpu.index for gpu in find_gpus({"CUDA_VISIBLE_DEVICES": visible})] == found


def test_a_program_without_devices_and_one_without_its_driver(machine: Path) -> None:
    program(machine, "nvidia-smi", "No devices were found\n", code=6)
    assert find_gpus({}) == []
    program(
        machine, "nvidia-smi", "NVIDIA-SMI has failed because it couldn't communicate with the NVIDIA driver.\n", code=9
    )
    with pytest.raises(NoGpus, match="ended with 9: NVIDIA-SMI has failed"):
        find_gpus({})
    program(machine, "nvidia-smi", "0, [Unknown Error]\n")
    with pytest.raises(NoGpus, match="what is no GPU"):
        find_gpus({})


def test_two_workers_never_keep_the_same_device(
    machine: Path, locks: Mapping[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(gpus, "_WAIT_SECONDS", 0.0)
    program(machine, "nvidia-smi", NVIDIA)
    one = keep_gpus(1, locks)
    other = keep_gpus(None, locks)
    assert ([gpu.uuid for gpu in one.gpus], [gpu.uuid for gpu in other.gpus]) == ([FIRST], [SECOND])
    with pytest.raises(NoGpus, match="--gpus 1: 0 of 2 are free, other workers of this host keep the others"):
        keep_gpus(1, locks)
    assert keep_gpus(None, locks).gpus == ()
    with pytest.raises(NoGpus, match="--gpus 3: this machine has 2"):
        keep_gpus(3, locks)
    one.close()
    assert [gpu.uuid for gpu in keep_gpus(1, locks).gpus] == [FIRST]


def test_a_killed_worker_leaves_its_devices_to_the_next_one(
    machine: Path, locks: Mapping[str, str], tmp_path: Path
) -> None:
    program(machine, "nvidia-smi", NVIDIA)
    script = (
        "import os, pathlib, sys, time\nfrom worker_agent.gpus import keep_gpus\nkept = keep_gpus(2, os.environ)\n"
        "pathlib.Path(sys.argv[1]).touch()\ntime.sleep(60)"
    )
    kept = tmp_path / "kept"
    worker = subprocess.Popen([sys.executable, "-c", script, str(kept)], env={**os.environ, **locks})
    try:
        until(kept.exists)
        assert keep_gpus(None, locks).gpus == ()

        def kill(_: float) -> None:
            worker.send_signal(signal.SIGKILL)
            worker.wait()

        # It waits for them, as a pool starts the next worker as soon as it sees the last one end.
        assert [gpu.uuid for gpu in keep_gpus(2, locks, sleep=kill).gpus] == [FIRST, SECOND]
    finally:
        worker.kill()
        worker.wait()


def test_a_task_sees_what_it_asked_for_and_nothing_else(machine: Path, locks: Mapping[str, str]) -> None:
    assert keep_gpus(0, locks).environment(0) == {}
    program(machine, "nvidia-smi", NVIDIA)
    kept = keep_gpus(2, locks)
    assert kept.environment(0) == {"CUDA_VISIBLE_DEVICES": ""}
    assert kept.environment(1) == {"CUDA_VISIBLE_DEVICES": FIRST}
    assert kept.environment(2) == {"CUDA_VISIBLE_DEVICES": f"{FIRST},{SECOND}"}
    program(machine, "nvidia-smi", "")
    program(machine, "rocm-smi", AMD)
    amd = keep_gpus(2, locks)
    assert amd.environment(1) == {
        "ROCR_VISIBLE_DEVICES": "0",
        "HIP_VISIBLE_DEVICES": "0",
        "CUDA_VISIBLE_DEVICES": "0",
    }
    assert amd.environment(2)["ROCR_VISIBLE_DEVICES"] == "0,1"


def test_devices_of_two_makers_on_one_machine_are_refused(machine: Path, locks: Mapping[str, str]) -> None:
    program(machine, "nvidia-smi", NVIDIA)
    program(machine, "rocm-smi", AMD)
    with pytest.raises(NoGpus, match="two makers"):
        keep_gpus(1, locks)
    assert len(keep_gpus(1, {**locks, "ROCR_VISIBLE_DEVICES": ""}).gpus) == 1
