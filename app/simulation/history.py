"""A history of one's own as a trace: since when each task could run, how long it took, and for which agent.

A row is the execution that completed a task: `arrival` in ISO 8601, when the task last became ready to run, after its
time had come and what it waited for was done; `service_seconds` from lease to result; `agent_type`. Attempts that
failed are no rows: a simulation has failures of its own.
"""

from collections.abc import Iterable, Iterator, Mapping
from datetime import datetime
from typing import Any, NamedTuple

# What took no time that a clock could show still took some.
_LEAST_SECONDS = 0.001


class Row(NamedTuple):
    """One line of the file; the names are its header."""

    arrival: str
    service_seconds: float
    agent_type: str


def rows(tasks: Iterable[Mapping[str, Any]]) -> Iterator[Row]:
    """Of tasks as our API lists them, in any order; those that did not complete are passed over."""
    return (row(task) for task in tasks if task["state"] == "completed")


def row(task: Mapping[str, Any]) -> Row:
    """Of one task that a worker had, and that is over."""
    ran = datetime.fromisoformat(task["finished_at"]) - datetime.fromisoformat(task["leased_at"])
    # What finished before the database kept it has only the time of its submission.
    arrival = task.get("waiting_since") or task["created_at"]
    seconds = round(max(_LEAST_SECONDS, ran.total_seconds()), 3)
    return Row(arrival=arrival, service_seconds=seconds, agent_type=task["agent_type"])
