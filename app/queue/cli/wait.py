"""Waits for tasks by following events: no polling of each task, and nothing missed while the service is away."""

import time
from collections.abc import Mapping

from rich.console import RenderableType
from rich.text import Text

from app.kernel.states import FINISHED
from app.kernel.text import plural
from app.queue.rules.events import TaskEvent
from app.terminal import output
from app.terminal.client import PAGE, Client, Json, Unreachable
from app.terminal.failures import Failure

_ENDS = {
    TaskEvent.COMPLETED.value: "completed",
    TaskEvent.FAILED.value: "failed",
    TaskEvent.CANCELLED.value: "cancelled",
}
_POLL_SECONDS = 25.0
_PATIENCE_SECONDS = 30.0


def current(client: Client) -> str:
    """The cursor of now. Take it before the tasks are submitted, so that no end comes too early to be seen."""
    cursor: str = client.get("/events", after="now", limit=1)["next"]
    return cursor


def until_finished(client: Client, cursor: str, states: Mapping[str, str], *, goal: str | None) -> dict[str, str]:
    """Follow events from `cursor` until all of these tasks have ended; returns their states.

    `states` is what is known of them. Only events of `goal` are read when it is given, so all must belong to it.
    An outage of up to 30 s is waited out; a longer one raises Failure.
    """
    known = dict(states)
    left = {task_id for task_id, state in known.items() if state not in FINISHED}
    try:
        with output.errors().status(_remaining(len(left))) as shown:
            while left:
                page = _patiently(client, cursor, goal)
                ended = {event["task_id"]: _ENDS[event["kind"]] for event in page["items"] if event["kind"] in _ENDS}
                known |= {task_id: ended[task_id] for task_id in left & ended.keys()}
                left -= ended.keys()
                cursor = page["next"]
                shown.update(_remaining(len(left)))
    except KeyboardInterrupt:
        output.errors().print(f"[dim]no longer {_remaining(len(left))}; what was submitted goes on[/]")
        raise
    return known


def result(task: Json) -> RenderableType:
    """What came of a task, for people."""
    found = output.json_text(task["result"])
    return found if found is not None else Text(f"{task['id']} is {task['state']}, without a result")


def _patiently(client: Client, cursor: str, goal: str | None) -> Json:
    began = time.monotonic()
    while True:
        try:
            return client.get("/events", after=cursor, goal_id=goal, limit=PAGE, wait_seconds=_POLL_SECONDS)
        except Failure as failure:
            away = isinstance(failure, Unreachable) or getattr(failure, "status", None) == 503
            if not away or time.monotonic() - began > _PATIENCE_SECONDS:
                raise
            time.sleep(1.0)


def _remaining(count: int) -> str:
    return f"waiting for {plural(count, 'task')}"
