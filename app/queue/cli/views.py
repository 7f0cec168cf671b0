"""Views of tasks on the terminal: one in full, many as a table."""

import json
from datetime import datetime

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from app.kernel.namespaces import stored_name
from app.kernel.resources import in_words, read
from app.kernel.text import printable
from app.queue.cli.waiting import reason_for
from app.terminal import output
from app.terminal.client import Client, Json
from app.terminal.deaths import death_lines
from app.terminal.output import Format


def present_task(client: Client, task: Json, fmt: Format) -> None:
    """Print a task in full, why it waits, and of workers that died while they ran it why, and where their logs are."""
    lost = [attempt["worker_id"] for attempt in reversed(task["attempts"]) if attempt["outcome"] == "lost"]
    is_waiting = fmt is Format.TABLE and task["state"] in ("blocked", "pending")
    why = reason_for(client, task["id"]).text if is_waiting else None
    output.present(task, fmt, lambda: task_details(task, client.now, why))
    for line in death_lines(client, lost) if fmt is Format.TABLE else ():
        output.note(line)


def task_details(task: Json, now: datetime, why: str | None = None) -> RenderableType:
    """One task in full, from the answer of `GET /tasks/{id}`, and why it waits."""
    progress, usage = task["progress"], task["usage"]
    facts = output.details(
        [
            ("Task", task["id"]),
            ("State", output.state(task["state"])),
            ("Agent", task["agent_type"]),
            ("Goal", stored_name(task["namespace"], task["goal_id"])),
            ("Priority", _priority(task)),
            ("Attempt", f"{_attempt_number(task)} of {task['max_attempts']}" + _rescue_note(task["rescues"])),
            ("Asks for", asked_for(task)),
            ("Depends on", "\n".join(task["depends_on"]) or None),
            ("Worker", _worker(task)),
            ("Created", output.age(task["created_at"], now)),
            ("Runs", output.age(task["run_at"], now)),
            ("Waits", why),
            ("Leased", output.age(task["leased_at"], now)),
            ("Finished", output.age(task["finished_at"], now)),
            ("Deadline", output.age(task["deadline"], now)),
            ("Progress", f"{_percent(progress)}  {progress['message'] or ''}" if progress else None),
            ("Used", _usage_text(usage) if usage else None),
            ("Labels", ", ".join(f"{name}={value}" for name, value in task["labels"].items()) or None),
            ("Payload", output.json_text(task["payload"])),
            ("Checkpoint", output.json_text(task["checkpoint"])),
            ("Trace", task.get("trace_context")),
            ("Result", output.json_text(task["result"])),
            ("Error", _error(task["error"]) if task["error"] else None),
        ]
    )
    return Group(facts, Text(""), _attempts(task["attempts"], now)) if task["attempts"] else facts


def asked_for(task: Json) -> str | None:
    """Amounts that the task asks its worker for, in words."""
    asked = task.get("resources")
    return in_words(read(asked).amounts()) if asked else None


def listing(items: list[Json], now: datetime) -> Table:
    """A table of tasks, from an answer of `GET /tasks`."""
    names = ("ID", "AGENT", "STATE", "CREATED", "PRIORITY", "ATTEMPT", "PROGRESS", "GOAL")
    optional = ["CREATED", "PROGRESS", "ATTEMPT", "PRIORITY"]
    table = output.table(*names, whole=["ID"], flexible="GOAL", optional=optional)
    for task in items:
        progress = task["progress"]
        table.add_row(
            output.cell(task["id"]),
            output.cell(task["agent_type"]),
            output.state(task["state"]),
            output.cell(output.age(task["created_at"], now)),
            output.cell(task["priority"]),
            output.cell(f"{_attempt_number(task)}/{task['max_attempts']}"),
            output.cell(_percent(progress) if progress else None),
            output.cell(stored_name(task["namespace"], task["goal_id"])),
        )
    return table


def dead_letter_table(items: list[Json], now: datetime) -> Table:
    """A table of dead letters, from an answer of `GET /dead-letters`."""
    optional = ["FAILED", "GOAL"]
    table = output.table(
        "ID", "AGENT", "FAILED", "GOAL", "ERROR", whole=["ID"], flexible=["GOAL", "ERROR"], optional=optional
    )
    for letter in items:
        error = letter["error"] or {}
        goal = stored_name(letter["namespace"], letter["goal_id"])
        values = (letter["id"], letter["agent_type"], output.age(letter["finished_at"], now), goal)
        table.add_row(*map(output.cell, (*values, error_line(error))))
    return table


def _attempts(attempts: list[Json], now: datetime) -> Table:
    table = output.table("ATTEMPT", "OUTCOME", "ENDED", "WORKER", "ERROR", flexible="ERROR")
    for attempt in attempts:
        error = attempt["error"] or {}
        worker = attempt["worker_name"] or attempt["worker_id"]
        values = (attempt["attempt"], attempt["outcome"], output.age(attempt["ended_at"], now), worker)
        table.add_row(*map(output.cell, (*values, error.get("message") or error.get("code"))))
    return table


def _worker(task: Json) -> str | None:
    return f"{task['worker_name']}  {task['worker_id']}" if task["worker_name"] else task["worker_id"]


def _attempt_number(task: Json) -> str:
    """Number of the attempt, `-` for a blocked task and for one that was cancelled before its first attempt."""
    # The token counts leases: without any there was no attempt.
    has_none = task["state"] == "blocked" or (task["finished_at"] is not None and not task["token"])
    return "-" if has_none else str(task["attempt"])


def _percent(progress: Json) -> str:
    return f"{progress['percent']:.0f} %"


def _error(error: Json) -> str:
    """Code and message, then the details; strings such as tracebacks unquoted."""
    details = [
        f"{name}: {value if isinstance(value, str) else json.dumps(value)}"
        for name, value in (error.get("detail") or {}).items()
    ]
    return "\n".join([error_line(error), *details]).rstrip()


def error_line(error: Json) -> str:
    """Code and message of an error; a code is one word, whatever its handler wrote into it."""
    return f"{printable(str(error.get('code')))}: {error.get('message')}"


def _priority(task: Json) -> str:
    is_risen = task["submitted_priority"] != task["priority"]
    return f"{task['priority']}, submitted as {task['submitted_priority']}" if is_risen else str(task["priority"])


def _rescue_note(rescues: int) -> str:
    if not rescues:
        return ""
    return f", rescued from lost workers {'once' if rescues == 1 else f'{rescues} times'}"


def _usage_text(usage: Json) -> str:
    return (
        f"{usage['wall_seconds']:.2f} s of wall time, {usage['cpu_seconds']:.2f} s of CPU, "
        f"{usage['max_memory_mb']:.0f} MB at most"
    )
