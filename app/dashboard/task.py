"""The page of one task: why it waits, its attempts, what it was given and gave back, its output, and what to do."""

import json
import secrets
from typing import Any
from urllib.parse import urlencode

from starlette.responses import Response

from app.dashboard.access import HOME, Viewer, notify, read_viewers_form
from app.dashboard.actions import number, wrong_value
from app.dashboard.api_calls import Refused
from app.dashboard.rendering import SECURITY, page, pretty, render
from app.kernel.agents import AgentType
from app.kernel.states import FINISHED

# Of the longest outputs the beginning; the API has all of it.
_MAX_PIECES = 400
_WAIT_SECONDS = 20
# An input of 1 MiB has up to three times as many bytes in a form.
_FORM_BYTES = 4 << 20
# What a task is submitted with again, beside its input.
_KEPT = ("agent_type", "goal_id", "priority", "labels", "timeout_seconds")


async def show(viewer: Viewer) -> Response:
    """Everything about it."""
    task_id = viewer.request.path_params["task_id"]
    task = await viewer.api.get(f"/tasks/{task_id}")
    is_over = task["state"] in FINISHED
    why = None if task["state"] in ("completed", "cancelled") else await viewer.api.get(f"/tasks/{task_id}/why")
    pieces, position = await _read_output(viewer, task_id)
    values = {"task": task, "why": why, "is_over": is_over, "timeline": _timeline(task), "pieces": pieces}
    # Of a task that is over nothing more comes; a page that waited for it would load itself again and again.
    more = None if is_over else _more(position, task["state"], task["token"])
    values |= {"task_id": task_id, "more": more, "is_cut": is_over and len(pieces) > _MAX_PIECES}
    return page(viewer, "task.html", values)


async def _read_output(viewer: Viewer, task_id: str) -> tuple[list[Any], str]:
    """The pieces of the output so far, and the position behind them."""
    pieces: list[Any] = []
    position = None
    while len(pieces) <= _MAX_PIECES:
        logs = await viewer.api.get(f"/tasks/{task_id}/logs", after=position)
        pieces, position = pieces + logs["items"], logs["next"]
        if not logs["items"]:
            break
    return pieces, str(position)


def _more(position: str, state: str, token: int) -> str:
    """The query for what comes behind a position, by a page that shows this state, and this lease as the last."""
    return urlencode({"after": position, "state": state, "token": token})


async def output(viewer: Viewer) -> Response:
    """The output after a position, as soon as there is some, for a page that is open."""
    task_id, query = viewer.request.path_params["task_id"], viewer.request.query_params
    # A page of the version before sends neither, and is shown anew.
    state, token = query.get("state", ""), int(value) if (value := query.get("token", "")).isdecimal() else 0
    logs = await viewer.api.get(f"/tasks/{task_id}/logs", after=query.get("after"), wait_seconds=_WAIT_SECONDS)
    is_over = logs["state"] in FINISHED
    is_last = is_over and not logs["items"]
    # The rest of the page tells of a task that waited, or of an earlier attempt. The last output of all comes first.
    is_old = is_last or (not is_over and (logs["state"] != state or any(it["token"] > token for it in logs["items"])))
    more = None if is_last else _more(logs["next"], state, token)
    html = render("task/output.html", {"task_id": task_id, "pieces": logs["items"], "more": more})
    response = Response(html, media_type="text/html", headers=SECURITY)
    if is_old:
        response.headers["HX-Refresh"] = "true"
    return response


async def edit(viewer: Viewer) -> Response:
    """The form to submit its input again, changed."""
    task = await viewer.api.get(f"/tasks/{viewer.request.path_params['task_id']}")
    return _form(viewer, task, {name: _shown(task[name]) for name in _KEPT} | {"payload": pretty(task["payload"])})


async def submit(viewer: Viewer) -> Response:
    """Submit another task with the input of the form."""
    fields = await read_viewers_form(viewer, _FORM_BYTES)
    task = await viewer.api.get(f"/tasks/{viewer.request.path_params['task_id']}")
    try:
        query = {"namespace": None if viewer.principal.namespace else task["namespace"]}
        answer = await viewer.api.ask("POST", "/tasks", query=query, body=_body(task, fields))
    except Refused as refusal:
        return _form(viewer, task, dict(fields), refusal)
    response = Response(status_code=303, headers={"Location": f"{HOME}/tasks/{answer.value['id']}"})
    former = "It was submitted already: this is the same task." if not answer.value["created"] else ""
    notify(viewer.request, response, former or f"Submitted with the input of {task['id']}.")
    return response


def _body(task: dict[str, Any], fields: Any) -> dict[str, Any]:
    """The body of the submit. Raises Refused."""
    payload, labels = _json(fields, "payload"), _json(fields, "labels") if fields.get("labels") else {}
    timeout = number(fields, "timeout_seconds") if fields.get("timeout_seconds") else None
    body = {"agent_type": fields.get("agent_type", ""), "goal_id": fields.get("goal_id") or None, "payload": payload}
    retry = {"max_attempts": task["max_attempts"]}
    body |= {"priority": fields.get("priority", ""), "labels": labels, "timeout_seconds": timeout, "retry": retry}
    # The same form sent twice is one submit.
    return body | {"idempotency_key": fields.get("once") or None}


def _json(fields: Any, name: str) -> Any:
    try:
        return json.loads(fields.get(name, ""))
    except (ValueError, RecursionError) as error:
        raise wrong_value(name, f"that is not JSON: {error}") from None


def _form(viewer: Viewer, task: dict[str, Any], values: dict[str, Any], refusal: Refused | None = None) -> Response:
    once = values.get("once") or f"dashboard {secrets.token_hex(16)}"
    shown = {"task": task, "values": values, "refusal": refusal, "agents": list(AgentType), "once": once}
    return page(viewer, "edit.html", shown, status=refusal.status if refusal else 200)


def _shown(value: Any) -> str:
    return "" if value is None else pretty(value) if isinstance(value, dict) else str(value)


def _timeline(task: dict[str, Any]) -> list[dict[str, Any]]:
    """The steps of a task in order: each in words with its time, its worker, and the error where there was one."""
    nothing = {"error": None, "usage": None, "worker_id": None, "worker_name": None}
    events: list[dict[str, Any]] = [nothing | {"at": task["created_at"], "what": "submitted", "state": "pending"}]
    for attempt in task["attempts"]:
        what = f"attempt {attempt['attempt']} {attempt['outcome'].replace('_', ' ')}"
        kept = {name: attempt[name] for name in nothing}
        events.append(kept | {"at": attempt["ended_at"], "what": what, "state": "failed"})
    worker = {"worker_id": task["worker_id"], "worker_name": task["worker_name"]}
    if task["leased_at"] and task["state"] not in FINISHED:
        what = f"attempt {task['attempt']}"
        events.append(nothing | worker | {"at": task["leased_at"], "what": what, "state": task["state"]})
    if task["finished_at"]:
        error = task["error"] if not task["attempts"] else None
        finish = {"at": task["finished_at"], "error": error, "usage": task["usage"]}
        events.append(nothing | worker | finish | {"what": task["state"], "state": task["state"]})
    return events
