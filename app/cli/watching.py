"""Looking once, or again and again until Ctrl-C."""

import time
from collections.abc import Callable, Iterator
from typing import Annotated

import typer
from rich.console import RenderableType
from rich.live import Live
from rich.text import Text

from app.cli import output
from app.cli.client import Client, Json, Unreachable, connect
from app.cli.failures import Failure
from app.cli.output import Format

Watch = Annotated[bool, typer.Option("--watch", "-w", help="go on until Ctrl-C")]
Every = Annotated[float, typer.Option(help="seconds between two looks", min=0.1, max=3600)]
Board = Callable[[Json], RenderableType]


def look(path: str, board: Board, url: str | None, fmt: Format, *, every: float | None) -> None:
    """Show what the service answers at `path`; every so many seconds when `every` is given.

    `board` makes the answer readable. With JSON, a watch writes one object a line.
    """
    with connect(url) as client:
        if every is not None:
            _watch(client, path, board, fmt, every)
        elif fmt is Format.JSON:
            output.write_json(client.get(path))
        else:
            output.show(board(client.get(path)))


def _watch(client: Client, path: str, board: Board, fmt: Format, seconds: float) -> None:
    console = output.results()
    if fmt is Format.TABLE and console.is_terminal:
        with Live(console=console, auto_refresh=False) as live:
            for seen in _looks(client, path, seconds):
                live.update(Text(seen.message, style="red") if isinstance(seen, Failure) else board(seen), refresh=True)
    for seen in _looks(client, path, seconds):
        if isinstance(seen, Failure):
            seen.show()
        elif fmt is Format.JSON:
            output.write_json(seen, one_line=True)
        else:
            console.print(board(seen))


def _looks(client: Client, path: str, seconds: float) -> Iterator[Json | Failure]:
    """Look again and again; an outage is told of, and does not end it."""
    while True:
        try:
            yield client.get(path)
        except Unreachable as failure:
            yield failure
        time.sleep(seconds)
