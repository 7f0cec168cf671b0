"""`convener audit`: reads the audit log and checks that it is as it was written."""

import re
from datetime import datetime
from typing import Annotated

import typer
from rich.table import Table
from rich.text import Text

from app.kernel.changes import changes
from app.terminal import output
from app.terminal.client import Json, Url, connect
from app.terminal.failures import ExitCode
from app.terminal.options import Limit, Whole, show_list
from app.terminal.output import Format, Output

# It reads the whole log, of which a million entries take a minute or so.
_LONGEST_SECONDS = 3600.0
app = typer.Typer(help="Read and check the audit log.", no_args_is_help=True)


def _end(value: str | None) -> str | None:
    # At most 18 digits always fit the service's bigint.
    if value is not None and not re.fullmatch(r"[1-9]\d{0,17}:[0-9a-f]{64}", value):
        raise typer.BadParameter(f"{value} is not SEQ:DIGEST, as `convener audit verify` shows the end of the log")
    return value


@app.command(
    epilog=output.examples(
        "convener audit ls",
        "convener audit ls --action config.patch --all -o json | jq '.items[] | {at, by, reason}'",
    )
)
def ls(
    action: Annotated[str | None, typer.Option(help="of this kind only, like config.patch")] = None,
    limit: Limit = 50,
    everything: Whole = False,
    url: Url = None,
    fmt: Output = Format.TABLE,
) -> None:
    """List who did what, newest first."""
    show_list("/audit", _listing, url, fmt, limit=limit, everything=everything, action=action)


@app.command(
    epilog=output.examples(
        "convener audit verify",
        "convener audit verify -o json | jq -r '\"\\(.end.seq):\\(.end.digest)\"' > end-of-the-log",
        "convener audit verify --end $(cat end-of-the-log)",
    )
)
def verify(
    end: Annotated[
        str | None,
        typer.Option(metavar="SEQ:DIGEST", callback=_end, help="an end that was noted earlier; it must still be there"),
    ] = None,
    url: Url = None,
    fmt: Output = Format.TABLE,
) -> None:
    """Compute every digest of the log anew. Ends with 1 where an entry was changed or is missing.

    Only who has noted an end of the log elsewhere can tell that its last entries were cut off: see --end.
    """
    seq, _, digest = (end or "").partition(":")
    with connect(url) as client:
        noted_end = {"known": {"seq": int(seq), "digest": digest}} if end else {}
        verdict = client.post("/audit/verify", noted_end, wait_seconds=_LONGEST_SECONDS)
    if fmt is Format.JSON:
        output.write_json(verdict)
    elif verdict["ok"]:
        output.show(
            Text(f"ok: {verdict['entries']:,} entries, ending with {verdict['end']['seq']}:{verdict['end']['digest']}")
        )
    else:
        output.show(Text(output.plain(verdict["violation"]), "red"))
    if not verdict["ok"]:
        raise typer.Exit(ExitCode.REFUSED)


def _listing(items: list[Json], now: datetime) -> Table:
    table = output.table("SEQ", "AT", "BY", "ACTION", "CHANGES", "REASON", numbers=["SEQ"], flexible="REASON")
    for item in items:
        cells = (
            output.age(item["at"], now) if item["at"] else None,
            # The id first, as anybody's key may have the label.
            f"{item['by']} {item['label'] or ''}",
            item["action"],
            _changes(item),
            item["reason"],
        )
        table.add_row(output.cell(item["seq"]), *map(output.cell, cells))
    return table


def _changes(item: Json) -> str | None:
    """Number of values that differ, not counting the version; or what cannot be read."""
    if item.get("unreadable"):
        return f"unreadable: {item['unreadable']}"
    if not isinstance(item["before"], dict) or not isinstance(item["after"], dict):
        return None
    count = sum(change.path != "version" for change in changes(item["before"], item["after"]))
    return str(count) if count else None
