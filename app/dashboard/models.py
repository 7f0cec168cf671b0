"""Language models: the state of each service, limits set and detected, calls by outcome, and what they cost."""

import asyncio
from datetime import timedelta
from typing import Any
from urllib.parse import quote, urlencode

from starlette.responses import Response

from app.dashboard.access import HOME, Viewer
from app.dashboard.api_calls import read_time
from app.dashboard.rendering import page
from app.kernel.namespaces import split_name

_SPANS = {"hour": timedelta(hours=1), "day": timedelta(days=1), "week": timedelta(days=7)}
_USAGES = ("model", "agent", "goal")
_LIMIT, _SHOWN_ROWS, _SHOWN_PERMITS = 50, 25, 50


async def show(viewer: Viewer) -> Response:
    """All that permits are granted for, with what calls of the last hour, day or week came to."""
    query = viewer.request.query_params
    span = query.get("span", "")
    span = span if span in _SPANS else "hour"
    models, permits, budgets, now = await asyncio.gather(
        viewer.api.get("/llm/models", after=query.get("after"), limit=_LIMIT),
        viewer.api.get("/llm/permits", limit=_SHOWN_PERMITS),
        viewer.api.get("/llm/budgets", after=query.get("budgets_after"), limit=_LIMIT),
        read_time(viewer.api),
    )
    since = (now - _SPANS[span]).isoformat()
    # One after the other: of what grows with the history each key may have one at a time.
    usage = {by: (await viewer.api.get("/llm/usage", by=by, since=since, limit=500))["items"] for by in _USAGES}
    values = {
        "items": models["items"],
        "by_model": {row["name"]: row for row in usage["model"]},
        "usage": {by: [_row(by, row) for row in rows[:_SHOWN_ROWS]] for by, rows in usage.items()},
        "counts": {by: len(rows) for by, rows in usage.items()},
        "permits": permits,
        "budgets": [_budget(budget) for budget in budgets["items"]],
        "more_budgets": _address(span, budgets_after=budgets["next"]) if budgets["next"] else None,
        "span": span,
        "spans": list(_SPANS),
        "following": _address(span, after=models["next"]) if models["next"] else None,
    }
    return page(viewer, "models.html", values)


def _address(span: str, **places: str) -> str:
    return f"{HOME}/models?{urlencode({'span': span} | places)}"


def _row(by: str, usage: dict[str, Any]) -> dict[str, Any]:
    """A line of a table of calls; of a goal with the address of its page."""
    outcomes = usage["outcomes"]
    successes, refusals = outcomes.get("success", 0), outcomes.get("rate_limited", 0)
    counts = {"successes": successes, "refusals": refusals, "others": usage["calls"] - successes - refusals}
    name, address = usage["name"], None
    if by == "goal" and name:
        namespace, name = split_name(name)
        address = f"{HOME}/goals/{quote(name or '', safe='')}?{urlencode({'namespace': namespace})}"
    return usage | counts | {"name": name or "none", "address": address}


def _budget(budget: dict[str, Any]) -> dict[str, Any]:
    """A budget with the share of it that is used: of its money, or its tokens where that is more."""
    uses = [
        (budget[f"spent_{unit}"] + budget[f"reserved_{unit}"]) / budget[name]
        for unit, name in (("usd", "money_budget"), ("tokens", "token_budget"))
        if budget[name]
    ]
    return budget | {"share": max(uses, default=0.0)}
