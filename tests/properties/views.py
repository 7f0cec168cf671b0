"""The whole queue as plain values, by the database and by the model, so that the two can be compared."""

import json
from collections import Counter
from collections.abc import Mapping
from typing import Any

from app.kernel.states import TaskState
from app.queue.rules.tasks import LEASED
from app.queue.store import counters
from tests.properties.model import Model, Task
from tests.properties.policies import STEP
from tests.properties.service import Service

View = dict[str, Mapping[Any, Any]]


def _left(moment: str) -> str:
    return f"floor(extract(epoch FROM {moment} - now()) / {STEP})::integer AS {moment}"


_BOTH = "id, state, priority, token, failures, rescues, unacknowledged, worker_id, progress, checkpoint"

# One look, one round trip: the machine looks after every step.
_LOOK = f"""
SELECT jsonb_build_object(
    'tasks', (SELECT jsonb_agg(t) FROM (
        SELECT {_BOTH}, NULL::jsonb AS result, blockers, {_left("lease_expires_at")}, {_left("deadline_at")},
               {_left("run_at")}, avoid_worker_id,
               floor(extract(epoch FROM now() - waiting_since) / {STEP})::integer AS waits FROM tasks
        UNION ALL SELECT {_BOTH}, result, 0, NULL, NULL, NULL, NULL, NULL FROM task_history) t),
    'edges', (SELECT jsonb_agg(jsonb_build_array(task_id, depends_on)) FROM task_dependencies),
    'events', (SELECT jsonb_agg(jsonb_build_array(task_id, kind, token) ORDER BY transaction, seq)
               FROM every_event WHERE task_id IS NOT NULL),
    'attempts', (SELECT jsonb_agg(jsonb_build_array(task_id, token, worker_id, outcome) ORDER BY token)
                 FROM task_attempts),
    'tags', (SELECT jsonb_object_agg(id, tag) FROM tasks),
    'workers', (SELECT jsonb_object_agg(id, state) FROM workers))::text
"""


async def of_database(service: Service) -> View:
    """What is there, and the tags, of which the model knows nothing.

    Raises AssertionError when a task is there twice, or something is there of one that is not.
    """
    look = {name: rows or [] for name, rows in json.loads(await service.fetch_value(_LOOK)).items()}
    found = {row.pop("id"): {**row, "events": [], "tokens": [], "attempts": []} for row in look["tasks"]}
    assert len(found) == len(look["tasks"]), "a task is live and finished at once, or has finished twice"
    for task_id, kind, token in look["events"]:
        assert task_id in found, f"{kind} of a task that is lost"
        found[task_id]["events"].append(kind)
        if kind == "task.assigned":
            found[task_id]["tokens"].append(token)
    for task_id, *attempt in look["attempts"]:
        found[task_id]["attempts"].append(attempt)
    edges = dict.fromkeys(map(tuple, look["edges"]), "is there")
    people = {"worker": dict(look["workers"]), "tag": dict(look["tags"])}
    return {"task": found, "edge": edges, "count": await _counted(service), **people}


def of_model(model: Model) -> View:
    """What should be there."""
    tasks = model.tasks.values()
    return {
        "task": {str(task.id): _task(task, model.now) for task in tasks},
        "edge": {(str(task.id), str(on)): "is there" for task in tasks for on in task.waits_for},
        "worker": {str(worker.id): worker.state.value for worker in model.workers.values()},
        "count": Counter((task.agent.value, task.priority.value, _phase(task)) for task in tasks if task.is_live),
    }


def _task(task: Task, now: float) -> dict[str, Any]:
    is_leased, is_live = task.state in LEASED, task.is_live
    return {
        "state": task.state.value,
        "priority": task.priority.value,
        "token": task.token,
        "failures": task.failures,
        "rescues": task.rescues,
        "unacknowledged": task.unacknowledged,
        "worker_id": task.worker and str(task.worker),
        "progress": json.loads(task.progress) if task.progress else None,
        "checkpoint": json.loads(task.checkpoint) if task.checkpoint else None,
        "result": json.loads(task.result) if task.result else None,
        "blockers": len(task.waits_for),
        "lease_expires_at": int((task.expires - now) // STEP) if is_leased else None,
        "deadline_at": int((task.hard_limit - now) // STEP) if is_leased else None,
        "run_at": int((task.run_at - now) // STEP) if is_live and task.run_at is not None else None,
        "avoid_worker_id": task.avoid and str(task.avoid) if is_live else None,
        "waits": int((now - task.waiting_since) // STEP) if is_live else None,
        "events": [event.value for event in task.events],
        "tokens": list(range(1, task.token + 1)),
        "attempts": [[token, str(worker), outcome] for (token, worker), outcome in sorted(task.attempts.items())],
    }


def _phase(task: Task) -> str:
    is_delayed = task.state is TaskState.PENDING and task.run_at is not None
    return "delayed" if is_delayed else task.state.value


async def _counted(service: Service) -> dict[tuple[str, int, str], int]:
    found = await counters.read(service.reading)
    return {(c.lane.agent_type.value, c.lane.priority.value, c.phase): c.tasks for c in found}


def disagreement(expected: View, seen: View) -> str:
    """What differs, in words; empty when nothing does."""
    return "\n".join(
        f"{what} {key}: {_difference(expected[what].get(key), seen[what].get(key))}"
        for what in expected
        for key in {**expected[what], **seen[what]}
        if expected[what].get(key) != seen[what].get(key)
    )


def _difference(wanted: object, found: object) -> str:
    if not isinstance(wanted, dict) or not isinstance(found, dict):
        return f"expected {wanted}, found {found}"
    names = [name for name in wanted if wanted[name] != found.get(name)]
    return "; ".join(f"{name} should be {wanted[name]} and is {found.get(name)}" for name in names)
