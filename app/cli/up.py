"""`convener up`: everything on this machine, until you stop it."""

from pathlib import Path
from typing import Annotated

import typer

from app.kernel.modes import Mode


def up(
    workers: Annotated[
        int | None,
        typer.Option(help="workers at the start; in development also later; 0: start none here", min=0, max=1000),
    ] = None,
    mode: Annotated[Mode | None, typer.Option(help="development keeps its size, the others scale")] = None,
    min_workers: Annotated[int | None, typer.Option(help="never fewer workers", min=1, max=100)] = None,
    max_workers: Annotated[int | None, typer.Option(help="never more workers", min=1, max=1000)] = None,
    handlers: Annotated[
        str | None, typer.Option(help="module whose HANDLERS the workers run; echo agents when absent")
    ] = None,
    handler: Annotated[
        list[str] | None,
        typer.Option(
            metavar="TYPE=TARGET", help="handler of a single agent type: module:function, or command:'program args'"
        ),
    ] = None,
    port: Annotated[int | None, typer.Option(help="port of the API; 0 takes any free one", min=0, max=65535)] = None,
    state: Annotated[
        Path | None, typer.Option(help="directory for the database, keys and logs", resolve_path=True)
    ] = None,
) -> None:
    """Run PostgreSQL, the API, the loops and a pool of workers on this machine. Ctrl-C stops them in order.

    A second start goes on where the first was. With CONVENER_DATABASE_URL your own PostgreSQL is used. Mode and bounds
    become a new version of the configuration, which `convener config` shows and changes. In development each step of a
    task is a line on stdout, and the log tells what the loops do.

    Examples:

      convener up

      convener up --workers 5 --handlers my_agents

      convener up --handler ranking=command:'./rank --fast'

      convener up --mode production --min-workers 2 --max-workers 12
    """
    # Not before it is needed: a press of TAB, and --help, wait for what is imported.
    from app.cli.pool_options import PoolOptions
    from app.cli.up_run import start

    options = {
        "pool_size": workers,
        "worker_handlers": handlers,
        "worker_handler": tuple(handler) if handler else None,
        "port": port,
        "state_directory": state,
    }
    start(options, PoolOptions(mode=mode, min_workers=min_workers, max_workers=max_workers, reason="convener up"))
