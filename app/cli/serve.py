"""`convener api`, `loops` and `worker`: each replaces this process by the program."""

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
# Arguments of `worker` are passed on unread, --help included.
PASS_THROUGH = {
    "allow_extra_args": True,
    "ignore_unknown_options": True,
    "allow_interspersed_args": False,
    "help_option_names": [],
}


def api() -> None:
    """Serve the API, until SIGTERM or Ctrl-C. Any number may run on one database."""
    database_url()  # fails with a hint, where the program would only name the variable
    _exec_python("-P", "-m", "app.main")


def loops() -> None:
    """Run the background duties, and the pool of this host, until SIGTERM or Ctrl-C."""
    database_url()
    _exec_python("-P", "-m", "app.background")


def worker(context: typer.Context) -> None:
    """Run a worker, or one for each slot of this host; `convener worker --help` tells the options."""
    _exec_python("-m", "worker_agent", *context.args)


def _exec_python(*arguments: str) -> NoReturn:
    """Replace this process by Python with these arguments."""
    # With `-P` a directory named `app` where the user stands is not imported as ours. A worker runs without it, because
    # people keep their handlers there. Flushed first, because exec drops what is still buffered; a program that was
    # started without an output has none.
    for stream in (sys.stdout, sys.stderr):
        if stream is not None:
            stream.flush()
    os.execv(sys.executable, [sys.executable, *arguments])  # noqa: S606 - the very program, with no shell between
