"""Files of backups: there as a whole or not at all, whoever dies or comes twice."""

import errno
import fcntl
import subprocess
import sys
from pathlib import Path

import pytest

from app.memory.service.archives import new_file, remove_abandoned

_KILLED = """
import os, signal, sys
from pathlib import Path
from app.memory.service.archives import new_file

with new_file(Path(sys.argv[1])) as draft:
    draft.write_text("half of it")
    os.kill(os.getpid(), signal.SIGKILL)
"""


def test_what_a_killed_process_has_left_is_no_obstacle_and_goes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "b.dump"
    killed = subprocess.Popen([sys.executable, "-c", _KILLED, str(file)])
    assert killed.wait() == -9
    assert {path.name for path in tmp_path.iterdir()} == {".b.dump.lock", ".b.dump.partial"}
    # In a container the next one has the same number.
    monkeypatch.setattr("os.getpid", lambda: killed.pid)
    with new_file(file) as draft:
        assert draft.read_text() == ""
        draft.write_text("all of it")
    assert [path.name for path in tmp_path.iterdir()] == ["b.dump"]
    assert file.read_text() == "all of it"


def test_what_a_killed_process_has_left_under_another_name_is_found(tmp_path: Path) -> None:
    """Each night's backup has a name of its own, so it stayed there for good, as large as the database."""
    old = tmp_path / "old.dump"
    assert subprocess.Popen([sys.executable, "-c", _KILLED, str(old)]).wait() == -9
    (tmp_path / ".elsewhere.partial").touch()
    with new_file(tmp_path / "present.dump") as draft:
        assert [*remove_abandoned(tmp_path)] == [tmp_path / ".old.dump.partial"]
        draft.write_text("whole")
    assert {path.name for path in tmp_path.iterdir()} == {".elsewhere.partial", "present.dump"}
    assert (tmp_path / "present.dump").read_text() == "whole"


def test_two_at_once_do_not_replace_each_other(tmp_path: Path) -> None:
    file = tmp_path / "b.dump"
    with new_file(file) as draft:
        draft.write_text("first")
        with pytest.raises(FileExistsError, match="being written"), new_file(file):
            pass
        assert draft.read_text() == "first"
    with pytest.raises(FileExistsError, match="exists already"), new_file(file):
        pass
    assert file.read_text() == "first"


def test_other_processes_may_write_the_draft_where_locks_are_mandatory(tmp_path: Path) -> None:
    """As on shares of Windows: a dump is another process's."""
    with new_file(tmp_path / "b.dump") as draft, draft.open("rb") as other:
        fcntl.flock(other, fcntl.LOCK_EX | fcntl.LOCK_NB)


def test_a_file_system_without_locks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def lacking(descriptor: int, operation: int) -> None:
        raise OSError(errno.ENOSYS, "Function not implemented")

    monkeypatch.setattr(fcntl, "flock", lacking)
    file = tmp_path / "b.dump"
    with new_file(file) as draft:
        draft.write_text("all of it")
        with pytest.raises(FileExistsError, match="being written"), new_file(file):
            pass
    assert [path.name for path in tmp_path.iterdir()] == ["b.dump"]
    assert file.read_text() == "all of it"


def test_nothing_that_came_meanwhile_is_replaced(tmp_path: Path) -> None:
    file = tmp_path / "b.dump"
    writing = new_file(file)
    writing.__enter__().write_text("mine")
    file.write_text("theirs")
    with pytest.raises(FileExistsError, match="exists already"):
        writing.__exit__(None, None, None)
    assert file.read_text() == "theirs"
    assert [path.name for path in tmp_path.iterdir()] == ["b.dump"]
