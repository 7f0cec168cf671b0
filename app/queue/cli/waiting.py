"""The sentence on why a task has not finished yet, for whoever waits for it at a terminal or in a program."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime

from app.kernel.text import plural, printable
from app.terminal import output
from app.terminal.client import Client, Json
from app.terminal.failures import Failure

_MAX_PLACE = 100  # how far the service looks ahead
_MAX_TEXT = 300


@dataclass(frozen=True, slots=True, kw_only=True)
class Reason:
    """Why a task has not finished: a stable word, and a sentence; `subject` is the part that makes it another one."""

    code: str
    subject: str
    text: str


def reason_for(client: Client, task_id: str, released_because: str | None = None) -> Reason:
    """Look why a task has not finished; `released_because` is what the last worker gave that handed it back."""
    task = client.get(f"/tasks/{task_id}")
    try:
        return _reason(client, task, released_because)
    except Failure as failure:  # a key that may see the task need not see workers, goals and queues
        return Reason(code=task["state"], subject="", text=f"it is {task['state']} ({failure.message})")


def _reason(client: Client, task: Json, released_because: str | None) -> Reason:
    if task["state"] in ("assigned", "executing"):
        return _running(client, task)
    if task["state"] == "blocked":
        first = task["depends_on"][0]
        text = f"it depends on {plural(len(task['depends_on']), 'task')}: `convener tasks get {first}` shows the first"
        return Reason(code="blocked", subject="", text=text)
    if task["state"] != "pending":
        return Reason(code=task["state"], subject="", text=f"it is {task['state']}")
    if task["held"]:
        return _held(client, task)
    if task["run_at"] and (seconds := _seconds(client.now, task["run_at"])) > 0:
        return _delayed(client, task, seconds, released_because)
    return _in_line(client, task)


def _running(client: Client, task: Json) -> Reason:
    name = task["worker_name"] or task["worker_id"]
    progress = task["progress"]
    text = f"running on worker {name} since {output.duration(-_seconds(client.now, task['leased_at']))}"
    if progress:
        message = f" ({_line(progress['message'])})" if progress["message"] else ""
        text += f", progress {progress['percent']:.0f} %{message}"
    return Reason(code="running", subject=f"{task['token']}", text=text)


def _held(client: Client, task: Json) -> Reason:
    goal_id = task["goal_id"]
    goal = client.get(f"/goals/{goal_id}", namespace=task["namespace"])
    why = _line(goal["reason"] or goal["hold"] or "no reason was given")
    text = f"its goal {goal_id} is held: {why}; `convener goals get {goal_id}` shows its limits"
    return Reason(code="held", subject=why, text=text)


def _delayed(client: Client, task: Json, seconds: float, released_because: str | None) -> Reason:
    following = f"next try in {output.duration(seconds + 1)}"
    last = task["attempts"][-1] if task["attempts"] else None
    if last is None:
        return Reason(code="delayed", subject="", text=f"it is to run in {output.duration(seconds + 1)}")
    subject = str(last["token"])
    if last["outcome"] == "failed":
        error = last["error"] or {}
        why = _line(error.get("message") or error.get("code") or "it gave no reason")
        return Reason(code="retry", subject=subject, text=f"attempt {last['attempt']} failed: {why}; {following}")
    why = _line(released_because or "no reason was given")
    model = _unavailable_model(client, why)
    if model is not None:
        text = f"the language model {model['model']} is unavailable: {model['state'].replace('_', ' ')}; {following}"
        return Reason(code="model_unavailable", subject=model["state"], text=text)
    text = f"a worker has handed it back ({last['outcome']}): {why}; {following}"
    return Reason(code="handed_back", subject=subject, text=text)


def _unavailable_model(client: Client, why: str) -> Json | None:
    models = client.get("/llm/models", limit=100)["items"]
    return next((model for model in models if model["state"] != "ok" and model["model"] in why), None)


def _in_line(client: Client, task: Json) -> Reason:
    agent = task["agent_type"]
    pause = next((pause for pause in client.get("/queues")["paused"] if pause["agent_type"] == agent), None)
    if pause is not None:
        why = _line(pause["reason"] or "no reason was given")
        text = f"the queue of {agent} is paused: {why}; `convener queues resume {agent}` ends that"
        return Reason(code="paused", subject=why, text=text)
    workers = [worker for worker in client.pages("/workers", None)[0] if agent in worker["capabilities"]]
    if not workers:
        text = (
            f"nobody serves {agent}: start a worker whose handlers do, by `convener worker --handlers MODULE`, "
            "or `convener up --handlers MODULE` on this machine"
        )
        return Reason(code="unserved", subject="", text=text)
    place = _place(client, task)
    if all(worker["state"] == "busy" for worker in workers):
        text = f"all {len(workers):,} workers that serve {agent} are busy; {place}"
        return Reason(code="busy", subject="", text=text)
    return Reason(code="queued", subject="", text=f"{place}; of the workers that serve {agent} are {_states(workers)}")


def _states(workers: Sequence[Json]) -> str:
    states = [worker["state"] for worker in workers]
    return ", ".join(f"{states.count(state):,} {state}" for state in sorted(set(states)))


def _place(client: Client, task: Json) -> str:
    answer = client.get("/queues/next", agent_type=task["agent_type"], limit=_MAX_PLACE)
    upcoming = [item for agent in answer["agents"] for item in agent["tasks"]]
    place = next((item["place"] for item in upcoming if item["id"] == task["id"]), None)
    if place:
        return f"place {place:,} in line"
    if len(upcoming) >= _MAX_PLACE:
        return f"more than {_MAX_PLACE} tasks are before it"
    # It may just have been leased, or be of a kind that waits while resources are short.
    return "its place in line is not known yet"


def _seconds(now: datetime, moment: str) -> float:
    return (datetime.fromisoformat(moment) - now).total_seconds()


def _line(text: str) -> str:
    """Text of strangers in one line of bounded length."""
    return printable(" ".join(str(text).split()))[:_MAX_TEXT]
