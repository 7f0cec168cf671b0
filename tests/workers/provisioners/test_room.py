"""What the machine has, and what the container around us leaves of it."""

from pathlib import Path

import psutil
import pytest

from app.workers.provisioners.host import Gauge, Machine, Reading


class _Machine(Machine):
    """Half of everything is in use."""

    def read(self) -> Reading:
        return Reading(cpu=50.0, memory=50.0)


def test_without_a_limit_it_is_the_machine(tmp_path: Path) -> None:
    room = Gauge(_Machine(), tmp_path).read()
    assert room.memory_gb == pytest.approx(psutil.virtual_memory().total / 2**30)
    assert room.memory_used_gb == pytest.approx(room.memory_gb / 2)
    assert room.cpu_share == 0.5
    assert room.cpu_cores >= 1


def test_the_limits_of_a_container_count(tmp_path: Path) -> None:
    (tmp_path / "memory.max").write_text(f"{2**30}\n")
    (tmp_path / "cpu.max").write_text("50000 100000\n")
    room = Gauge(_Machine(), tmp_path).read()
    assert (room.memory_gb, room.memory_used_gb, room.cpu_cores) == (1.0, 0.5, 0.5)


def test_the_limits_of_any_group_around_us_count(tmp_path: Path) -> None:
    """A unit of systemd is no container: its limits are not at the root."""
    own, unit = tmp_path / "own", tmp_path / "system.slice/convener.service"
    unit.mkdir(parents=True)
    own.write_text("0::/system.slice/convener.service\n")
    (unit / "memory.max").write_text(f"{2**30}\n")
    (unit / "cpu.max").write_text("50000 100000\n")
    room = Gauge(_Machine(), tmp_path, own).read()
    assert (room.memory_gb, room.memory_used_gb, room.cpu_cores) == (1.0, 0.5, 0.5)


def test_max_is_no_limit(tmp_path: Path) -> None:
    (tmp_path / "memory.max").write_text("max\n")
    (tmp_path / "cpu.max").write_text("max 100000\n")
    assert Gauge(_Machine(), tmp_path).read().memory_gb > 1


def test_memory_that_cannot_be_measured_leaves_no_room(tmp_path: Path) -> None:
    class Blind(Machine):
        def read(self) -> Reading:
            return Reading(cpu=None, memory=None)

    room = Gauge(Blind(), tmp_path).read()
    assert (room.memory_used_gb, room.cpu_share) == (room.memory_gb, None)
