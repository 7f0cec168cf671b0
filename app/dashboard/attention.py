"""Things that need somebody's attention, each with the buttons that carry out its own advice."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from urllib.parse import quote, urlencode

from app.dashboard.sight import Sight
from app.kernel.namespaces import split_name
from app.kernel.text import NO_REASON, failure_text, one_line, plural

_LEVELS = ("critical", "warning", "note")
_NAMES = {"degraded": "warning"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Button:
    """An action with the fields that say on what."""

    action: str
    fields: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class Link:
    """A page that tells more."""

    text: str
    path: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Item:
    """Something that is wrong: its weight, what is so, and what to do."""

    level: str
    text: str
    advice: str = ""
    since: str | None = None
    note: str = ""
    buttons: tuple[Button, ...] = ()
    links: tuple[Link, ...] = ()


_WORKERS = Link(text="Workers", path="/workers")
_WAITING = Link(text="Waiting tasks", path="/tasks?state=pending")
_MODELS = Link(text="Models", path="/models")
_ONE_MORE = Button(action="start-workers", fields={"count": "1"})
_USUAL = Button(action="run-as-usual")
# Of alerts by their rules, and of the other reasons of the health report by their codes.
_BUTTONS: Mapping[str, tuple[Button, ...]] = {
    "no_healthy_worker": (_ONE_MORE,),
    "pool_below_minimum": (_ONE_MORE,),
    "queue_nearly_full": (_ONE_MORE,),
    "queue_growth": (_ONE_MORE,),
    "oldest_task": (_ONE_MORE,),
    "degraded": (_USUAL,),
    "resources_short": (_USUAL,),
}
_LINKS: Mapping[str, tuple[Link, ...]] = {
    "oldest_task": (_WAITING,),
    "queue_nearly_full": (_WAITING,),
    "breaker_open": (_MODELS,),
    "key_expiring": (_MODELS,),
    "llm_budget": (_MODELS,),
}
_OF_WORKERS = frozenset(
    {
        "no_healthy_worker",
        "pool_below_minimum",
        "replacement_failing",
        "reduced_capacity",
        "worker_starvation",
        "workers_lost",
        "workers_not_ready",
    }
)
# The same, as the report and the alerts call it.
_RULES = {"resources_short": "degraded", "reduced_capacity": "replacement_failing", "loops_silent": "duty_late"}
_RULES |= {"cpu_short": "resource_pressure", "memory_short": "resource_pressure"}


def attention(sight: Sight) -> list[Item]:
    """All of it, the worst first."""
    items = [
        *_of_alerts(sight),
        *_of_report(sight),
        *_of_pauses(sight),
        *_of_models(sight),
        *_of_dead_letters(sight),
    ]
    return sorted(items, key=lambda item: _LEVELS.index(item.level))


def _of_alerts(sight: Sight) -> Iterator[Item]:
    for alert in sight.alerts:
        rule, subject = alert["rule"], alert["subject"]
        buttons = _BUTTONS.get(rule, ())
        if rule == "breaker_open":
            buttons = (Button(action="reset-model", fields={"model": subject}),)
        if alert["state"] == "open":
            acknowledgement = Button(action="acknowledge-alert", fields={"alert_id": str(alert["id"])})
            buttons = (*buttons, acknowledgement)
        note = f"acknowledged: {alert['note'] or 'somebody knows'}" if alert["state"] != "open" else ""
        yield Item(
            level=alert["severity"],
            text=alert["summary"],
            advice=alert["advice"],
            since=alert["opened_at"],
            note=note,
            buttons=buttons,
            links=_links(rule, subject),
        )


def _of_report(sight: Sight) -> Iterator[Item]:
    """Reasons that no alert tells of already."""
    rules = {alert["rule"] for alert in sight.alerts}
    for reason in sight.report["reasons"]:
        code, level = reason["code"], reason["level"]
        if level == "note" or _RULES.get(code, code) in rules or code == "agent_paused":
            continue
        yield Item(
            level=_NAMES.get(level, level),
            text=reason["message"] or code.replace("_", " "),
            advice=reason.get("advice") or "",
            buttons=_BUTTONS.get(code, ()),
            links=_links(code),
        )


def _of_pauses(sight: Sight) -> Iterator[Item]:
    for pause in sight.queues["paused"]:
        agent = pause["agent_type"]
        # Tasks of goals on hold would wait anyway.
        waiting = sum(phases["pending"] for phases in sight.queues["queues"][agent].values())
        tasks = plural(waiting, "task of it waits", "tasks of it wait")
        yield Item(
            level="warning" if waiting else "note",
            text=f"{agent.replace('_', ' ')} is paused, and {tasks}: {one_line(pause['reason']) or NO_REASON}",
            advice="end the pause",
            since=pause["paused_at"],
            buttons=(Button(action="resume-queue", fields={"agent": agent}),),
            links=(Link(text="Its tasks", path=f"/tasks?agent_type={agent}"),),
        )


def _of_models(sight: Sight) -> Iterator[Item]:
    rules = {(alert["rule"], alert["subject"]) for alert in sight.alerts}
    for model in sight.models:
        if model["state"] == "ok" or ("breaker_open", model["model"]) in rules:
            continue
        yield Item(
            level="warning",
            text=f"the model {model['model']}: {model['state'].replace('_', ' ')}",
            advice="look at its key and account at the provider, then try it again",
            buttons=(Button(action="reset-model", fields={"model": model["model"]}),),
        )


def _of_dead_letters(sight: Sight) -> Iterator[Item]:
    count, last = sight.queues["dead_letters_last_hour"], sight.last_letter
    if not count:
        return
    text = f"{plural(count, 'task has', 'tasks have')} failed for good within the last hour"
    links = [Link(text="Failed tasks", path="/tasks?state=failed")]
    if last:
        text += f", the last of {last['agent_type'].replace('_', ' ')}: {failure_text(last['error'])}"
        links.insert(0, Link(text="The last", path=f"/tasks/{last['id']}"))
    advice = "look at its attempts and their output, mend it, and requeue what has failed"
    yield Item(level="note", text=text, advice=advice, links=tuple(links))


def _links(code: str, subject: str = "") -> tuple[Link, ...]:
    return (*_LINKS.get(code, ()), *_links_of(code, subject), *((_WORKERS,) if code in _OF_WORKERS else ()))


def _links_of(rule: str, subject: str) -> Iterator[Link]:
    """Pages about the very subject of an alert."""
    if rule == "goal_budget":
        namespace, goal_id = split_name(subject)
        query = urlencode({"namespace": namespace})
        yield Link(text="The goal", path=f"/goals/{quote(goal_id or '', safe='')}?{query}")
    if rule == "stuck_executing":
        yield Link(text="Running tasks", path=f"/tasks?{urlencode({'state': 'executing', 'agent_type': subject})}")
