"""Waiting for tasks by following events: nothing is missed during an outage, and the wait says what it waits for."""

import json
import time
from collections.abc import Mapping
from types import TracebackType

from rich.console import RenderableType
from rich.text import Text

from app.kernel.events import TaskEvent
from app.kernel.states import FINISHED
from app.kernel.text import plural
from app.queue.cli.waiting import Reason, reason_for
from app.queue.rules.tasks import TRANSITIONS
from app.terminal import output
from app.terminal.client import PAGE, Client, Json, Unreachable
from app.terminal.failures import ExitCode, Failure
from app.terminal.output import Format

_FINAL_EVENTS = {event: state.value for event, (_, state) in TRANSITIONS.items() if state in FINISHED}
# Less than the 30 s that the service lets a request wait.
_POLL_SECONDS = 25.0
_MAX_OUTAGE_SECONDS = 30.0
# Until the first look why a task has not finished, and from one to the next.
_FIRST_LOOK_SECONDS, _LOOK_SECONDS = 1.0, 3.0


def current(client: Client) -> str:
    """The current cursor, to be taken before the tasks are submitted, so that no end of theirs is missed."""
    cursor: str = client.get("/events", after="now", limit=1)["next"]
    return cursor


def until_finished(
    client: Client,
    cursor: str,
    states: Mapping[str, str],
    *,
    goal: str | None,
    fmt: Format = Format.TABLE,
    timeout_seconds: float | None = None,
) -> dict[str, str]:
    """Follow events from `cursor` until all of these tasks have ended, or the time is over; return their states.

    `states` are their current states. With `goal` only its events are read, so all tasks must belong to it.
    Meanwhile stderr says why the first of them has not finished. An outage of up to 30 s is waited out. Raises Failure
    after a longer one, and where that task is no more.
    """
    final_states = dict(states)
    open_ids = {task_id: None for task_id, state in final_states.items() if state not in FINISHED}
    end = None if timeout_seconds is None else time.monotonic() + timeout_seconds
    with _Remarks(client, fmt) as remarks:
        while open_ids:
            remarks.look(list(open_ids))
            seconds = min(remarks.seconds_to_next(), _POLL_SECONDS if end is None else end - time.monotonic())
            if end is not None and time.monotonic() >= end:
                break
            page = _read_patiently(client, cursor, goal, max(0.0, seconds))
            for event in page["items"]:
                remarks.hear(event)
                if event["kind"] in _FINAL_EVENTS and event["task_id"] in open_ids:
                    final_states[event["task_id"]] = _FINAL_EVENTS[event["kind"]]
                    del open_ids[event["task_id"]]
            cursor = page["next"]
    return final_states


def result(task: Json) -> RenderableType:
    """The result of a task, or a sentence on its state when there is none."""
    text = output.json_text(task["result"])
    return text if text is not None else Text(f"{task['id']} is {task['state']}, without a result")


class _Remarks:
    """Tells on stderr what is waited for: redrawn in place on a terminal, else a line whenever it is something else."""

    def __init__(self, client: Client, fmt: Format) -> None:
        self._client, self._as_json = client, fmt is Format.JSON
        self._status = output.errors().status("waiting")
        self._released: dict[str, str] = {}
        self._last: tuple[str, Reason] | None = None
        self._open_ids: list[str] = []
        self._next_at = time.monotonic() + _FIRST_LOOK_SECONDS

    def __enter__(self) -> "_Remarks":
        if not self._as_json:
            self._status.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, _: object, trace: TracebackType | None) -> None:
        self._status.stop()
        if kind is not None and self._open_ids:
            # Only the waiting ends; people should not believe that their tasks were cancelled, nor submit them again.
            first = self._open_ids[0]
            how = f"`convener tasks get {first}` shows it, `convener tasks logs {first} --follow` follows it"
            others = f" and {plural(len(self._open_ids) - 1, 'task')} more" if len(self._open_ids) > 1 else ""
            text = f"no longer waiting for {first}{others}; what was submitted goes on: {how}"
            self._tell(text, "interrupted", first)

    def seconds_to_next(self) -> float:
        """Seconds until it is time to look."""
        return max(0.0, self._next_at - time.monotonic())

    def hear(self, event: Json) -> None:
        """Remember why a worker has handed a task back, which only the event says."""
        if event["kind"] == TaskEvent.RELEASED:
            self._released[event["task_id"]] = str((event.get("detail") or {}).get("reason") or "")

    def look(self, open_ids: list[str]) -> None:
        """Tell why the first of these tasks has not finished, if it is time to look."""
        self._open_ids = open_ids
        if not open_ids or self.seconds_to_next():
            return
        task_id = open_ids[0]
        try:
            reason = reason_for(self._client, task_id, self._released.get(task_id))
        except Failure as failure:
            if failure.code is ExitCode.NOT_FOUND:
                self._open_ids = []
                hint = "an older state of the database was restored, or a standby promoted that lagged: submit it again"
                raise Failure(f"the task {task_id} is no more", failure.code, hint=hint) from failure
            reason = Reason(code="unknown", subject=failure.message, text=failure.message)
        self._next_at = time.monotonic() + _LOOK_SECONDS
        others = f" ({plural(len(open_ids) - 1, 'task')} more)" if len(open_ids) > 1 else ""
        text = f"waiting for {task_id}{others}: {reason.text}"
        self._status.update(Text(text))
        last, self._last = self._last, (task_id, reason)
        is_told = last and (last[0], last[1].code, last[1].subject) == (task_id, reason.code, reason.subject)
        if not is_told and (self._as_json or not output.errors().is_terminal):
            self._tell(text, reason.code, task_id)

    def _tell(self, text: str, code: str, task_id: str) -> None:
        if self._as_json:
            output.errors().file.write(json.dumps({"waiting": text, "reason": code, "task_id": task_id}) + "\n")
        else:
            output.note(text)


def _read_patiently(client: Client, cursor: str, goal: str | None, wait_seconds: float) -> Json:
    began_at = time.monotonic()
    while True:
        try:
            return client.get("/events", after=cursor, goal_id=goal, limit=PAGE, wait_seconds=wait_seconds)
        except Failure as failure:
            is_away = isinstance(failure, Unreachable) or getattr(failure, "status", None) == 503
            if not is_away or time.monotonic() - began_at > _MAX_OUTAGE_SECONDS:
                raise
            time.sleep(1.0)
