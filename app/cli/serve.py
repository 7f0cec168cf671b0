"""`convener api`, `loops` and `worker`: this process becomes the program."""

import os
import sys
from typing import NoReturn

import typer

from app.terminal import output
from app.terminal.databases import database_url

API_EPILOG = output.examples(
    "CONVENER_DATABASE_URL=postgresql://user@host/convener convener api", "CONVENER_PORT=9000 convener api"
)
LOOPS_EPILOG = output.examples(
    "CONVENER_DATABASE_URL=postgresql://user@host/convener convener loops",
    "CONVENER_POOL_SIZE=0 convener loops   (workers are started elsewhere)",
)
# Everything behind `worker` is the worker's own, --help included.
PASS_THROUGH = {
    "allow_extra_args": True,
    "ignore_unknown_options": True,
    "allow_interspersed_args": False,
    "help_option_names": [],
}


def api() -> None:
    """Serve the API, until SIGTERM or Ctrl-C. Any number may run on one database."""
    database_url()
    _exec_python("-P", "-m", "app.main")


def loops() -> None:
    """Run the background duties, and the pool of this host, until SIGTERM or Ctrl-C."""
    database_url()
    _exec_python("-P", "-m", "app.background")


def worker(context: typer.Context) -> None:
    """Run one worker; `convener worker --help` tells its options."""
    _exec_python("-m", "worker_agent", *context.args)


def _exec_python(*arguments: str) -> NoReturn:
    """`-P` keeps a directory named `app` wherever the user happens to be from being taken for ours.

    A worker does look there: that is where people keep their handlers.
    """
    sys.stdout.flush()
    sys.stderr.flush()
    os.execv(sys.executable, [sys.executable, *arguments])  # noqa: S606 - the very program, with no shell between
