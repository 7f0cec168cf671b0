"""`convener checkpoints`: take, list, verify, export and restore checkpoints of the work in flight."""

import hashlib
import json
from contextlib import nullcontext
from dataclasses import asdict
from datetime import datetime
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.table import Table
from rich.text import Text

from app.terminal import output
from app.terminal.client import Json, Url, connect
from app.terminal.databases import as_failures, author, new_server, on_database
from app.terminal.failures import ExitCode, Failure
from app.terminal.options import Bundled, Limit, Reason, show_list
from app.terminal.output import Format, Output

app = typer.Typer(help="Take, check and restore checkpoints of what is in flight.", no_args_is_help=True)
CheckpointId = Annotated[int, typer.Argument(metavar="ID", help="as `convener checkpoints ls` shows it", min=1)]
_FORMAT = "convener_checkpoint"
_LIMITS = "20,000 tasks, as many rows of live goals, 5,000 entries or 32 MiB"


@app.command(epilog=output.examples("convener checkpoints ls", "convener checkpoints ls --limit 5 -o json"))
def ls(limit: Limit = 50, url: Url = None, fmt: Output = Format.TABLE) -> None:
    """List checkpoints, newest first: the last twenty, and one of each day."""
    show_list("/checkpoints", _checkpoint_table, url, fmt, limit=limit)


@app.command(
    epilog=output.examples(
        "convener checkpoints create --reason 'before the upgrade'", "convener checkpoints create -o json | jq .id"
    )
)
def create(reason: Reason = "", url: Url = None, fmt: Output = Format.TABLE) -> None:
    """Take a checkpoint now, besides the regular ones: every 5 minutes or 50 completed tasks."""
    with connect(url) as client:
        checkpoint, now = client.post("/checkpoints", {"reason": reason}), client.now
    output.present(checkpoint, fmt, lambda: _details(checkpoint, now))


@app.command(epilog=output.examples("convener checkpoints get 12", "convener checkpoints get 12 -o json"))
def get(checkpoint_id: CheckpointId, url: Url = None, fmt: Output = Format.TABLE) -> None:
    """Show when and why a checkpoint was taken, and how much it holds."""
    with connect(url) as client:
        checkpoint, now = client.get(f"/checkpoints/{checkpoint_id}"), client.now
    output.present(checkpoint, fmt, lambda: _details(checkpoint, now))


@app.command(epilog=output.examples("convener checkpoints verify 12", "convener checkpoints verify 12 -o json"))
def verify(checkpoint_id: CheckpointId, url: Url = None, fmt: Output = Format.TABLE) -> None:
    """Recompute the checksum of a checkpoint, and check that everything in it agrees. Ends with 1 where not."""
    with connect(url) as client:
        findings = client.post(f"/checkpoints/{checkpoint_id}/verify", {})
    verdict = Text("ok", "green") if findings["ok"] else Text("\n".join(findings["violations"]), "red")
    output.present(findings, fmt, lambda: verdict)
    if not findings["ok"]:
        raise typer.Exit(ExitCode.REFUSED)


@app.command(
    epilog=output.examples(
        "convener checkpoints export 12 kepler.checkpoint", "tail -n +2 kepler.checkpoint | jq '.tasks | length'"
    )
)
def export(
    checkpoint_id: CheckpointId,
    file: Annotated[Path, typer.Argument(metavar="FILE", help="must not exist yet")],
    url: Url = None,
    fmt: Output = Format.TABLE,
) -> None:
    """Write a checkpoint into a file: a line that says what it is, with its SHA-256, and then its content as JSON."""
    with connect(url) as client:
        head = client.get(f"/checkpoints/{checkpoint_id}")
        content = client.download(f"/checkpoints/{checkpoint_id}/content")
    if hashlib.sha256(content).hexdigest() != head["sha256"]:
        raise Failure("the content of the checkpoint is damaged: its SHA-256 differs", ExitCode.REFUSED)
    _write_file(file, json.dumps({_FORMAT: 1, **head}).encode() + b"\n" + content)
    facts = {"file": str(file), "sha256": head["sha256"], "counts": head["counts"]}
    output.present(facts, fmt, lambda: Text(output.plain(f"wrote {head['counts']['tasks']:,} tasks into {file}")))


@app.command(
    epilog=output.examples(
        "CONVENER_DATABASE_URL=postgresql://... convener checkpoints restore kepler.checkpoint",
        "CONVENER_STATE_DIRECTORY=~/restored convener checkpoints restore kepler.checkpoint --bundled",
    )
)
def restore(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="as `convener checkpoints export` writes it")],
    is_bundled: Bundled = False,
    fmt: Output = Format.TABLE,
) -> None:
    """Put a checkpoint into the empty database that CONVENER_DATABASE_URL names; works without the service.

    Leased tasks come back as pending with their progress, checkpoint and failures. Keys, workers and finished tasks
    are no part of a checkpoint: `convener db backup` keeps everything.
    """
    from app.memory.service import checkpoints

    head, content = _read_file(file)
    with as_failures(), new_server() if is_bundled else nullcontext() as target:
        result = on_database(
            lambda database: checkpoints.restore(
                database, content, bytes.fromhex(head["sha256"]), author("convener checkpoints restore")
            ),
            target,
        )
    if fmt is Format.JSON:
        output.write_json(asdict(result))
        return
    output.show(
        Text(
            f"restored {result.tasks:,} tasks, {result.released:,} of them leased when it was taken, and "
            f"{result.context:,} entries of the Context Memory"
        )
    )
    if result.is_cut:
        output.note(f"the checkpoint was cut: there had been more than {_LIMITS}; a backup holds everything", "yellow")
    if not is_bundled:
        output.note("now make a key: convener key create admin --label me --database")


def _write_file(file: Path, text: bytes) -> None:
    """Write a new file as a whole or not at all, readable by its owner only. Raises Failure."""
    from app.memory.service.archives import new_file

    try:
        with new_file(file) as draft:
            draft.write_bytes(text)
    except FileExistsError as error:
        raise Failure(str(error), ExitCode.REFUSED, hint="name another file") from None
    except OSError as error:
        raise Failure(f"cannot write {file}: {error.strerror}", ExitCode.REFUSED) from None


def _read_file(file: Path) -> tuple[Json, bytes]:
    """The head of an exported checkpoint, and its content. Raises Failure."""
    try:
        line, _, content = file.read_bytes().partition(b"\n")
    except OSError as error:
        hint = "`convener checkpoints ls` lists those of the service, and `convener checkpoints export` writes one"
        raise Failure(f"cannot read {file}: {error.strerror}", ExitCode.USAGE, hint=hint) from None
    try:
        head: Any = json.loads(line)
        bytes.fromhex(head["sha256"])
        is_readable = head[_FORMAT] == 1
    except (ValueError, KeyError, TypeError, RecursionError):
        is_readable = False
    if not is_readable:
        hint = "`convener checkpoints export` writes such files"
        raise Failure(f"{file} is not a checkpoint that this version can read", ExitCode.USAGE, hint=hint)
    return head, content


def _details(checkpoint: Json, now: datetime) -> Table:
    counts = checkpoint["counts"]
    holds = f"{counts['tasks']:,} tasks, {counts['leased']:,} leased; {counts['context']:,} entries"
    facts = [
        ("Checkpoint", str(checkpoint["id"])),
        ("Taken", output.age(checkpoint["taken_at"], now)),
        ("Reason", checkpoint["reason"]),
        ("By", checkpoint["taken_by"]),
        ("Holds", holds + (f"; cut, there was more than {_LIMITS}" if checkpoint["is_cut"] else "")),
        ("Events", f"up to {checkpoint['event_cursor']}"),
        ("Schema", checkpoint["revision"]),
        ("Size", f"{checkpoint['size_bytes']:,} bytes, stored in {checkpoint['stored_bytes']:,}"),
        ("SHA-256", checkpoint["sha256"]),
    ]
    return output.details(facts)


def _checkpoint_table(items: list[Json], now: datetime) -> Table:
    table = output.table(
        "ID", "TAKEN", "TASKS", "LEASED", "CUT", "REASON", numbers=["TASKS", "LEASED"], flexible="REASON"
    )
    for item in items:
        tasks, leased = f"{item['counts']['tasks']:,}", f"{item['counts']['leased']:,}"
        cut = "yes" if item["is_cut"] else None
        cells = (item["id"], output.age(item["taken_at"], now), tasks, leased, cut, item["reason"])
        table.add_row(*map(output.cell, cells))
    return table
