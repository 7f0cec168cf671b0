"""What all processes of a task may use together, by groups of the kernel or by counting, and that they end with it."""

import os
import re
import signal
import subprocess
import sys
import tempfile
from contextlib import AbstractContextManager
from dataclasses import replace
from pathlib import Path

import psutil
import pytest

from tests.worker_agent.confined import METHODS, by, ended, succeeds
from tests.worker_agent.confining import need_code_for_others, rules
from worker_agent import cgroups
from worker_agent import events as ev
from worker_agent.cgroups import GroupParents, TaskGroup, group_parents, task_group
from worker_agent.confinement import Method
from worker_agent.kernel_calls import landlock_version

_PARENTS = group_parents() if sys.platform == "linux" else None
pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="other systems have none of these means")
# Others may run these tests at the same time, and cases of one test run in two processes.
_OWN_SECONDS = f"98764{os.getpid()}"


def _sleeping() -> list[psutil.Process]:
    """What tasks of this process have left behind."""
    return [each for each in psutil.process_iter(["cmdline"]) if _OWN_SECONDS in (each.info["cmdline"] or [])]


def test_all_that_a_handler_starts_ends_with_it() -> None:
    sleep = f"setsid sleep {_OWN_SECONDS} >/dev/null 2>&1 &"
    script = f"setsid sh -c '{sleep} {sleep}'; echo '{{}}'"
    assert isinstance(ended(script, by(Method.NAMESPACES)), ev.HandlerFinished)
    assert not _sleeping()


@pytest.mark.parametrize("method", [Method.LANDLOCK, Method.NONE])
def test_without_namespaces_a_daemon_ends_the_orphans(method: Method) -> None:
    program = """
import json, sys
from queue import SimpleQueue
from tests.worker_agent.confining import rules
from tests.worker_agent.test_confinement import ended
from worker_agent.confinement import Method
from worker_agent.orphans import adopt_orphans
from dataclasses import replace
import psutil
assert adopt_orphans()
script = f"setsid sh -c 'setsid sleep {sys.argv[2]} >/dev/null 2>&1 & setsid sleep {sys.argv[2]} &'; echo '{{}}'"
ended(script, replace(rules(), method=Method(sys.argv[1])), adopts_orphans=True)
sys.exit(bool(psutil.Process().children(recursive=True)))
"""
    subprocess.run([sys.executable, "-c", program, method, _OWN_SECONDS], check=True, timeout=120)
    assert not _sleeping()


@pytest.mark.parametrize("method", METHODS)
def test_the_number_of_processes_is_limited(method: Method) -> None:
    script = "i=0; while [ $i -lt 60 ]; do sleep 60 & i=$((i+1)); done; echo '{}'"
    end = ended(script, by(method, max_processes=20))
    assert isinstance(end, ev.HandlerFailed)
    assert "fork" in str(end.error.detail)


@pytest.mark.parametrize("method", METHODS)
def test_the_memory_of_all_processes_together_is_limited(method: Method) -> None:
    hog = f"{sys.executable} -c 'import time; hog = bytearray(400 << 20); time.sleep(50)'"
    end = ended(f"{hog} & {hog} & {hog} & {hog} & wait; echo '{{}}'", by(method))
    assert isinstance(end, ev.HandlerFailed)
    assert end.error.code == "memory_limit"
    assert re.search(r"took [1-9]\.\d\d GiB of memory together; the limit is 1\.00 GiB", end.error.message)


# Ways to more memory than one process may have, which only the look at all of them finds.
_HOGS = {
    "a shared mapping": "held.append(mmap.mmap(-1, 3 << 30)); fill(held[0])",
    "files in memory that are mapped": "f = [memfd(800 << 20) for _ in range(2)]; [fill(mmap.mmap(x, 0)) for x in f]",
    "files in memory that are not": "f = [memfd(0) for _ in range(30)]; [os.write(x, bytes(100 << 20)) for x in f]",
    "forked children": "[os.fork() for _ in range(2)]; fill(bytearray(800 << 20))",
    "sessions of their own": "[os.fork() or os.setsid() for _ in range(2)]; fill(bytearray(800 << 20))",
    "children that are closed": "libc.prctl(4, 0); [os.fork() for _ in range(2)]; fill(bytearray(800 << 20))",
}
_HOG = """
import ctypes, mmap, os, time
libc, held = ctypes.CDLL(None), []
def memfd(size):
    file = os.memfd_create('x')
    os.truncate(file, size)
    return file
def fill(memory):
    held.append(memory)
    for n in range(0, len(memory), 4096): memory[n] = 1
{way}
time.sleep(50)
"""
_WAYS = [(way, Method.NAMESPACES, False) for way in _HOGS]
_WAYS += [("sessions of their own", Method.LANDLOCK, False), ("forked children", Method.NAMESPACES, True)]
_WAYS += [("files in memory that are not", Method.LANDLOCK, True)]


@pytest.mark.parametrize(("way", "method", "is_grouped"), _WAYS)
def test_no_way_to_more_memory_goes_far(way: str, method: Method, is_grouped: bool) -> None:
    if is_grouped and _PARENTS is None:
        pytest.skip("no group to make others in")
    confinement = replace(by(method), groups=_PARENTS if is_grouped else None)
    end = ended(f'exec {sys.executable} -c "{_HOG.format(way=_HOGS[way])}"', confinement)
    assert isinstance(end, ev.HandlerFailed), end
    assert end.error.code == "memory_limit", end


def test_a_daemon_counts_what_its_handler_leaves_to_it() -> None:
    program = """
from dataclasses import replace
from tests.worker_agent.confining import rules
from tests.worker_agent.test_confinement import ended
from worker_agent.confinement import Method
from worker_agent.orphans import adopt_orphans
import sys
assert adopt_orphans()
own = bytearray(1 << 30)  # the daemon's own does not count
hog = "import os, time; b = bytearray(800 << 20); b[::4096] = bytes(len(b) >> 12); time.sleep(50)"
script = f"(setsid {sys.executable} -c '{hog}' &); (setsid {sys.executable} -c '{hog}' &); sleep 40; echo '{{}}'"
print(ended(script, replace(rules(), method=Method.LANDLOCK), adopts_orphans=True).error.code)
print(ended("sleep 1; echo '{}'", replace(rules(), method=Method.LANDLOCK), adopts_orphans=True).result)
"""
    if landlock_version() < 6:
        pytest.skip("this kernel has none")
    need_code_for_others(replace(rules(), method=Method.LANDLOCK))
    answer = subprocess.run([sys.executable, "-c", program], check=True, timeout=120, capture_output=True, text=True)
    assert answer.stdout == "memory_limit\n{}\n"


def test_memory_that_processes_share_counts_once() -> None:
    script = "import os, time; b = bytearray(300 << 20); [os.fork() for _ in range(2)]; time.sleep(1.5)"
    assert succeeds(f"{sys.executable} -c '{script}'", by(Method.NAMESPACES))
    script = "import mmap, os, time; f = os.memfd_create(str()); os.truncate(f, 600 << 20); m = mmap.mmap(f, 0)\n"
    script += "for n in range(0, len(m), 4096): m[n] = 1\nos.fork(); time.sleep(1.5)"
    assert succeeds(f"{sys.executable} -c '{script}'", by(Method.NAMESPACES))


@pytest.mark.parametrize("method", METHODS)
def test_the_size_of_a_file_is_limited(method: Method) -> None:
    confinement = by(method, max_file_gb=0.01)
    assert succeeds("head -c 9000000 /dev/zero > $TMPDIR/small", confinement)
    assert not succeeds("head -c 90000000 /dev/zero > $TMPDIR/large", confinement)


def test_the_temporary_directory_is_limited_and_its_own() -> None:
    confinement = by(Method.NAMESPACES, max_file_gb=0.01)
    assert not succeeds("for i in 1 2 3 4; do head -c 4000000 /dev/zero > /tmp/$i || exit 1; done", confinement)
    with tempfile.NamedTemporaryFile(dir="/tmp") as others_file:
        here = Path(others_file.name).name
        assert succeeds(f"touch /tmp/from-a-task && test ! -e /tmp/{here} -a ! -e /var/tmp/{here}", confinement)
    assert not Path("/tmp/from-a-task").exists()


@pytest.mark.parametrize("method", [Method.LANDLOCK, Method.NONE])
def test_a_temporary_directory_vanishes_with_its_task(method: Method) -> None:
    end = ended('touch $TMPDIR/x && printf \'{"at": "%s"}\' $TMPDIR', by(method))
    assert isinstance(end, ev.HandlerFinished)
    assert Path(end.result["at"]).name.startswith("convener-task-")
    assert not Path(end.result["at"]).exists()


def test_the_group_above_is_used_only_where_it_was_delegated(tmp_path: Path) -> None:
    unit = tmp_path / "system.slice" / "convener.service"
    (unit / "workers").mkdir(parents=True)
    membership = tmp_path / "membership"
    membership.write_text("0::/system.slice/convener.service/workers\n")
    assert group_parents((tmp_path,), membership) is None
    os.setxattr(unit, "user.delegate", b"1")
    assert group_parents((tmp_path / "nowhere", tmp_path), membership) == GroupParents(unified=unit)
    assert group_parents((tmp_path,), tmp_path / "nothing") is None
    with pytest.raises(FileNotFoundError), _limited(GroupParents(unified=unit / "x")):
        pass


@pytest.mark.skipif(os.getuid() != 0, reason="only root makes groups that nobody delegated to it")
def test_root_makes_groups_where_others_have_limits(tmp_path: Path) -> None:
    (tmp_path / "a.slice" / "session").mkdir(parents=True)
    membership = tmp_path / "membership"
    membership.write_text("0::/a.slice/session\n")
    (tmp_path / "a.slice" / "cgroup.subtree_control").write_text("cpu pids\n")
    assert group_parents((tmp_path,), membership) is None
    (tmp_path / "a.slice" / "cgroup.subtree_control").write_text("cpu memory pids\n")
    assert group_parents((tmp_path,), membership) == GroupParents(unified=tmp_path / "a.slice")


def test_groups_of_version_1_lie_in_the_own_ones_and_those_of_the_dead_are_removed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("worker_agent.cgroups._END_SECONDS", 0.1)
    memory, pids = tmp_path / "memory" / "outer", tmp_path / "pids"
    live = memory / f"{cgroups._PREFIX}{cgroups._own_mark()}-7"
    namespace = live.name.removeprefix(cgroups._PREFIX).partition("-")[0]
    left_over, elsewhere = memory / f"convener-task-{namespace}-4194305-7-7", memory / "convener-task-1-4194305-7-7"
    for directory in (memory, pids, left_over, live, elsewhere):
        directory.mkdir(parents=True)
        (directory / "cgroup.procs").touch()
    (left_over / "cgroup.procs").unlink()  # directories of the kernel are empty for rmdir
    membership = tmp_path / "membership"
    membership.write_text("8:pids:/of/the/host\n5:cpu,cpuacct:/\n4:memory:/outer\n")
    parents = group_parents((tmp_path,), membership)
    assert parents == GroupParents(controllers=(("memory", memory), ("pids", pids)))
    assert [parents.limits(name) for name in ("memory", "pids", "cpu")] == [True, True, False]
    assert (left_over.exists(), live.exists(), elsewhere.exists()) == (False, True, True)
    with _limited(parents) as group:
        limits = {file.name: file.read_text() for directory in group.directories for file in directory.iterdir()}
        bytes_ = str(2**30)
        limits_of_memory = {"memory.limit_in_bytes": bytes_, "memory.memsw.limit_in_bytes": bytes_}
        assert limits == limits_of_memory | {"pids.max": "258"}
        (group.directories[0] / "memory.oom_control").write_text("oom_kill_disable 0\nunder_oom 0\noom_kill 0\n")
        (group.directories[0] / "memory.max_usage_in_bytes").write_text("123\n")
        assert (group.has_run_out_of_memory(), group.peak_bytes()) == (False, 123)
        (group.directories[0] / "memory.oom_control").write_text("oom_kill_disable 0\nunder_oom 0\noom_kill 2\n")
        assert group.has_run_out_of_memory()


def _limited(parents: GroupParents) -> AbstractContextManager[TaskGroup]:
    return task_group(parents, memory_bytes=2**30, processes=258, cpu_cores=1.5)


def test_what_a_group_allows_is_what_the_task_may_have(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("worker_agent.cgroups._END_SECONDS", 0.1)
    with _limited(GroupParents(unified=tmp_path)) as group:
        (directory,) = group.directories
        limits = {file.name: file.read_text() for file in directory.iterdir()}
        assert limits == {
            "memory.max": str(2**30),
            "memory.swap.max": "0",
            "memory.oom.group": "1",
            "pids.max": "258",
            "cpu.max": "150000 100000",
        }
        assert not group.has_run_out_of_memory()
        (directory / "memory.events").write_text("oom 1\noom_kill 3\n")
        assert group.has_run_out_of_memory()
    assert not GroupParents(unified=tmp_path).limits("memory")
    (tmp_path / "cgroup.subtree_control").write_text("cpu memory pids\n")
    assert GroupParents(unified=tmp_path).limits("memory")


@pytest.mark.skipif(_PARENTS is None, reason="no group to make others in")
@pytest.mark.parametrize("method", [Method.NAMESPACES, Method.NONE])
def test_a_task_runs_in_its_groups_which_end_with_it(method: Method) -> None:
    end = ended(
        f"setsid sleep {_OWN_SECONDS} >/dev/null 2>&1 & "
        'echo "{\\"groups\\": \\"$(cat /proc/self/cgroup | tr \'\\n\' \' \')\\"}"',
        replace(by(method), groups=_PARENTS),
    )
    assert isinstance(end, ev.HandlerFinished)
    assert f"convener-task-{cgroups._own_mark()}" in end.result["groups"]
    assert not _sleeping()
    assert _PARENTS is not None
    for parent in (_PARENTS.unified, *dict(_PARENTS.controllers).values()):
        assert parent is None or not list(parent.glob(f"convener-task-{cgroups._own_mark()}-*"))


@pytest.mark.skipif(_PARENTS is None or not _PARENTS.limits("cpu"), reason="no group that limits processor time")
def test_all_processes_of_a_task_share_its_cores() -> None:
    spin = f"{sys.executable} -c 'import time; e = time.monotonic() + 3\nwhile time.monotonic() < e: pass'"
    confinement = replace(by(Method.NAMESPACES), groups=_PARENTS)
    end = ended(f"{spin} & {spin} & wait; echo '{{}}'", confinement, cpu_cores=0.4)
    assert isinstance(end, ev.HandlerFinished)
    # Two of them take up to 6 s of 3 s without it.
    assert end.usage.cpu_seconds < 0.5 * end.usage.wall_seconds + 0.3


def test_an_end_by_a_signal_is_told_through_the_namespaces() -> None:
    for number in (signal.SIGKILL, signal.SIGSEGV, signal.SIGTERM):
        end = ended(f"kill -{int(number)} $$", by(Method.NAMESPACES))
        assert isinstance(end, ev.HandlerFailed)
        assert number.name in end.error.message
