"""The list of tasks by a filter that is in the address, and orders for all that the filter selects."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlencode

from starlette.responses import Response

from app.dashboard.access import HOME, Viewer, notify, read_viewers_form
from app.dashboard.api_calls import Refused
from app.dashboard.feed import News, shown
from app.dashboard.lists import follow, render_list
from app.dashboard.rendering import page
from app.db import notify as notices
from app.http.callers import ReadLog
from app.http.services import Services
from app.kernel.access import Scope
from app.kernel.agents import AgentType
from app.kernel.states import TaskState
from app.kernel.text import plural

LIST = f"{HOME}/tasks"
# Choices that stand for several states.
_GROUPS: Mapping[str, tuple[str, ...]] = {
    "waiting": ("blocked", "pending"),
    "running": ("assigned", "executing"),
    "live": ("blocked", "pending", "assigned", "executing"),
    "finished": ("completed", "failed", "cancelled"),
}
_FILTERS = ("state", "agent_type", "goal_id", "priority", "label", "code", "worker_id", "namespace")
_LIMIT = 50
# A lease is not announced.
_IDLE_SECONDS = 2.0
# Of what an order for many takes in one call.
_BATCH = 10_000
# Of a number of tasks.
_MAX_DIGITS = 15


@dataclass(frozen=True, slots=True, kw_only=True)
class BulkOrder:
    """An order for all tasks that a filter selects: the call, the fields of its filter, and what it does in words."""

    label: str
    path: str
    scopes: tuple[Scope, ...]
    filters: tuple[str, ...]
    count: str
    done: str


BULK: Mapping[str, BulkOrder] = {
    "cancel": BulkOrder(
        label="Cancel",
        path="/tasks/cancel",
        scopes=(Scope.SUBMIT,),
        filters=("agent_type", "goal_id", "priority", "label"),
        count="cancelled",
        done="cancelled",
    ),
    "requeue": BulkOrder(
        label="Requeue",
        path="/dead-letters/requeue",
        scopes=(Scope.SUBMIT,),
        filters=("agent_type", "goal_id", "code", "label"),
        count="requeued",
        done="in the queue again",
    ),
    "forget": BulkOrder(
        label="Forget for good",
        path="/dead-letters/purge",
        scopes=(Scope.MANAGE,),
        filters=("agent_type", "goal_id", "code", "label"),
        count="purged",
        done="forgotten",
    ),
}


async def show(viewer: Viewer) -> Response:
    """A page of the list."""
    query = viewer.request.query_params
    chosen, after = _chosen(query), query.get("after")
    values: dict[str, Any] = {"chosen": chosen, "orders": _orders(viewer, chosen), "sentence": ""}
    values |= {"agents": list(AgentType), "states": [*_GROUPS, *TaskState], "stream": None}
    items: dict[str, Any] = {"items": [], "first": None, "following": None}
    status = 200
    try:
        items = await _values(viewer, chosen, after)
        # What is not the newest hardly changes.
        values["stream"] = None if after else f"{HOME}/feeds/tasks?{urlencode(chosen)}"
    except Refused as refusal:
        if refusal.status != _INVALID:
            raise
        status, values["sentence"] = refusal.status, refusal.sentence
    region = shown(render_list(viewer, "tasks", items, address(chosen)), viewer.csrf)
    return page(viewer, "tasks.html", values | {"region": region}, status=status)


async def stream(viewer: Viewer) -> Response:
    """The newest page of the list again whenever it has changed."""
    chosen = _chosen(viewer.request.query_params)

    async def look(viewer: Viewer, news: News) -> dict[str, str]:
        return {"list": render_list(viewer, "tasks", await _values(viewer, chosen, None), address(chosen))}

    answer = follow(
        viewer,
        address(chosen),
        lambda _: look,
        scopes=(Scope.READ, Scope.CONTENT),
        topics=frozenset({notices.EVENTS}),
        idle_seconds=_IDLE_SECONDS,
    )
    services: Services = viewer.request.app.state.services
    await services[ReadLog].note(viewer.principal, "tasks.read", address(chosen))
    return answer


def _chosen(query: Mapping[str, str]) -> dict[str, str]:
    return {name: query[name] for name in _FILTERS if query.get(name)}


async def _values(viewer: Viewer, chosen: Mapping[str, str], after: str | None) -> dict[str, Any]:
    tasks = await viewer.api.get("/tasks", _query(chosen), after=after, limit=_LIMIT)
    following = address({**chosen, "after": tasks["next"]}) if tasks["next"] else None
    return {"items": tasks["items"], "first": address(chosen) if after else None, "following": following}


_INVALID = 422


def address(chosen: Mapping[str, str]) -> str:
    """The address of the list with this filter."""
    return f"{LIST}?{urlencode(chosen)}" if chosen else LIST


def _query(chosen: Mapping[str, str]) -> dict[str, Any]:
    states = _GROUPS.get(chosen.get("state", ""))
    return {**chosen, "state": list(states)} if states else dict(chosen)


def _orders(viewer: Viewer, chosen: Mapping[str, str]) -> list[str]:
    """The orders that understand every part of the filter."""
    state = chosen.get("state")
    names = ("requeue", "forget") if state == "failed" else ("cancel",) if state in _LIVE else ()
    rest = chosen.keys() - {"state", "namespace"}
    return [name for name in names if viewer.may(*BULK[name].scopes) and rest <= set(BULK[name].filters)]


_LIVE = (None, "waiting", "running", "live", *_GROUPS["live"])


async def order(viewer: Viewer) -> Response:
    """Count what the filter selects and ask; once that number has been confirmed, do it."""
    fields = await read_viewers_form(viewer)
    chosen = {name: fields[name] for name in _FILTERS if fields.get(name)}
    name = fields.get("order", "")
    if name not in _orders(viewer, chosen):
        raise Refused(422, {"detail": "there is no such order for this filter"})
    bulk = BULK[name]
    parts = _bulk_filters(bulk, chosen)
    count = sum([(await _send(viewer, bulk, part, chosen, dry_run=True))["matched"] for part in parts])
    agreed = fields.get("count", "")
    if not count or not agreed.isdecimal() or len(agreed) > _MAX_DIGITS or count > int(agreed):
        # Also where more match than were shown: that number is what people agree to. Fewer are no harm.
        values = {"bulk": bulk, "name": name, "chosen": chosen, "count": count, "back": address(chosen)}
        return page(viewer, "bulk.html", values | {"former": agreed, "reason": fields.get("reason", "")})
    outcome = await _carry_out(viewer, bulk, chosen, count, fields.get("reason", ""))
    response = Response(status_code=303, headers={"Location": address(chosen)})
    others = f", and {plural(outcome.dependents, 'other')} that waited for them" if outcome.dependents else ""
    end = f" Then that was refused: {outcome.refusal}." if outcome.refusal else ""
    notify(viewer.request, response, f"{plural(outcome.done, 'task')} of {count:,} {bulk.done}{others}.{end}")
    return response


@dataclass(slots=True, kw_only=True)
class _Outcome:
    """The number of tasks that an order was carried out on, and the refusal that ended it before the last one."""

    done: int = 0
    dependents: int = 0
    refusal: str = ""


async def _carry_out(viewer: Viewer, bulk: BulkOrder, chosen: Mapping[str, str], count: int, reason: str) -> _Outcome:
    """Give the order for so many tasks at most. Raises Refused where nothing was done."""
    outcome = _Outcome()
    try:
        for part in _bulk_filters(bulk, chosen):
            answer = {"remaining": 1}
            while answer["remaining"] and outcome.done < count:
                limit = min(count - outcome.done, _BATCH)
                answer = await _send(viewer, bulk, part, chosen, dry_run=False, limit=limit, reason=reason)
                outcome.done += answer[bulk.count]
                outcome.dependents += answer.get("dependents", 0)
                if not answer[bulk.count]:
                    break
    except Refused as refusal:
        if not outcome.done:
            raise
        outcome.refusal = refusal.sentence
    return outcome


def _bulk_filters(bulk: BulkOrder, chosen: Mapping[str, str]) -> list[dict[str, Any]]:
    """The filters of the calls, one for each state where there are several."""
    filters: dict[str, Any] = {field: chosen[field] for field in bulk.filters if field in chosen}
    if "label" in filters:
        filters["label"] = [filters["label"]]
    state = chosen.get("state")
    if bulk is BULK["cancel"] and state not in (None, "live"):
        return [filters | {"state": one} for one in _GROUPS.get(state or "", (state,))]
    return [filters or {"all": True}]


async def _send(
    viewer: Viewer, bulk: BulkOrder, filters: Mapping[str, Any], chosen: Mapping[str, str], **options: Any
) -> Any:
    query = {"namespace": chosen.get("namespace")}
    return (await viewer.api.ask("POST", bulk.path, query=query, body={"filter": filters, **options})).value
