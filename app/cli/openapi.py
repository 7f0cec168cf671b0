"""`convener openapi`: the contract of the API as a file."""

import json
from pathlib import Path
from typing import Annotated

import typer
from rich.text import Text

from app.terminal import output
from app.terminal.failures import ExitCode, Failure, read_input

EPILOG = output.examples(
    "convener openapi --write openapi/openapi.json", "convener openapi --check openapi/openapi.json"
)


def openapi(
    write: Annotated[Path | None, typer.Option(metavar="PATH", help="write it to this file")] = None,
    check: Annotated[Path | None, typer.Option(metavar="PATH", help="fail when this file is stale")] = None,
) -> None:
    """Print the OpenAPI schema; needs no database."""
    text = schema_text()
    if check is not None and read_input(str(check), "`make openapi` exports it") != text:
        hint = "export it again: `make openapi`"
        raise Failure(f"{check} is not what this version serves", ExitCode.REFUSED, hint=hint)
    if write is not None:
        write.parent.mkdir(parents=True, exist_ok=True)
        write.write_text(text, encoding="utf-8")
    for file, word in ((check, "is up to date"), (write, "is written")):
        if file is not None:
            output.show(Text(f"{file} {word}"))
    if check is None and write is None:
        typer.echo(text, nl=False)


def schema_text() -> str:
    """The schema in the order in which it is declared, so that a change shows as a small difference."""
    from app import application

    return json.dumps(application.build().openapi(), indent=2, ensure_ascii=False) + "\n"
