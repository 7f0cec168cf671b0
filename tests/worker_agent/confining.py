"""Rules for handlers that tests start, with directories into which they may write."""

import sys
from functools import cache
from pathlib import Path

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
