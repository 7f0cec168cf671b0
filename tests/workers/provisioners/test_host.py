"""How busy the machine is: measured for real, and within control groups that are laid out as the kernel does."""

from pathlib import Path

import psutil
import pytest

from app.workers.provisioners.host import Machine

_MIB = 2**20


class _Clock:
    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def groups(tmp_path: Path) -> Path:
    """A control group `pod/worker`, of which nothing is limited."""
    (tmp_path / "own").write_text("12:cpu:/elsewhere\n0::/pod/worker\n")
    root = tmp_path / "groups"
    for level in (root / "pod" / "worker", root / "pod"):
        level.mkdir(parents=True, exist_ok=True)
        _limit(level)
    return root


def _limit(
    level: Path, *, cores: float | None = None, used: float = 0.0, memory_mib: int | None = None, **of: int
) -> None:
    quota = "max" if cores is None else str(round(cores * 100_000))
    (level / "cpu.max").write_text(f"{quota} 100000\n")
    (level / "cpu.stat").write_text(f"usage_usec {round(used * 1e6)}\nuser_usec 1\n")
    (level / "memory.max").write_text("max\n" if memory_mib is None else f"{memory_mib * _MIB}\n")
    (level / "memory.current").write_text(f"{of.get('resident_mib', 0) * _MIB}\n")
    (level / "memory.stat").write_text(f"anon 5\ninactive_file {of.get('cache_mib', 0) * _MIB}\n")


@pytest.fixture
def clock() -> _Clock:
    return _Clock()


@pytest.fixture
def idle(monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine that has all its memory, and whose processors have nothing to do."""
    memory = type("Memory", (), {"percent": 5.0, "total": 64 << 30})
    monkeypatch.setattr(psutil, "virtual_memory", lambda: memory)
    monkeypatch.setattr(psutil, "cpu_count", lambda: 8)
    monkeypatch.setattr("app.workers.provisioners.host._machine_seconds", lambda: 0.0)


def _machine(groups: Path, clock: _Clock) -> Machine:
    return Machine(groups=groups, own=groups.parent / "own", clock=clock)


def test_the_machine_itself() -> None:
    machine = Machine()
    burnt = sum(n * n for n in range(2_000_000))
    assert burnt
    reading = machine.read()
    assert reading.cpu is not None
    assert 0 < reading.cpu <= 100
    assert reading.memory is not None
    assert 0 < reading.memory < 100


@pytest.mark.usefixtures("idle")
def test_no_time_has_passed_so_nothing_is_known_of_the_processors(groups: Path, clock: _Clock) -> None:
    assert _machine(groups, clock).read().cpu is None


@pytest.mark.usefixtures("idle")
def test_a_group_without_limits_is_not_asked(groups: Path, clock: _Clock) -> None:
    machine = _machine(groups, clock)
    clock.now = 10
    _limit(groups / "pod" / "worker", used=10, resident_mib=900)
    assert (machine.read().cpu, machine.read().memory) == (0.0, 5.0)


@pytest.mark.usefixtures("idle")
def test_the_tightest_limit_counts(groups: Path, clock: _Clock) -> None:
    inner, outer = groups / "pod" / "worker", groups / "pod"
    _limit(inner, cores=2, memory_mib=1000)
    _limit(outer, cores=4, memory_mib=4000)
    machine = _machine(groups, clock)
    clock.now = 10
    _limit(inner, cores=2, used=10, memory_mib=1000, resident_mib=400, cache_mib=100)
    _limit(outer, cores=4, used=32, memory_mib=4000, resident_mib=3000)
    reading = machine.read()
    assert reading.cpu == pytest.approx(80.0)
    assert reading.memory == pytest.approx(75.0)


@pytest.mark.usefixtures("idle")
def test_a_look_is_about_the_time_since_the_last_one(groups: Path, clock: _Clock) -> None:
    inner = groups / "pod" / "worker"
    _limit(inner, cores=1)
    machine = _machine(groups, clock)
    for now, used, percent in ((10, 5, 50.0), (20, 6, 10.0), (30, 18, 100.0)):
        clock.now = now
        _limit(inner, cores=1, used=used)
        assert machine.read().cpu == pytest.approx(percent)


@pytest.mark.usefixtures("idle")
def test_a_limit_above_the_machine_does_not_bind(groups: Path, clock: _Clock) -> None:
    inner = groups / "pod" / "worker"
    _limit(inner, cores=16, memory_mib=128 << 10)
    machine = _machine(groups, clock)
    clock.now = 10
    _limit(inner, cores=16, used=80, memory_mib=128 << 10, resident_mib=64 << 10)
    assert (machine.read().cpu, machine.read().memory) == (0.0, 5.0)


@pytest.mark.usefixtures("idle")
def test_what_cannot_be_read_is_left_out(groups: Path, clock: _Clock) -> None:
    inner = groups / "pod" / "worker"
    _limit(inner, cores=1, memory_mib=10)
    machine = _machine(groups, clock)
    clock.now = 10
    for name in ("cpu.max", "cpu.stat", "memory.max", "memory.current", "memory.stat"):
        (inner / name).unlink()
    (groups / "pod" / "cpu.max").write_text("nonsense\n")
    assert (machine.read().cpu, machine.read().memory) == (0.0, 5.0)
    (groups.parent / "own").unlink()
    assert _machine(groups, clock).read().memory == 5.0
