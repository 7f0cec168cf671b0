"""`convener tasks submit`: one task from options, or any number from a file, and perhaps a wait for their end."""

import json
from collections import Counter
from collections.abc import Iterator
from enum import StrEnum
from typing import Annotated, Any
from uuid import UUID

import typer
from rich.progress import Progress
from rich.text import Text

from app.db.uuids import time_ordered_uuid
from app.kernel.states import FINISHED
from app.kernel.text import plural
from app.queue.cli import wait as wait_cli
from app.queue.cli.views import error_line
from app.queue.cli.waiting import reason_for
from app.terminal import output
from app.terminal.client import Client, Json, Url, connect
from app.terminal.failures import ExitCode, Failure, read_input
from app.terminal.ids import id_or_prefix, whole_ids
from app.terminal.options import AgentOption, coming_moment_option, duration_option, parse_duration, read_labels
from app.terminal.output import Format, Output

EPILOG = output.examples(
    'convener tasks submit --agent generation --payload \'{"topic": "orbits"}\' --wait',
    "convener tasks submit --agent ranking --goal kepler --priority high --payload @match.json",
    "convener tasks submit --file tasks.jsonl --goal kepler",
    "convener tasks submit --agent ranking --wait --timeout 60 -o json",
    "convener tasks submit --agent proximity --gpus 1 --memory-gb 16 --resource matlab=1",
    "convener tasks submit --agent reflection --depends-on 0190a5b2 --label run=7 --label team=blue",
    "convener tasks submit --agent evolution --run-at 2h --attempt-timeout 30min --max-attempts 5",
)

# The service takes 1,000 tasks and 32 MiB by default; an operator may have lowered the second.
_MAX_BATCH_TASKS = 1000
_MAX_BATCH_BYTES = 8 << 20


class PriorityName(StrEnum):
    """Values of `--priority`."""

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
    label: Annotated[
        list[str] | None, typer.Option(metavar="NAME=VALUE", help="to find it by: `ls --label NAME=VALUE`")
    ] = None,
    depends_on: Annotated[
        list[str] | None,
        typer.Option(metavar="ID", parser=id_or_prefix, help="a task that must complete first, or its first digits"),
    ] = None,
    run_at: Annotated[str | None, coming_moment_option("--run-at", "not before then")] = None,
    attempt_timeout: Annotated[str | None, duration_option("--attempt-timeout", "that one attempt may take")] = None,
    max_attempts: Annotated[int | None, typer.Option(help="how often it may be tried in all")] = None,
    gpus: Annotated[int | None, typer.Option(help="devices that its worker must offer", min=0)] = None,
    cores: Annotated[float | None, typer.Option(help="processor cores that its worker must offer", min=0)] = None,
    memory_gb: Annotated[float | None, typer.Option(help="GiB of memory that its worker must offer", min=0)] = None,
    resource: Annotated[
        list[str] | None, typer.Option(help="another resource that its worker must offer", metavar="NAME=COUNT")
    ] = None,
    skip: Annotated[int, typer.Option(help="leave out the first tasks of the file", min=0)] = 0,
    wait: Annotated[bool, typer.Option("--wait", help="until finished, and show the result")] = False,
    timeout: Annotated[
        float | None, typer.Option(metavar="SECONDS", help="of --wait; exit code 9 if it goes on then", min=0)
    ] = None,
    url: Url = None,
    fmt: Output = Format.TABLE,
) -> None:
    """Submit a task, and print its id; or many from a file.

    Each task of a file is an object with the fields that `POST /tasks` takes; a field that it has, such as `labels`,
    counts whole. With --wait stderr says what is waited for, with -o json as one object a line; Ctrl-C and --timeout
    leave the task where it is. A repeated command with --id, or a file with ids or keys, needs --run-at as a time: a
    span is another time by then, and the service refuses another task of the same id.
    """
    if timeout is not None and not wait:
        raise typer.BadParameter("--timeout is for --wait")
    options = {
        "agent_type": agent,
        "goal_id": goal,
        "priority": priority.value if priority else None,
        "labels": read_labels(label) if label else None,
        "run_at": run_at,
        "timeout_seconds": parse_duration(attempt_timeout) if attempt_timeout is not None else None,
        "retry": {"max_attempts": max_attempts} if max_attempts is not None else None,
    }
    defaults: Json = {name: value for name, value in options.items() if value is not None}
    amounts = {"gpus": gpus, "cores": cores, "memory_gb": memory_gb, "named": _named(resource or [])}
    if asked := {name: amount for name, amount in amounts.items() if amount}:
        defaults["resources"] = asked
    if file is not None:
        if payload is not None or task_id is not None:
            raise typer.BadParameter("--payload and --id are for a single task; put them into the file")
        new_tasks = read_tasks(file)[skip:]
    elif agent is None:
        raise typer.BadParameter("say for whom the task is: --agent generation, for example; or give --file")
    else:
        identity = {"id": str(task_id)} if task_id else {}
        new_tasks = [identity | {"payload": read_object(payload) if payload is not None else {}}]
    with connect(url) as client:
        if depends_on:
            defaults["depends_on"] = whole_ids(client, "tasks", depends_on)
        tasks = [_with_id(defaults | task) for task in new_tasks]
        if file is not None:
            _submit_many(client, tasks, wait=wait, timeout=timeout, fmt=fmt, skip=skip)
        else:
            _submit_one(client, tasks[0], wait=wait, timeout=timeout, fmt=fmt)


def _submit_one(client: Client, new_task: Json, *, wait: bool, timeout: float | None, fmt: Format) -> None:
    # Before the submit: the task could end between the two calls.
    cursor = wait_cli.current(client) if wait else ""
    task = client.post("/tasks", new_task)
    if wait:
        states = {task["id"]: task["state"]}
        wait_cli.until_finished(client, cursor, states, goal=task["goal_id"], fmt=fmt, timeout_seconds=timeout)
    if wait or fmt is Format.JSON:
        task = client.get(f"/tasks/{task['id']}")
    if fmt is Format.JSON:
        output.write_json(task)
    elif wait:
        output.show(wait_cli.result(task))
    else:
        output.show(Text(task["id"]))
    if wait and task["state"] not in FINISHED:
        raise _unfinished(client, f"the task has not finished within {timeout:g} s: it is {task['state']}", task["id"])
    if wait and task["state"] != "completed":
        hint = f"`convener tasks get {task['id']}` shows every attempt"
        raise _incomplete(f"the task was not completed: it is {task['state']}", task["error"], hint)


def _submit_many(
    client: Client, tasks: list[Json], *, wait: bool, timeout: float | None, fmt: Format, skip: int
) -> None:
    cursor = wait_cli.current(client) if wait else ""
    submitted_tasks = _send_batches(client, tasks, skip)
    if wait:
        goals = {task.get("goal_id") for task in tasks}
        states = {task["id"]: task["state"] for task in submitted_tasks}
        goal = goals.pop() if len(goals) == 1 else None
        final_states = wait_cli.until_finished(client, cursor, states, goal=goal, fmt=fmt, timeout_seconds=timeout)
        submitted_tasks = [task | {"state": final_states[task["id"]]} for task in submitted_tasks]
    counts = Counter(task["state"] for task in submitted_tasks)
    if fmt is Format.JSON:
        output.write_json({"tasks": submitted_tasks})
    else:
        new = sum(task["created"] for task in submitted_tasks)
        states_text = ", ".join(f"{count:,} {state}" for state, count in sorted(counts.items()))
        output.show(
            Text(f"submitted {plural(len(submitted_tasks), 'task')}, {new:,} of them new: {states_text or 'none'}")
        )
    unfinished = [task["id"] for task in submitted_tasks if task["state"] not in FINISHED]
    if wait and unfinished:
        message = (
            f"{plural(len(unfinished), 'task')} of {len(submitted_tasks):,} have not finished within {timeout:g} s"
        )
        raise _unfinished(client, message, unfinished[0])
    if wait and set(counts) - {"completed"}:
        incomplete = next(task for task in submitted_tasks if task["state"] != "completed")
        hint = f"`convener tasks get {incomplete['id']}` shows every attempt of the first; `-o json` lists them all"
        raise _incomplete("not every task was completed", None, hint)


def _send_batches(client: Client, tasks: list[Json], skip: int) -> list[Json]:
    """Submit everything, a batch at a time. A Failure says where to go on."""
    submitted_tasks: list[Json] = []
    with Progress(console=output.errors(), transient=True) as progress:
        bar = progress.add_task("submitting", total=len(tasks))
        for body in batches(tasks):
            try:
                submitted_tasks += client.post("/tasks/batch", body)["tasks"]
            except Failure as failure:
                # The batches before this one are committed; their ids make repeating them harmless, but slow.
                if len(submitted_tasks) or skip:
                    failure.details = [
                        *failure.details,
                        f"{skip + len(submitted_tasks)} tasks of the file were submitted",
                    ]
                    failure.hint = f"then go on with `--skip {skip + len(submitted_tasks)}`"
                raise
            progress.update(bar, completed=len(submitted_tasks))
    return submitted_tasks


def _named(words: list[str]) -> dict[str, int]:
    """Amounts by name. Raises BadParameter."""
    pairs = [word.partition("=") for word in words]
    if any(not name or not (amount or "1").isdecimal() for name, _, amount in pairs):
        raise typer.BadParameter("--resource is written NAME, or NAME=COUNT with a whole number")
    return {name: int(amount or 1) for name, _, amount in pairs}


def _with_id(task: Json) -> Json:
    """Give the task an id, unless it has a key, so that a call whose answer was lost can be repeated."""
    return task if task.get("idempotency_key") is not None else {"id": str(time_ordered_uuid())} | task


def _unfinished(client: Client, message: str, first: str) -> Failure:
    how = f"`convener tasks get {first}` shows it, `convener tasks logs {first} --follow` follows it"
    hint = f"what was submitted goes on: {how}"
    return Failure(message, ExitCode.TIMED_OUT, details=[reason_for(client, first).text], hint=hint)


def _incomplete(message: str, error: Json | None, hint: str) -> Failure:
    details = [error_line(error)] if error else []
    return Failure(message, ExitCode.TASK_FAILED, details=details, hint=hint)


def read_object(text: str) -> Json:
    """Read a JSON object from an option: the text itself, @FILE, or - for stdin. Raises BadParameter, Failure."""
    value = read_value(text, "the payload")
    if not isinstance(value, dict):
        raise typer.BadParameter("the payload must be a JSON object, like {}")
    return value


def read_value(text: str, subject: str) -> Any:
    """Read a JSON value from an argument: the text itself, @FILE, or - for stdin. Raises BadParameter, Failure."""
    source = text
    if text == "-":
        source = read_input(text)
    elif text.startswith("@"):
        source = read_input(text[1:])
    return _parse_json(source, subject)


def read_tasks(file: str) -> list[Json]:
    """Read tasks from a file: an array, {"tasks": [...]}, one object, or one object a line.

    Raises BadParameter, Failure.
    """
    text = read_input(file)
    try:
        value = json.loads(text)
    except RecursionError as error:
        raise typer.BadParameter(f"{file} cannot be read: {error}") from None
    except ValueError:
        value = [
            _parse_json(line, f"line {number} of {file}")
            # Not by all that Python takes for the end of a line: the others may stand in the texts of JSON.
            for number, line in enumerate(text.split("\n"), 1)
            if line.strip()
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
        if batch and (len(batch) == _MAX_BATCH_TASKS or size + len(text) > _MAX_BATCH_BYTES):
            yield _body(batch)
            batch, size = [], 0
        batch.append(text)
        size += len(text) + 1
    if batch:
        yield _body(batch)


def _body(batch: list[bytes]) -> bytes:
    return b'{"tasks":[' + b",".join(batch) + b"]}"


def _parse_json(text: str, subject: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        raise typer.BadParameter(f"{subject} is not JSON: {error}") from None
