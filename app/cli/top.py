"""`convener top`: the page Now in a terminal, kept up to date, with its actions."""

import sys
from importlib.util import find_spec

from app.terminal import output
from app.terminal.client import Url, connect
from app.terminal.connection import find_access
from app.terminal.failures import ExitCode, Failure
from app.terminal.options import Every

EPILOG = output.examples("convener top", "convener top --every 1", "convener --profile lab top")


def top(url: Url = None, every: Every = 2.0) -> None:
    """Show live what goes on, what needs attention, and act on it: arrows and Enter, each action after a question.

    Needs the package textual, which the extra `top` of convener brings.
    """
    if find_spec("textual") is None:
        hint = "pip install 'convener[top]', or `convener status --watch`"
        raise Failure("the package textual is not installed", ExitCode.REFUSED, hint=hint)
    if not (sys.stdin.isatty() and sys.stdout.isatty()):
        hint = "`convener status --watch` goes on in a pipe too, with -o json for programs"
        raise Failure("this is no terminal", ExitCode.USAGE, hint=hint)
    # In words while there still is a place for them, and the scopes tell which actions there are.
    with connect(url) as client:
        key = client.get("/whoami")
    from app.cli.top_api import RemoteViewer
    from app.cli.top_app import Top

    Top(RemoteViewer(find_access(url), key), every).run()
