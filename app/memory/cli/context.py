"""`convener context`: read and write the Context Memory, versioned entries that outlive tasks."""

import json
import re
from datetime import datetime
from functools import partial
from typing import Annotated
from urllib.parse import quote
from uuid import uuid4

import typer
from rich.table import Table
from rich.text import Text

from app.queue.cli.submit import read_value
from app.terminal import output
from app.terminal.client import Client, Json, Refusal, Url, connect
from app.terminal.failures import ExitCode
from app.terminal.options import After, Limit, Whole, show_list
from app.terminal.output import Format, Output

app = typer.Typer(help="Read and write the Context Memory: versioned entries of a namespace.", no_args_is_help=True)


def _check_name(text: str) -> str:
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._:@~+-]{0,199}", text):
        raise typer.BadParameter("letters, digits and . _ : @ ~ + - only, at most 200, the first a letter or a digit")
    return text


Namespace = Annotated[
    str, typer.Argument(metavar="NAMESPACE", callback=_check_name, help="for example the id of a research goal")
]
Key = Annotated[str, typer.Argument(metavar="KEY", callback=_check_name, help="the name of an entry")]
IfVersion = Annotated[
    int | None,
    typer.Option("--if-version", help="only if this is the last version; by default the one of this moment", min=1),
]


@app.command(
    epilog=output.examples(
        "convener context get kepler best | jq .formula",
        "convener context get kepler best --version 3 -o json",
    )
)
def get(
    namespace: Namespace,
    key: Key,
    version: Annotated[int | None, typer.Option(help="a former version", min=1)] = None,
    url: Url = None,
    fmt: Output = Format.TABLE,
) -> None:
    """Print the value of an entry, as JSON; with -o json also its version, and who wrote it when."""
    with connect(url) as client:
        entry = client.get(_path(namespace, key), version=version)
    output.write_json(entry if fmt is Format.JSON else entry["value"])


@app.command(
    epilog=output.examples(
        'convener context put kepler best \'{"formula": "T^2 = a^3"}\'',
        "convener context put kepler best @best.json --if-version 3",
        "convener context put kepler best - --new < best.json",
    )
)
def put(
    namespace: Namespace,
    key: Key,
    value: Annotated[str, typer.Argument(metavar="JSON", help="a JSON value, @FILE, or - for stdin")],
    if_version: IfVersion = None,
    new: Annotated[bool, typer.Option("--new", help="only if there is no such entry")] = False,
    url: Url = None,
    fmt: Output = Format.TABLE,
) -> None:
    """Write an entry. It is refused when somebody else writes at the same time, rather than to undo their change."""
    if new and if_version is not None:
        raise typer.BadParameter("--new and --if-version exclude each other")
    body = json.dumps(read_value(value, "the value")).encode()
    with connect(url) as client:
        version = None if new else if_version or _current_version(client, _path(namespace, key))
        condition = {"If-None-Match": "*"} if version is None else {"If-Match": f'"{version}"'}
        # The request key makes a repetition after a lost answer safe, and tells it from an equal write by others.
        version_out = client.put(_path(namespace, key), body, condition | {"Idempotency-Key": str(uuid4())})
    _print_write(version_out, "is at", fmt)


@app.command(
    epilog=output.examples("convener context ls kepler", "convener context ls kepler --values -o json | jq '.items[]'")
)
def ls(
    namespace: Namespace,
    values: Annotated[bool, typer.Option("--values", help="with their values")] = False,
    limit: Limit = 100,
    everything: Whole = False,
    after_key: After = None,
    url: Url = None,
    fmt: Output = Format.TABLE,
) -> None:
    """List the entries of a namespace, by key."""
    path, table = f"/context/{quote(namespace, safe='')}", partial(_entry_table, values=values)
    query = {"after": after_key, "values": "true" if values else None}
    show_list(path, table, url, fmt, limit=limit, everything=everything, **query)


@app.command(
    epilog=output.examples(
        "convener context history kepler best", "convener context history kepler best --limit 5 -o json"
    )
)
def history(namespace: Namespace, key: Key, limit: Limit = 20, url: Url = None, fmt: Output = Format.TABLE) -> None:
    """Show who wrote what and when, newest first. The last hundred versions are kept, and younger ones."""
    show_list(f"{_path(namespace, key)}/history", _history_table, url, fmt, limit=limit)


@app.command(
    epilog=output.examples("convener context rm kepler best", "convener context rm kepler best --if-version 3")
)
def rm(
    namespace: Namespace, key: Key, if_version: IfVersion = None, url: Url = None, fmt: Output = Format.TABLE
) -> None:
    """Delete an entry. Its history stays, and version numbers go on."""
    with connect(url) as client:
        path = _path(namespace, key)
        version = if_version or client.get(path)["version"]
        version_out = client.remove(path, {"If-Match": f'"{version}"', "Idempotency-Key": str(uuid4())})
    _print_write(version_out, "was deleted by", fmt)


def _path(namespace: str, key: str) -> str:
    return f"/context/{quote(namespace, safe='')}/{quote(key, safe='')}"


def _current_version(client: Client, path: str) -> int | None:
    """The current version of an entry; None where there is none."""
    try:
        return int(client.get(path)["version"])
    except Refusal as refusal:
        if refusal.code is ExitCode.NOT_FOUND:
            return None
        raise


def _print_write(version: Json, state: str, fmt: Format) -> None:
    summary = f"{version['namespace']}/{version['key']} {state} version {version['version']}"
    output.present(version, fmt, lambda: Text(output.plain(summary)))


def _history_table(items: list[Json], now: datetime) -> Table:
    table = output.table("VERSION", "WRITTEN", "BY", "VALUE", numbers=["VERSION"], flexible="VALUE")
    for item in items:
        value = Text("deleted", style="dim") if item["deleted"] else output.cell(json.dumps(item["value"]))
        cells = map(output.cell, (item["version"], output.age(item["written_at"], now), item["written_by"]))
        table.add_row(*cells, value)
    return table


def _entry_table(items: list[Json], now: datetime, *, values: bool) -> Table:
    value_column = ("VALUE",) if values else ()
    table = output.table(
        "KEY", "VERSION", "WRITTEN", "BY", *value_column, numbers=["VERSION"], flexible="VALUE" if values else ""
    )
    for item in items:
        value_cell = [json.dumps(item["value"])] if values else []
        cells = (item["key"], item["version"], output.age(item["written_at"], now), item["written_by"], *value_cell)
        table.add_row(*map(output.cell, cells))
    return table
