"""Confinement of handlers by each method that a system may have."""

import ctypes
import os
import pty
import stat
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from tests.worker_agent.confined import METHODS, by, ended, succeeds
from tests.worker_agent.confining import open_to_others, refuse_to_confine
from worker_agent import events as ev
from worker_agent import isolation_check, probing
from worker_agent.confinement import Confinement, Method, handler_user
from worker_agent.file_view import FileView, view_files
from worker_agent.handlers import collect_handlers
from worker_agent.output_buffers import Pace
from worker_agent.probing import UnusableHandler, probe
from worker_agent.protections import determine

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="other systems have none of these means")


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


@pytest.mark.parametrize("method", METHODS)
def test_what_is_hidden_stays_so_when_another_file_takes_its_name(method: Method, tmp_path: Path) -> None:
    code, signs, key = tmp_path / "code", tmp_path / "signs", tmp_path / "code" / "inner" / "key"
    for directory in (key.parent, signs):
        directory.mkdir(parents=True)
    for path in (key, key.with_name("agents.py"), code / ".env"):
        path.write_text("a secret")
    open_to_others(tmp_path)
    signs.chmod(0o777)
    view = view_files(readable=[code], writable=[signs], hidden=[key], uid=_uid())
    waits = f"touch {signs}/began; while ! test -e {signs}/renewed; do sleep 0.05; done"
    reads = f"grep secret {key} || grep secret {code}/.env"
    with ThreadPoolExecutor() as threads:
        task = threads.submit(
            succeeds, f"grep secret {key.parent}/agents.py && {waits}; {reads}", replace(by(method), view=view)
        )
        while not (signs / "began").exists():
            assert not task.done(), "it could not read what is shown"
            time.sleep(0.05)
        for path in (key, code / ".env"):
            path.with_name("new").write_text("another secret")
            path.with_name("new").replace(path)
        (signs / "renewed").touch()
        assert not task.result()


@pytest.mark.parametrize("method", METHODS)
def test_files_that_come_to_directories_beside_what_is_hidden_are_seen(method: Method, tmp_path: Path) -> None:
    data, signs = tmp_path / "code" / "data", tmp_path / "signs"
    for directory in (data, signs):
        directory.mkdir(parents=True)
    (tmp_path / "code" / ".env").write_text("a secret")
    open_to_others(tmp_path)
    signs.chmod(0o777)
    view = view_files(readable=[tmp_path / "code"], writable=[signs], uid=_uid())
    waits = f"! test -e {data}/model; touch {signs}/began; while ! test -e {signs}/loaded; do sleep 0.05; done"
    with ThreadPoolExecutor() as threads:
        task = threads.submit(succeeds, f"{waits}; test -e {data}/model", replace(by(method), view=view))
        while not (signs / "began").exists():
            assert not task.done()
            time.sleep(0.05)
        (data / "model").touch()
        (signs / "loaded").touch()
        assert task.result(), "it waited for the file in vain"


@pytest.mark.skipif(os.geteuid() != 0, reason="only root gives handlers a user of their own")
def test_code_that_few_may_read_is_read_by_handlers_also_where_passwords_lie_beside_it(tmp_path: Path) -> None:
    uid, code = _uid(), tmp_path / "code"
    assert uid is not None
    for directory in (code, code / "closed", code / "own"):
        directory.mkdir()
        for name in (".env", "agents.py"):
            (directory / name).write_text("a secret")
    os.chown(code / "own", uid, uid)
    for path in (code / "own", code / "closed"):
        path.chmod(0o700)
    open_to_others(tmp_path)
    view = view_files(readable=[code, code / "closed"], uid=uid)
    confinement = replace(by(Method.NAMESPACES), view=view)
    for directory in (code, code / "closed", code / "own"):
        assert succeeds(f"grep secret {directory}/agents.py && ! grep secret {directory}/.env", confinement), directory


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
    others |= {"PR_SET_DUMPABLE": 0, "PR_GET_DUMPABLE": 1, "prlimit of its own": 0}
    if method is Method.NAMESPACES:
        others |= {"shmget": 0, **dict.fromkeys(("shmat", "semctl", "msgrcv"), "EINVAL")}
        others |= dict.fromkeys(("prlimit of others", "prlimit of others in 64 bits"), "EFAULT")
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


@pytest.mark.parametrize("method", METHODS)
def test_a_handler_reads_no_memory_that_others_share_and_no_terminal(method: Method, tmp_path: Path) -> None:
    confinement, uid = by(method), _uid()
    ends = pty.openpty()
    terminal = os.ttyname(ends[1])
    with tempfile.NamedTemporaryFile(dir="/dev/shm", prefix="convener-test-") as shared:
        if uid is not None:
            os.chown(shared.name, uid, uid)
            os.chown(terminal, uid, uid)
        for path in (shared.name, terminal):
            assert not succeeds(f"true < {path}", confinement), path
    assert succeeds("head -c1 /dev/urandom && true < /dev/null", confinement)
    for end in ends:
        os.close(end)


@pytest.mark.parametrize("method", [*METHODS, Method.NONE])
def test_a_handler_has_no_part_in_the_terminal_of_its_worker(method: Method) -> None:
    worker = f"""
import os
from tests.worker_agent.confined import Method, by, succeeds
os.close(os.open("/dev/tty", os.O_RDWR))
print("reached" if succeeds("true < /dev/tty", by(Method("{method}"))) else "out of reach")
"""
    in_terminal = f"import pty, sys; pty.spawn([sys.executable, '-c', {worker!r}])"
    command = [sys.executable, "-c", in_terminal]
    shown = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=60)
    assert shown.stdout.strip() == "out of reach", shown


def test_that_modes_of_files_can_be_changed_is_told(tmp_path: Path) -> None:
    spec: dict[str, Any] = {"method": "landlock", "user": None, "view": {"hidden": []}}
    assert not isolation_check.why_files_are_open({**spec, "check": {"sockets": [str(tmp_path / "out of sight")]}})
    assert "modes of files" in isolation_check.why_files_are_open({**spec, "check": {"sockets": [str(tmp_path)]}})


def test_a_handler_cannot_choose_a_weaker_confinement(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tmp_path.chmod(0o755)
    (tmp_path / "sly_agents.py").write_text("import os\nos._exit(77)\n")
    monkeypatch.chdir(tmp_path)
    confinement = replace(by(Method.NAMESPACES), view=view_files(uid=_uid()))
    with pytest.raises(UnusableHandler, match="could not be imported"):
        collect_handlers({}, ["sly_agents"], confinement)


def test_a_machine_without_room_for_a_handler_gives_no_weaker_confinement(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With three processes a worker ran all its tasks without namespaces, also when there was room again."""
    refuse_to_confine("EAGAIN", tmp_path, monkeypatch)
    with pytest.raises(UnusableHandler, match=r"no room for a handler: .*Errno 11"):
        probe(Confinement(method=Method.NAMESPACES, view=view_files(uid=_uid()), user=handler_user(None)))


def test_handlers_that_load_without_end_are_refused_in_words(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    open_to_others(tmp_path)
    (tmp_path / "slow_agents.py").write_text("import time\ntime.sleep(600)\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(probing, "_PROBE_SECONDS", 1)
    with pytest.raises(UnusableHandler) as caught:
        collect_handlers({}, ["slow_agents"], replace(by(Method.NONE), view=view_files(uid=_uid())))
    assert str(caught.value) == "the handlers take longer than 1 s to load"


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
