"""Research goals: their list, and the page of one with what it has reached, what it cost, and why it goes on or not."""

import asyncio
from collections.abc import Mapping, Sequence
from itertools import accumulate
from typing import Any
from urllib.parse import urlencode

from starlette.responses import Response

from app.dashboard.access import HOME, Viewer
from app.dashboard.api_calls import Refused
from app.dashboard.charts import UNITS, Chart, Series, chart, time_unit
from app.dashboard.rendering import amount, dollars, duration, page
from app.goals.rules.goals import GoalState

_LIST = f"{HOME}/goals"
_FILTERS = ("state", "namespace")
_LIMIT = 50
# As many as the API gives at once, and as many as a goal can have.
_MOST_AT_ONCE, _MOST = 500, 1000
_SHOWN_ITERATIONS = 25
# From this share on the API gives notice.
_NEAR = 0.8
_LIMITS = {"time": "Time", "compute": "Compute", "money": "Money", "tokens": "Tokens", "iterations": "Iterations"}


async def show(viewer: Viewer) -> Response:
    """A page of the list."""
    query = viewer.request.query_params
    chosen = {name: query[name] for name in _FILTERS if query.get(name)}
    answer = await viewer.api.get("/goals", chosen, after=query.get("after"), limit=_LIMIT)
    values = {"items": answer["items"], "chosen": chosen, "states": list(GoalState), "first": _address(chosen)}
    return page(
        viewer,
        "goals.html",
        values | {"following": _address(chosen | {"after": answer["next"]}) if answer["next"] else None},
    )


async def show_one(viewer: Viewer) -> Response:
    """Everything about one; the tasks of one that nobody has created, as a task may name any."""
    goal_id, space = viewer.request.path_params["goal_id"], viewer.request.query_params.get("namespace")
    try:
        goal, iterations = await asyncio.gather(
            viewer.api.get(f"/goals/{goal_id}", namespace=space), _iterations(viewer, goal_id, space)
        )
    except Refused as refusal:
        chosen = {"goal_id": goal_id} | ({"namespace": space} if space else {})
        if refusal.status != 404 or not (await viewer.api.get("/tasks", chosen, limit=1))["items"]:
            raise
        return Response(status_code=303, headers={"Location": f"{HOME}/tasks?{urlencode(chosen)}"})
    is_whole = viewer.request.query_params.get("iterations") == "all"
    shown = iterations if is_whole else iterations[-_SHOWN_ITERATIONS:]
    values = {"goal": goal, "iterations": shown[::-1], "count": len(iterations), "uses": _uses(goal)}
    tasks = urlencode({"goal_id": goal["id"], "namespace": goal["namespace"]})
    return page(viewer, "goal.html", values | {"chart": quality_chart(goal, iterations), "tasks": tasks})


def _address(chosen: Mapping[str, str]) -> str:
    return f"{_LIST}?{urlencode(chosen)}" if chosen else _LIST


async def _iterations(viewer: Viewer, goal_id: str, space: str | None) -> list[Any]:
    """All that were reported, in order."""
    items: list[Any] = []
    after: int | None = 0
    while after is not None and len(items) < _MOST:
        answer = await viewer.api.get(f"/goals/{goal_id}/iterations", namespace=space, after=after, limit=_MOST_AT_ONCE)
        items, after = items + answer["items"], answer["next"]
    return items


def quality_chart(goal: Mapping[str, Any], iterations: Sequence[Mapping[str, Any]]) -> Chart | None:
    """Quality against compute; against iterations where they have cost nothing. None where too little was measured."""
    measured = [item for item in iterations if item["quality"] is not None]
    if len(measured) < 2:
        return None
    cost = measured[-1]["compute_seconds"]
    size, unit = time_unit(cost)
    places = [item["compute_seconds"] / size if cost else item["iteration"] for item in measured]
    qualities = [item["quality"] for item in measured]
    bests = list(accumulate(qualities, max))
    texts = [
        f"iteration {item['iteration']}: {amount(item['quality'], 2)} after {duration(item['compute_seconds'])}"
        for item in measured
    ]
    tops = [
        (place, item["top_quality"])
        for place, item in zip(places, measured, strict=True)
        if item["top_quality"] is not None
    ]
    best = max(measured, key=lambda item: item["quality"])
    label = f"quality of {len(measured)} iterations: from {amount(qualities[0], 2)} to {amount(qualities[-1], 2)}"
    budget = goal["constraints"].get("compute_budget_seconds")
    return chart(
        [
            Series(name="best so far", style="best", points=list(zip(places, bests, strict=True)), is_stepped=True),
            Series(name="mean of the top", style="other", points=tops),
            Series(
                name="quality of the iteration",
                style="main",
                points=list(zip(places, qualities, strict=True)),
                texts=texts,
            ),
        ],
        across=f"{UNITS[unit]} of compute on workers" if cost else "iterations",
        upright="quality",
        label=f"{label}; the best in iteration {best['iteration']}, after {duration(best['compute_seconds'])}",
        limit=budget / size if budget and cost else None,
        limit_name="compute budget",
    )


def _uses(goal: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Each limit with what is used of it, in words."""
    return [
        {
            "name": _LIMITS[use["limit"]],
            "used": _in_words(use["limit"], use["used"]),
            "allowed": _in_words(use["limit"], use["allowed"]),
            "share": use["share"],
            "level": "bad" if use["share"] >= 1 else "near" if use["share"] >= _NEAR else "",
        }
        for use in goal["usage"]
    ]


def _in_words(limit: str, value: float) -> str:
    if limit in ("time", "compute"):
        return duration(value)
    return dollars(value) if limit == "money" else amount(value)
