"""Rules for handlers that tests start, with directories into which they may write."""

import sys
from functools import cache
from pathlib import Path

import pytest

from worker_agent.confinement import Confinement, Method, handler_user
from worker_agent.file_view import view_files
from worker_agent.probing import probe


@cache
def rules(*writable: Path, **more: object) -> Confinement:
    """The strictest rules that hold on this system; everybody may write into the directories."""
    for directory in writable:
        directory.chmod(0o777)
    user = handler_user(None)
    view = view_files(writable=writable, uid=None if user is None else user[0])
    method = Method.NAMESPACES if sys.platform == "linux" else Method.NONE
    strictest = Confinement(method=method, view=view, user=user, **more)  # type: ignore[arg-type]
    return probe(strictest).confinement


_REFUSING = """
import errno, os, sys
sys.path.insert(0, {root!r})
from worker_agent import launch, resource_limits
def refuse(_):
    raise OSError(errno.{error}, os.strerror(errno.{error}))
resource_limits.set_limits = refuse
launch.main()
"""


def refuse_to_confine(error: str, directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let each process of a task fail by this error of the system while it confines itself."""
    script = directory / "launch.py"
    script.write_text(_REFUSING.format(root=str(Path(__file__).parents[2]), error=error))
    monkeypatch.setattr("worker_agent.confinement._LAUNCH", str(script))


def need_code_for_others(confinement: Confinement) -> None:
    """Skip the test where code lies in a directory that handlers cannot enter as the user of their own."""
    for path in map(Path, confinement.view.code if confinement.user else ()):
        closed = next((each for each in (path, *path.parents) if not each.stat().st_mode & 0o001), None)
        if closed is not None:
            pytest.skip(f"without namespaces handlers of root cannot enter {closed}, where code is imported from")


def open_to_others(directory: Path) -> None:
    """Let other users pass through a directory of pytest and those of pytest above it, however many there are."""
    for parent in (directory, *directory.parents):
        if not parent.name.startswith(("pytest-", "popen-", "test_")):
            return
        parent.chmod(0o755)
