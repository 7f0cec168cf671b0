"""Waiting for tasks by following events: no polling of each task, and nothing missed during an outage."""

import time
from collections.abc import Mapping

from rich.console import RenderableType
from rich.text import Text

from app.kernel.events import TaskEvent
from app.kernel.states import FINISHED
from app.kernel.text import plural
from app.terminal import output
from app.terminal.client import PAGE, Client, Json, Unreachable
from app.terminal.failures import Failure

_FINAL_EVENTS = {TaskEvent.COMPLETED: "completed", TaskEvent.FAILED: "failed", TaskEvent.CANCELLED: "cancelled"}
# Less than the 30 s that the service lets a request wait.
_POLL_SECONDS = 25.0
_MAX_OUTAGE_SECONDS = 30.0


def current(client: Client) -> str:
    """The current cursor, to be taken before the tasks are submitted, so that no end of theirs is missed."""
    cursor: str = client.get("/events", after="now", limit=1)["next"]
    return cursor


def until_finished(client: Client, cursor: str, states: Mapping[str, str], *, goal: str | None) -> dict[str, str]:
    """Follow events from `cursor` until all of these tasks have ended; return their states.

    `states` are their current states. With `goal` only its events are read, so all tasks must belong to it.
    An outage of up to 30 s is waited out; a longer one raises Failure.
    """
    final_states = dict(states)
    open_ids = {task_id for task_id, state in final_states.items() if state not in FINISHED}
    try:
        with output.errors().status(_remaining(len(open_ids))) as status:
            while open_ids:
                page = _read_patiently(client, cursor, goal)
                final_events = [event for event in page["items"] if event["kind"] in _FINAL_EVENTS]
                ended_tasks = {event["task_id"]: _FINAL_EVENTS[event["kind"]] for event in final_events}
                final_states |= {task_id: ended_tasks[task_id] for task_id in open_ids & ended_tasks.keys()}
                open_ids -= ended_tasks.keys()
                cursor = page["next"]
                status.update(_remaining(len(open_ids)))
    except KeyboardInterrupt:
        # Only the waiting ends; people should not believe that their tasks were cancelled.
        output.note(f"no longer {_remaining(len(open_ids))}; what was submitted goes on")
        raise
    return final_states


def result(task: Json) -> RenderableType:
    """The result of a task, or a sentence on its state when there is none."""
    text = output.json_text(task["result"])
    return text if text is not None else Text(f"{task['id']} is {task['state']}, without a result")


def _read_patiently(client: Client, cursor: str, goal: str | None) -> Json:
    began_at = time.monotonic()
    while True:
        try:
            return client.get("/events", after=cursor, goal_id=goal, limit=PAGE, wait_seconds=_POLL_SECONDS)
        except Failure as failure:
            is_away = isinstance(failure, Unreachable) or getattr(failure, "status", None) == 503
            if not is_away or time.monotonic() - began_at > _MAX_OUTAGE_SECONDS:
                raise
            time.sleep(1.0)


def _remaining(count: int) -> str:
    return f"waiting for {plural(count, 'task')}"
