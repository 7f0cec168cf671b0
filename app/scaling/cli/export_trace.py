"""`convener tasks export-trace`: completed tasks in the form that `convener simulate` reads."""

import csv
import gzip
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, TextIO

import typer

from app.kernel.text import plural
from app.scaling.simulation.traces import Row, rows
from app.terminal import output
from app.terminal.client import Client, Url, connect
from app.terminal.failures import ExitCode, Failure
from app.terminal.options import Goal, moment_option

EPILOG = output.examples(
    "convener tasks export-trace week.csv.gz --finished-after 7d",
    "convener tasks export-trace kepler.csv --goal kepler",
    "convener simulate week.csv.gz --baseline all --svg week.svg",
)


def export_trace(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="must not exist yet; compressed when it ends in .gz")],
    goal: Goal = None,
    finished_after: Annotated[str | None, moment_option("--finished-after", "finished since then")] = None,
    finished_before: Annotated[str | None, moment_option("--finished-before", "finished before")] = None,
    url: Url = None,
) -> None:
    """Write completed tasks into a file for `convener simulate`: since when each could run, and how long it took.

    CSV with arrival, service_seconds and agent_type, newest submission first; payloads and results stay where they
    are. The tasks are read in pages and written as they come, so any number fits.
    """
    filters = {"goal_id": goal, "finished_after": finished_after, "finished_before": finished_before}
    with connect(url) as client, _new(file) as text, output.errors().status("reading tasks") as status:
        writer, count = csv.writer(text), 0
        writer.writerow(Row._fields)
        for count, row in enumerate(_completed_tasks(client, filters), 1):
            writer.writerow(row)
            if count % 1000 == 0:
                status.update(f"reading tasks: {count:,}")
        if not count:
            hint = "`convener tasks ls` lists all"
            raise Failure("no completed task agrees with the filters", ExitCode.NOT_FOUND, hint=hint)
    output.show(f"wrote {plural(count, 'task')} into {file}")


def _completed_tasks(client: Client, filters: dict[str, str | None]) -> Iterator[Row]:
    cursor: str | None = None
    while True:
        page, cursor = client.page("/tasks", cursor, state="completed", **filters)
        yield from rows(page)
        if cursor is None:
            return


@contextmanager
def _new(file: Path) -> Iterator[TextIO]:
    """A file that is not left half written."""
    try:
        # Exclusively: a file that exists is never overwritten.
        text = gzip.open(file, "xt", newline="") if file.suffix == ".gz" else file.open("x", newline="")  # noqa: SIM115
    except OSError as error:
        raise Failure(f"{file} cannot be written: {error.strerror or error}", ExitCode.USAGE) from None
    try:
        with text:
            yield text
    except BaseException:
        file.unlink(missing_ok=True)
        raise
