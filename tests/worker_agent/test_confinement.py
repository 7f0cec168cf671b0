"""Confinement of handlers by each method that a system may have."""

import ctypes
import os
import re
import signal
import stat
import subprocess
import sys
import tempfile
from contextlib import AbstractContextManager
from dataclasses import replace
from pathlib import Path
from queue import SimpleQueue
from typing import Any

import psutil
import pytest

from tests.worker_agent.confining import need_code_for_others, open_to_others, rules
from worker_agent import cgroups
from worker_agent import events as ev
from worker_agent.cgroups import GroupParents, TaskGroup, group_parents, task_group
from worker_agent.child_process import ResourceLimits, start_child
from worker_agent.confinement import Confinement, HandlerLimits, Method, handler_user
from worker_agent.file_view import FileView, view_files
from worker_agent.handler_run import HandlerRun
from worker_agent.handlers import Handler, collect_handlers
from worker_agent.kernel_calls import landlock_version
from worker_agent.output_buffers import Pace
from worker_agent.probing import UnusableHandler, probe
from worker_agent.protections import determine
from worker_agent.wire import Lease

_PARENTS = group_parents() if sys.platform == "linux" else None
pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="other systems have none of these means")
METHODS = [
    Method.NAMESPACES,
    pytest.param(Method.LANDLOCK, marks=pytest.mark.skipif(landlock_version() < 6, reason="this kernel has none")),
]


def ended(script: str, confinement: Confinement, *, cpu_cores: float = 1.0, **more: Any) -> ev.HandlerEnd:
    """How a shell script ended as a handler with 1 GiB of memory."""
    events: SimpleQueue[ev.Event] = SimpleQueue()
    lease = Lease(task_id="t-1", token=1, agent_type="generation", timeout_seconds=60.0)
    handler, limits = Handler(command=("sh", "-c", script)), ResourceLimits(memory_gb=1.0, cpu_cores=cpu_cores)
    HandlerRun(start_child(lease, handler, limits, confinement, {}), 60.0, events.put, **more)
    while isinstance(event := events.get(timeout=60.0), ev.ProgressMade):
        continue
    assert isinstance(event, ev.HandlerFinished | ev.HandlerFailed), event
    return event


def succeeds(command: str, confinement: Confinement) -> bool:
    """Whether a command does what it is to do in a handler."""
    end = ended(
        f"if ( {command} ) >&2; then echo '{{\"done\": true}}'; else echo '{{\"done\": false}}'; fi", confinement
    )
    assert isinstance(end, ev.HandlerFinished), end
    return bool(end.result["done"])


def by(method: Method, *writable: Path, **limits: Any) -> Confinement:
    confinement = rules(*writable)
    if confinement.method is not Method.NAMESPACES:
        pytest.skip("this system refuses namespaces")
    if method is not Method.NAMESPACES:
        need_code_for_others(confinement)
    return replace(confinement, method=method, limits=HandlerLimits(**limits))


@pytest.mark.parametrize("method", METHODS)
def test_a_handler_reads_the_system_and_its_code_and_nothing_else(method: Method, tmp_path: Path) -> None:
    (tmp_path / "secret").write_text("x")
    (tmp_path / "secret").chmod(0o644)
    open_to_others(tmp_path)
    confinement = by(method)
    assert succeeds(f"cat {__file__} >/dev/null", confinement)
    assert succeeds(f"{sys.executable} -c 'import ssl'", confinement)
    for path in (tmp_path / "secret", "/etc/shadow", "/var/lib/dpkg/status", "/root/.bashrc"):
        assert not succeeds(f"cat {path}", confinement), path


@pytest.mark.parametrize("method", METHODS)
def test_what_is_named_can_be_read_or_written(method: Method, tmp_path: Path) -> None:
    data, results = tmp_path / "data", tmp_path / "results"
    for directory in (data, results):
        directory.mkdir()
        (directory / "file").write_text("x")
    open_to_others(tmp_path)
    view = view_files(readable=[data], writable=[results], uid=_uid())
    results.chmod(0o777)
    confinement = replace(by(method), view=view)
    assert succeeds(f"cat {data}/file", confinement)
    assert not succeeds(f"echo y > {data}/file", confinement)
    assert succeeds(f"echo y > {results}/new", confinement)
    assert (results / "new").read_text() == "y\n"


@pytest.mark.parametrize("method", METHODS)
def test_what_is_hidden_is_not_seen_where_it_lies_in_what_is_shown(method: Method, tmp_path: Path) -> None:
    for name in ("code/state/postgres", "code/package"):
        (tmp_path / name).mkdir(parents=True)
    secrets = ["code/state/operator.key", "code/state/postgres/x", "code/.env", "code/named"]
    for name in (*secrets, "code/package/agents.py"):
        (tmp_path / name).write_text("a secret")
    open_to_others(tmp_path)
    view = view_files(readable=[tmp_path / "code"], hidden=[tmp_path / "code" / "named"], uid=_uid())
    confinement = replace(by(method), view=view)
    assert succeeds(f"grep secret {tmp_path}/code/package/agents.py", confinement)
    for name in secrets:
        assert not succeeds(f"grep secret {tmp_path}/{name}", confinement), name
    assert succeeds(f"ls {tmp_path}/code", confinement), "imports look for their modules so"


def test_passwords_beside_code_are_hidden_also_where_it_lies_among_the_programs_of_the_system(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "app" / "state").mkdir(parents=True)
    for name in ("app/.env", "app/state/operator.key"):
        (tmp_path / name).write_text("a secret")
    monkeypatch.setattr("worker_agent.file_view._SYSTEM", (str(tmp_path),))
    monkeypatch.chdir(tmp_path / "app")
    assert {str(tmp_path / "app" / name) for name in (".env", "state")} <= set(view_files().hidden)


_ADD_KEY, _KEYCTL, _SESSION = 248, 250, -3  # those of x86-64
_FIND_KEY = f"""
import ctypes, sys
sys.exit(ctypes.CDLL(None).syscall({_KEYCTL}, 10, {_SESSION}, b'user', b'of-the-operator', 0) < 0)
"""


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.skipif(os.uname().machine != "x86_64", reason="the numbers of the calls are those of x86-64")
def test_a_handler_gets_no_keys_of_the_session_in_which_its_worker_was_started(method: Method, tmp_path: Path) -> None:
    confinement = by(method)
    libc = ctypes.CDLL(None, use_errno=True)
    key = libc.syscall(_ADD_KEY, b"user", b"of-the-operator", b"x", 1, _SESSION)
    if key < 0:
        pytest.skip("this system has no keyrings")
    find = f'{sys.executable} -c "{_FIND_KEY}"'
    try:
        assert subprocess.run(find, shell=True, check=False).returncode == 0
        assert not succeeds(find, confinement)
    finally:
        libc.syscall(_KEYCTL, 9, key, _SESSION)  # unlinks it


@pytest.mark.parametrize("method", [*METHODS, Method.NONE])
@pytest.mark.skipif(os.uname().machine != "x86_64", reason="the numbers of the calls are those of x86-64")
def test_calls_that_serve_attacks_on_the_kernel_are_refused(method: Method) -> None:
    errors = _printed("refused", by(method))
    others: dict[str, str | int] = {"unshare of others": "EINVAL", "another ioctl": "EBADF"}
    others |= dict.fromkeys(("clone3", "mount by the numbers of x32"), "ENOSYS")
    # Answered as if it were done, and not done.
    others |= {"PR_SET_DUMPABLE": 0, "PR_GET_DUMPABLE": 1}
    if method is Method.NAMESPACES:
        others["shmget"] = 0
    assert errors == {name: others.get(name, "EPERM") for name in errors}


@pytest.mark.parametrize("method", [*METHODS, Method.NONE])
def test_the_calls_that_agents_need_are_left_to_them(method: Method) -> None:
    # Landlock keeps handlers from /dev/shm, where others' files lie.
    pools = ["no semaphores"] * 2 if method is Method.LANDLOCK else [[1, 2]] * 2
    outcomes = {"threads": 328350, "pools": pools, "shell": "42\n", "spawned": 0, "loop": 0}
    assert _printed("ordinary", by(method)) == outcomes


def _printed(argument: str, confinement: Confinement) -> dict[str, Any]:
    end = ended(f"{sys.executable} -m tests.worker_agent.system_calls {argument}", confinement)
    assert isinstance(end, ev.HandlerFinished), end
    return end.result


@pytest.mark.skipif(os.getuid() != 0, reason="only root may make devices and programs that change their user")
def test_a_writable_directory_has_neither_devices_nor_programs_that_change_their_user(tmp_path: Path) -> None:
    os.mknod(tmp_path / "zero", 0o666 | stat.S_IFCHR, os.makedev(1, 5))
    (tmp_path / "zero").chmod(0o666)
    confinement = by(Method.NAMESPACES, tmp_path)
    assert not succeeds(f"head -c1 {tmp_path}/zero", confinement)
    assert succeeds(f"grep ' {tmp_path} ' /proc/self/mountinfo | grep nosuid | grep nodev", confinement)


def _uid() -> int | None:
    user = handler_user(None)
    return None if user is None else user[0]


@pytest.mark.skipif(os.getuid() != 0, reason="only root runs handlers as another user")
def test_code_that_only_its_owner_may_enter_is_shown_with_the_modes_of_its_files(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "open_agents.py").write_text("HANDLERS = {'ranking': print}\n")
    (tmp_path / "closed_agents.py").write_text("HANDLERS = {'ranking': print}\n")
    (tmp_path / "closed_agents.py").chmod(0o600)
    assert tmp_path.stat().st_mode & 0o777 == 0o700
    monkeypatch.chdir(tmp_path)
    user = handler_user(None)
    assert user is not None
    strict = Confinement(method=Method.NAMESPACES, view=view_files(uid=user[0]), user=user)
    handlers, _ = collect_handlers({}, ["open_agents"], strict)
    assert handlers["ranking"].target == "open_agents:HANDLERS"
    with pytest.raises(UnusableHandler, match=rf"handlers run as user {user[0]}, which must be able to read them"):
        collect_handlers({}, ["closed_agents"], strict)
    # Without namespaces nothing can be shown in another place.
    with pytest.raises(UnusableHandler, match=r"cannot enter .*chmod o\+x"):
        probe(replace(strict, method=Method.LANDLOCK))


@pytest.mark.parametrize("method", METHODS)
def test_a_handler_reaches_no_process_outside_its_task(method: Method) -> None:
    with subprocess.Popen(["sleep", "60"]) as bystander:
        assert not succeeds(f"kill -9 {bystander.pid}", by(method))
        assert not succeeds(f"cat /proc/{bystander.pid}/environ > /dev/null", by(method))
        assert bystander.poll() is None
        bystander.kill()


def test_all_that_a_handler_starts_ends_with_it() -> None:
    script = "setsid sh -c 'setsid sleep 98765 >/dev/null 2>&1 & setsid sleep 98765 >/dev/null 2>&1 &'; echo '{}'"
    assert isinstance(ended(script, by(Method.NAMESPACES)), ev.HandlerFinished)
    assert not [each for each in psutil.process_iter(["cmdline"]) if "98765" in (each.info["cmdline"] or [])]


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
    # Others may run this test at the same time.
    seconds = f"98764{os.getpid()}"
    subprocess.run([sys.executable, "-c", program, method, seconds], check=True, timeout=120)
    assert not [each for each in psutil.process_iter(["cmdline"]) if seconds in (each.info["cmdline"] or [])]


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
        'setsid sleep 98763 >/dev/null 2>&1 & echo "{\\"groups\\": \\"$(cat /proc/self/cgroup | tr \'\\n\' \' \')\\"}"',
        replace(by(method), groups=_PARENTS),
    )
    assert isinstance(end, ev.HandlerFinished)
    assert f"convener-task-{cgroups._own_mark()}" in end.result["groups"]
    assert not [each for each in psutil.process_iter(["cmdline"]) if "98763" in (each.info["cmdline"] or [])]
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


def test_a_handler_cannot_choose_a_weaker_confinement(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tmp_path.chmod(0o755)
    (tmp_path / "sly_agents.py").write_text("import os\nos._exit(77)\n")
    monkeypatch.chdir(tmp_path)
    confinement = replace(by(Method.NAMESPACES), view=view_files(uid=_uid()))
    with pytest.raises(UnusableHandler, match="could not be imported"):
        collect_handlers({}, ["sly_agents"], confinement)


def test_each_protection_that_does_not_hold_says_why_and_what_to_do() -> None:
    outcome = probe(by(Method.NONE))
    missing = {each.name: each for each in determine(outcome) if not each.holds}
    assert {"code", "temporary_files"} & missing.keys() or os.getuid() == 0
    assert "temporary_files" in missing
    assert all(each.why and each.remedy for each in missing.values())


def test_handlers_may_not_write_where_code_is_imported_from(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for path in (tmp_path, tmp_path.parent):
        with pytest.raises(ValueError, match="code is imported from there"):
            view_files(writable=[path])


def test_temporary_directories_are_never_shown_as_they_are(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir("/tmp")
    view: FileView = view_files()
    assert not {"/tmp", "/", "/run"} & {*view.readable, *view.closed}
    with pytest.raises(UnusableHandler, match="handlers do not see what lies in /tmp"):
        collect_handlers({}, ["no_agents"], replace(by(Method.NAMESPACES), view=view))


def test_who_writes_without_end_is_read_slowly() -> None:
    now = [0.0]
    pace = Pace(lambda: now[0])
    assert pace.pause_after(10_000_000) == 0.0, "a result comes at once"
    lines = 0
    while now[0] < 100:
        pause = pace.pause_after(1500, 500)
        now[0] += pause
        lines += 500
    assert 190_000 < lines < 210_000


@pytest.mark.skipif(os.getuid() != 0, reason="only root can name another user")
def test_handlers_never_run_as_root() -> None:
    assert handler_user("nobody") is not None
    assert handler_user("4711") == (4711, 4711)
    own = handler_user(None)
    assert own is not None
    assert own[0] != 0
    for name in ("root", "0"):
        with pytest.raises(ValueError, match="never run as root"):
            handler_user(name)
    with pytest.raises(ValueError, match="no such user"):
        handler_user("no-such-user")
