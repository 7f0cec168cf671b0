"""`convener tasks logs`: what the attempts of a task wrote."""

import time
from collections.abc import Iterator
from typing import Annotated

import typer

from app.kernel.states import FINISHED
from app.kernel.text import printable
from app.queue.rules.logs import Stream
from app.terminal import output
from app.terminal.client import Client, Json, Unreachable, Url, connect
from app.terminal.failures import ExitCode, Failure
from app.terminal.ids import TaskIdArgument, whole_id
from app.terminal.output import Format, Output

EPILOG = output.examples(
    "convener tasks logs 0190a5b2",
    "convener tasks logs 0190a5b2 --follow",
    "convener tasks logs 0190a5b2 --attempt 1 --stream stderr",
    "convener tasks logs 0190a5b2 -o json | jq -r .text",
)
# Less than the 30 s that the service lets a request wait.
_WAIT_SECONDS = 25.0
_RETRY_SECONDS = 1.0


def logs(
    task_id: TaskIdArgument,
    follow: Annotated[bool, typer.Option("--follow", "-f", help="go on until the task has finished")] = False,
    attempt: Annotated[int | None, typer.Option(min=1, help="only of this attempt")] = None,
    stream: Annotated[Stream | None, typer.Option(help="only this one")] = None,
    url: Url = None,
    fmt: Output = Format.TABLE,
) -> None:
    """Show what a task's handler wrote to stdout and stderr, what it logged too; of much the beginning and the end.

    Characters that could steer the terminal are shown as escapes. With -o json, one object a line.
    """
    query = {"attempt": attempt, "stream": stream and stream.value}
    with connect(url) as client:
        task_id = whole_id(client, "tasks", task_id)
        attempts: dict[str, int] = {}
        is_open_line = False
        for piece in _pieces(client, task_id, query, follow=follow):
            remark = _remark(piece, attempts)
            if fmt is Format.JSON:
                output.write_json(piece, one_line=True)
                continue
            if remark:
                if is_open_line:
                    typer.echo()
                output.note(remark)
            typer.echo(_plain(piece["text"]), nl=False)
            is_open_line = not piece["text"].endswith("\n")
        if is_open_line:
            typer.echo()
        if not attempts:
            _refuse_missing_attempt(client, task_id, attempt)
            if fmt is not Format.JSON:
                output.note("it wrote nothing that is kept")


def _pieces(client: Client, task_id: str, query: Json, *, follow: bool) -> Iterator[Json]:
    """All pieces there are, or to come; an outage is reported once and waited out."""
    position, is_away = None, False
    while True:
        try:
            page = client.get(
                f"/tasks/{task_id}/logs", after=position, wait_seconds=_WAIT_SECONDS if follow else 0, **query
            )
        except Failure as failure:
            is_outage = isinstance(failure, Unreachable) or getattr(failure, "status", None) == 503
            if not follow or not is_outage:
                raise
            if not is_away:
                output.note("waiting for the service")
            is_away = True
            time.sleep(_RETRY_SECONDS)
            continue
        is_away, position = False, page["next"]
        yield from page["items"]
        if not page["items"] and (not follow or page["state"] in FINISHED):
            return


def _refuse_missing_attempt(client: Client, task_id: str, attempt: int | None) -> None:
    """Raise Failure where the task has not come to this attempt."""
    if attempt is not None and attempt > (latest := client.get(f"/tasks/{task_id}")["attempt"]):
        raise Failure(f"there is no attempt {attempt} of {task_id}; the latest is {latest}", ExitCode.NOT_FOUND)


def _remark(piece: Json, attempts: dict[str, int]) -> str:
    """A line about a piece that does not just continue the one before."""
    remarks = []
    if attempts.setdefault("token", piece["token"]) != piece["token"]:
        remarks.append(f"attempt {piece['attempt']}")
    attempts["token"] = piece["token"]
    if piece["skipped"]:
        remarks.append(f"{piece['skipped']:,} bytes of {piece['stream']} were not kept")
    return ", ".join(remarks)


def _plain(text: str) -> str:
    return "".join(c if c in "\n\t" else printable(c) for c in text)
