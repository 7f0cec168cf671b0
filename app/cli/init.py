"""`convener init`: a folder with an agent, a supervisor and their test, to begin with."""

import shlex
from importlib.resources import files
from pathlib import Path
from typing import Annotated

import typer
from rich.text import Text

from app.terminal import output
from app.terminal.failures import ExitCode, Failure
from app.terminal.output import Format, Output

EPILOG = output.examples("convener init my-lab", "convener init . -o json | jq -r '.files[]'")
_FILES = ("my_agents.py", "supervisor.py", "test_my_agents.py")


def init(
    directory: Annotated[Path, typer.Argument(metavar="DIRECTORY", help="made where it is not there")],
    fmt: Output = Format.TABLE,
) -> None:
    """Make a folder with an agent, a supervisor and a test that run, to be changed into yours. Replaces no file."""
    present = [name for name in _FILES if (directory / name).exists()]
    if present:
        hint = "choose another directory, or move them away"
        raise Failure(f"{directory} has {', '.join(present)} already", ExitCode.REFUSED, hint=hint)
    directory.mkdir(parents=True, exist_ok=True)
    source = files("examples.starter")
    for name in _FILES:
        with (directory / name).open("x") as file:
            file.write((source / name).read_text())
    steps = _steps(directory)
    answer = {"directory": str(directory.resolve()), "files": list(_FILES), "next": [command for command, _ in steps]}
    output.present(answer, fmt, lambda: Text("\n".join(_lines(directory, steps))))


def _steps(directory: Path) -> list[tuple[str, str]]:
    change = [] if directory.resolve() == Path.cwd() else [(f"cd {shlex.quote(str(directory))}", "")]
    return [
        *change,
        ("convener up --handlers my_agents", "the service, with your agent; leave it running"),
        ("python supervisor.py", "in another terminal: pursues a goal until the service stops it"),
        ("python -m unittest", "the test, of both"),
    ]


def _lines(directory: Path, steps: list[tuple[str, str]]) -> list[str]:
    width = max(len(command) for command, _ in steps)
    made = f"made {directory / '_'}".removesuffix("_") + f": {', '.join(_FILES)}"
    lines = [f"{command:<{width}}   {'# ' + meaning if meaning else ''}".rstrip() for command, meaning in steps]
    return [output.plain(made), "", *map(output.plain, lines)]
