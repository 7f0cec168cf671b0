"""`convener tasks submit`: one task from options, or any number from a file, and perhaps a wait for their end."""

import json
import sys
from collections import Counter
from collections.abc import Iterator
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any
from uuid import UUID

import typer
from rich.progress import Progress
from rich.text import Text

from app.db.uuids import time_ordered_uuid
from app.queue.cli import wait as wait_cli
from app.terminal import output
from app.terminal.client import Client, Json, Url, connect
from app.terminal.failures import ExitCode, Failure
from app.terminal.options import AgentOption
from app.terminal.output import Format, Output

EPILOG = output.examples(
    'convener tasks submit --agent generation --payload \'{"topic": "orbits"}\' --wait',
    "convener tasks submit --agent ranking --goal kepler --priority high --payload @match.json",
    "convener tasks submit --file tasks.jsonl --goal kepler",
)


_MOST_TASKS = 1000
_MOST_BYTES = 8 << 20


class PriorityName(StrEnum):
    """What `--priority` takes."""

    LOW = "low"
    MEDIUM = "medium"
    HIGH = "high"
    CRITICAL = "critical"


def submit(
    agent: AgentOption = None,
    goal: Annotated[str | None, typer.Option(help="research goal that the task belongs to")] = None,
    priority: Annotated[PriorityName | None, typer.Option(help="medium by default")] = None,
    payload: Annotated[str | None, typer.Option(help="a JSON object, @FILE, or - for stdin", metavar="JSON")] = None,
    task_id: Annotated[UUID | None, typer.Option("--id", help="choose it to make the command safe to repeat")] = None,
    file: Annotated[
        str | None, typer.Option(help="JSON or JSON lines with many tasks, - for stdin; options fill what they lack")
    ] = None,
    skip: Annotated[int, typer.Option(help="leave out the first tasks of the file", min=0)] = 0,
    wait: Annotated[bool, typer.Option("--wait", help="until finished, and show the result")] = False,
    url: Url = None,
    fmt: Output = Format.TABLE,
) -> None:
    """Submit a task, and print its id; or many from a file.

    Each task of a file is an object with the fields that `POST /tasks` takes.
    """
    given = {"agent_type": agent, "goal_id": goal, "priority": priority.value if priority else None}
    given = {name: value for name, value in given.items() if value is not None}
    if file is not None:
        if payload is not None or task_id is not None:
            raise typer.BadParameter("--payload and --id are for a single task; put them into the file")
        tasks = [_with_id(given | task) for task in read_tasks(file)[skip:]]
        with connect(url) as client:
            _submit_many(client, tasks, wait=wait, fmt=fmt, skipped=skip)
        return
    if agent is None:
        raise typer.BadParameter("say for whom the task is: --agent generation, for example; or give --file")
    chosen = {"id": str(task_id)} if task_id else {}
    task = _with_id(given | chosen | {"payload": read_object(payload) if payload is not None else {}})
    with connect(url) as client:
        _submit_one(client, task, wait=wait, fmt=fmt)


def _submit_one(client: Client, task: Json, *, wait: bool, fmt: Format) -> None:
    cursor = wait_cli.current(client) if wait else ""
    submitted = client.post("/tasks", task)
    if wait:
        wait_cli.until_finished(client, cursor, {submitted["id"]: submitted["state"]}, goal=submitted["goal_id"])
        submitted = client.get(f"/tasks/{submitted['id']}")
    if fmt is Format.JSON:
        output.write_json(submitted)
    elif wait:
        output.show(wait_cli.result(submitted))
    else:
        output.show(Text(submitted["id"]))
    if wait and submitted["state"] != "completed":
        hint = f"`convener tasks get {submitted['id']}` shows every attempt"
        raise _unhappy(f"the task was not completed: it is {submitted['state']}", submitted["error"], hint)


def _submit_many(client: Client, tasks: list[Json], *, wait: bool, fmt: Format, skipped: int) -> None:
    cursor = wait_cli.current(client) if wait else ""
    submitted = _send(client, tasks, skipped)
    if wait:
        goals = {task.get("goal_id") for task in tasks}
        states = {task["id"]: task["state"] for task in submitted}
        ended = wait_cli.until_finished(client, cursor, states, goal=goals.pop() if len(goals) == 1 else None)
        submitted = [task | {"state": ended[task["id"]]} for task in submitted]
    counts = Counter(task["state"] for task in submitted)
    if fmt is Format.JSON:
        output.write_json({"tasks": submitted})
    else:
        new = sum(task["created"] for task in submitted)
        states_text = ", ".join(f"{count:,} {state}" for state, count in sorted(counts.items()))
        output.show(Text(f"submitted {len(submitted):,} tasks, {new:,} of them new: {states_text or 'none'}"))
    if wait and set(counts) - {"completed"}:
        unhappy = next(task for task in submitted if task["state"] != "completed")
        hint = f"`convener tasks get {unhappy['id']}` shows every attempt of the first; `-o json` lists them all"
        raise _unhappy("not every task was completed", None, hint)


def _send(client: Client, tasks: list[Json], skipped: int) -> list[Json]:
    """Submit everything, a batch at a time. A Failure says where to go on."""
    submitted: list[Json] = []
    with Progress(console=output.errors(), transient=True) as progress:
        bar = progress.add_task("submitting", total=len(tasks))
        for body in batches(tasks):
            try:
                submitted += client.post("/tasks/batch", body)["tasks"]
            except Failure as failure:
                if len(submitted) or skipped:
                    failure.details = [*failure.details, f"{skipped + len(submitted)} tasks of the file were submitted"]
                    failure.hint = f"then go on with `--skip {skipped + len(submitted)}`"
                raise
            progress.update(bar, completed=len(submitted))
    return submitted


def _with_id(task: Json) -> Json:
    """With an id of ours, a call whose answer was lost can be repeated."""
    return {"id": str(time_ordered_uuid())} | task


def _unhappy(message: str, error: Json | None, hint: str) -> Failure:
    details = [f"{error.get('code')}: {error.get('message')}"] if error else []
    return Failure(message, ExitCode.TASK_FAILED, details=details, hint=hint)


def read_object(text: str) -> Json:
    """The JSON object that an option means: the text itself, @FILE, or - for stdin. Raises BadParameter."""
    value = read_value(text, "the payload")
    if not isinstance(value, dict):
        raise typer.BadParameter("the payload must be a JSON object, like {}")
    return value


def read_value(text: str, what: str) -> Any:
    """The JSON value that an argument means: the text itself, @FILE, or - for stdin. Raises BadParameter."""
    source = text
    if text == "-":
        source = _text(text)
    elif text.startswith("@"):
        source = _text(text[1:])
    return _json(source, what)


def read_tasks(file: str) -> list[Json]:
    """The tasks in a file: an array, {"tasks": [...]}, one object, or one object a line. Raises BadParameter."""
    text = _text(file)
    try:
        value = json.loads(text)
    except ValueError:
        value = [
            _json(line, f"line {number} of {file}") for number, line in enumerate(text.splitlines(), 1) if line.strip()
        ]
    if isinstance(value, dict):
        value = value["tasks"] if isinstance(value.get("tasks"), list) else [value]
    if not isinstance(value, list) or not all(isinstance(task, dict) for task in value):
        raise typer.BadParameter(f"{file} must hold JSON objects: an array of them, or one a line")
    return value


def batches(tasks: list[Json]) -> Iterator[bytes]:
    """Bodies of `POST /tasks/batch`, each with at most 1,000 tasks and, unless one task alone is larger, 8 MiB."""
    batch: list[bytes] = []
    size = 0
    for task in tasks:
        text = json.dumps(task, separators=(",", ":")).encode()
        if batch and (len(batch) == _MOST_TASKS or size + len(text) > _MOST_BYTES):
            yield _body(batch)
            batch, size = [], 0
        batch.append(text)
        size += len(text) + 1
    if batch:
        yield _body(batch)


def _body(batch: list[bytes]) -> bytes:
    return b'{"tasks":[' + b",".join(batch) + b"]}"


def _text(file: str) -> str:
    try:
        return sys.stdin.read() if file == "-" else Path(file).read_text()
    except (OSError, UnicodeDecodeError) as error:
        raise typer.BadParameter(f"{file} cannot be read: {error}") from None


def _json(text: str, what: str) -> Any:
    try:
        return json.loads(text)
    except ValueError as error:
        raise typer.BadParameter(f"{what} is not JSON: {error}") from None
