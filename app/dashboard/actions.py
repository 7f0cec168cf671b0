"""Actions that the pages let people do: each action is one call of the API, with the scopes that it needs there."""

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any
from urllib.parse import unquote

from app.dashboard.api_calls import Refused
from app.kernel.access import Scope
from app.kernel.agents import AgentType

Fields = Mapping[str, str]


def _reason(fields: Fields) -> dict[str, Any]:
    return {"reason": fields.get("reason", "")}


def _nothing(_: Fields) -> dict[str, Any]:
    return {}


def _note(fields: Fields) -> dict[str, Any]:
    return {"note": fields.get("reason", "")}


def _start(fields: Fields) -> dict[str, Any]:
    # The same form sent twice starts nobody else.
    return _reason(fields) | {"count": whole(fields, "count"), "request_id": fields.get("request_id") or None}


def _as_usual(fields: Fields) -> dict[str, Any]:
    return _reason(fields) | {"step": 0}


def _let_rule_decide(fields: Fields) -> dict[str, Any]:
    return _reason(fields) | {"step": None}


def _namespace(fields: Fields) -> dict[str, Any]:
    return {"namespace": fields.get("namespace")}


# Limits of a goal that people extend, and whether they are whole numbers.
_LIMITS = {"time_limit_seconds": False, "compute_budget_seconds": False, "money_budget": False} | {
    "token_budget": True,
    "max_iterations": True,
}


def _limits(fields: Fields) -> dict[str, Any]:
    named = {name: is_whole for name, is_whole in _LIMITS.items() if fields.get(name)}
    if not named:
        raise Refused(422, {"detail": "name at least one limit"})
    limits = {name: (whole if is_whole else number)(fields, name) for name, is_whole in named.items()}
    return {"reason": fields.get("reason") or None, "constraints": limits}


def _weights(fields: Fields) -> dict[str, Any]:
    shares = {agent.value: number(fields, agent) / 100 for agent in AgentType if fields.get(agent)}
    if not shares:
        raise Refused(422, {"detail": "name the weight of at least one agent"})
    return _reason(fields) | {"weights": shares}


def _override(fields: Fields) -> dict[str, Any]:
    return _weights(fields) | {"expires_in_seconds": 60 * number(fields, "minutes")}


# Limits of a model that are whole numbers, and others.
_WHOLE = ("requests_per_window", "tokens_per_window", "burst", "token_burst", "max_concurrency")
_OTHERS = ("window_seconds", "input_price_per_million_tokens", "output_price_per_million_tokens")


def _model_limits(fields: Fields) -> dict[str, Any]:
    limits: dict[str, Any] = {name: whole(fields, name) for name in _WHOLE if fields.get(name)}
    limits |= {name: number(fields, name) for name in _OTHERS if fields.get(name)}
    models = [name.strip() for name in fields.get("fallback_models", "").split(",")]
    return limits | {"fallback_models": [name for name in models if name]}


def _urgent(fields: Fields) -> dict[str, Any]:
    return _reason(fields) | {"priority": fields.get("priority", "")}


@dataclass(frozen=True, slots=True, kw_only=True)
class Action:
    """A button: its label, the call, and the sentence when it is done; both have places for fields of the form.

    `asks` is the label of the field for the reason. A grave one is asked about once more.
    """

    label: str
    method: str = "POST"
    path: str
    scopes: tuple[Scope, ...]
    done: str
    body: Callable[[Fields], dict[str, Any]] = _reason
    query: Callable[[Fields], dict[str, Any]] = _nothing
    asks: str = "Reason"
    is_grave: bool = False
    # Builds on the version in the form, and is refused where somebody else was quicker.
    is_versioned: bool = False


_SEE = Scope.CONTENT
ACTIONS: Mapping[str, Action] = {
    "resume-queue": Action(
        label="Resume", path="/queues/{agent}/resume", scopes=(Scope.MANAGE,), done="{agent} is leased again."
    ),
    "pause-queue": Action(
        label="Pause",
        path="/queues/{agent}/pause",
        scopes=(Scope.MANAGE,),
        done="{agent} is paused; running tasks go on.",
    ),
    "start-workers": Action(
        label="Start workers",
        path="/workers/start",
        scopes=(Scope.MANAGE,),
        body=_start,
        done="{count} more will start within seconds.",
    ),
    "drain-worker": Action(
        label="Drain",
        path="/workers/{worker_id}/drain",
        scopes=(Scope.MANAGE,),
        done="The worker ends after its task; the pool starts another.",
    ),
    "stop-worker": Action(
        label="Stop",
        path="/workers/{worker_id}/stop",
        scopes=(Scope.OPERATE,),
        done="The worker stops; its task goes back to the queue.",
        is_grave=True,
    ),
    "restart-worker": Action(
        label="Restart",
        path="/workers/{worker_id}/restart",
        scopes=(Scope.OPERATE,),
        done="The worker stops, and a new process takes its place.",
    ),
    "acknowledge-alert": Action(
        label="Acknowledge",
        path="/alerts/{alert_id}/acknowledge",
        scopes=(Scope.OPERATE,),
        body=_note,
        asks="Note for whoever looks next",
        done="Acknowledged: it stays until its symptom is gone.",
    ),
    "reset-model": Action(
        label="Try it again at once",
        path="/llm/models/{model}/reset",
        scopes=(Scope.OPERATE,),
        body=_nothing,
        query=_reason,
        done="{model} starts as a new one.",
    ),
    "set-model": Action(
        label="Allow",
        method="PUT",
        path="/llm/models/{model}",
        scopes=(Scope.CONFIGURE,),
        body=_model_limits,
        query=_reason,
        is_versioned=True,
        done="Permits are granted for {model} within these limits.",
    ),
    "remove-model": Action(
        label="Remove",
        method="DELETE",
        path="/llm/models/{model}",
        scopes=(Scope.CONFIGURE,),
        query=_reason,
        done="No permits are granted for {model} any more; calls under way go on.",
        is_grave=True,
    ),
    "run-as-usual": Action(
        label="Run everything as usual for 30 minutes",
        method="PUT",
        path="/degradation",
        scopes=(Scope.OPERATE,),
        body=_as_usual,
        done="Everything runs as usual for 30 minutes; then the rule takes over.",
    ),
    "cancel-task": Action(
        label="Cancel",
        path="/tasks/{task_id}/cancel",
        scopes=(Scope.SUBMIT, _SEE),
        done="The task is cancelled.",
        is_grave=True,
    ),
    "requeue-task": Action(
        label="Requeue",
        path="/dead-letters/{task_id}/requeue",
        scopes=(Scope.SUBMIT, _SEE),
        done="The task is in the queue again, with all its attempts before it.",
    ),
    "pause-goal": Action(
        label="Pause",
        path="/goals/{goal_id}/pause",
        scopes=(Scope.SUBMIT, _SEE),
        query=_namespace,
        done="{goal_id} is paused; running tasks go on.",
    ),
    "resume-goal": Action(
        label="Resume",
        path="/goals/{goal_id}/resume",
        scopes=(Scope.SUBMIT, _SEE),
        query=_namespace,
        done="{goal_id} goes on; what waited for a budget waits for the next check of it.",
    ),
    "extend-goal": Action(
        label="Extend",
        path="/goals/{goal_id}/extend",
        scopes=(Scope.SUBMIT, _SEE),
        body=_limits,
        query=_namespace,
        done="{goal_id} has other limits; what waited for a budget goes on after the next check.",
    ),
    "stop-goal": Action(
        label="Stop for good",
        path="/goals/{goal_id}/stop",
        scopes=(Scope.SUBMIT, _SEE),
        query=_namespace,
        done="{goal_id} has stopped; its tasks are being cancelled.",
        is_grave=True,
    ),
    "set-weights": Action(
        label="Set for good",
        method="PUT",
        path="/weights",
        scopes=(Scope.WEIGH,),
        body=_weights,
        done="The weights are on their way; from there on results move them.",
    ),
    "override-weights": Action(
        label="Override for a while",
        method="PUT",
        path="/weights/override",
        scopes=(Scope.WEIGH,),
        body=_override,
        done="The weights are on their way; the override ends after {minutes} minutes.",
    ),
    "end-override": Action(
        label="End the override",
        method="DELETE",
        path="/weights/override",
        scopes=(Scope.WEIGH,),
        query=_reason,
        done="The weights go back to what the agents have earned.",
    ),
    "raise-task": Action(
        label="Change priority",
        method="PATCH",
        path="/tasks/{task_id}",
        scopes=(Scope.SUBMIT, _SEE),
        body=_urgent,
        done="The task has another priority.",
    ),
}


def action_of(call: str | None) -> tuple[str, dict[str, str]] | None:
    """The action that makes a call such as `POST /queues/ranking/resume`, and its fields; None where there is none."""
    method, _, path = (call or "").partition(" ")
    for name, action in ACTIONS.items():
        pattern = re.sub(r"{(\w+)}", r"(?P<\1>[^/?]+)", action.path)
        # One that needs more than the path, such as a priority, has a form of its own.
        match = (
            re.fullmatch(pattern, path)
            if action.method == method and action.body in (_nothing, _reason, _as_usual)
            else None
        )
        if match is not None:
            return name, {field: unquote(value) for field, value in match.groupdict().items()}
    return None


def wrong_value(field: str, message: str) -> Refused:
    """The refusal of what was typed into a field, in the form of the API's own."""
    return Refused(422, {"detail": f"{field}: {message}", "errors": [{"path": field, "message": message}]})


def whole(fields: Fields, name: str) -> int:
    """A whole number of a form. Raises Refused."""
    try:
        return int(fields.get(name, ""))
    except ValueError:
        raise wrong_value(name, "that must be a whole number") from None


def number(fields: Fields, name: str) -> float:
    """A number of a form, a whole one where it can be. Raises Refused."""
    try:
        value = float(fields.get(name, ""))
        return int(value) if value.is_integer() else value
    except (ValueError, OverflowError):
        raise wrong_value(name, "that must be a number") from None


def filled(text: str, fields: Fields, *, is_path: bool) -> str:
    """The text with the values of the fields in their places. Raises Refused for a value that leads elsewhere."""
    pieces = text.split("{")
    whole_text = pieces[0]
    for piece in pieces[1:]:
        name, _, rest = piece.partition("}")
        value = fields.get(name, "")
        # Names of models have slashes, and their addresses end with what follows them.
        if is_path and (not value or value in (".", "..") or ("/" in value and name != "model")):
            raise Refused(404, {"detail": f"there is no {name.removesuffix('_id')} of this name"})
        whole_text += value + rest
    return whole_text
