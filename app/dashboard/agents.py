"""The agents: weights and effectiveness now and over time, why they changed, and the orders of people for them."""

import asyncio
from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any

from starlette.responses import Response

from app.dashboard.access import Viewer
from app.dashboard.api_calls import read_time
from app.dashboard.charts import UNITS, Chart, Series, chart, time_unit
from app.dashboard.rendering import page, share, words
from app.kernel.agents import AgentType

# Of each kind of span as many as a chart shows.
_SPANS = {"minute": 60, "hour": 48, "day": 30}
_SECONDS = {"minute": 60.0, "hour": 3600.0, "day": 86_400.0}
_VERSIONS, _SHOWN_VERSIONS = 500, 25
_STYLES = {agent: f"c{number}" for number, agent in enumerate(AgentType, 1)}


async def show(viewer: Viewer) -> Response:
    """All six, with the history of their weights and results."""
    asked = viewer.request.query_params.get("per", "")
    per = asked if asked in _SPANS else "hour"
    api = viewer.api
    agents, weights, history, now = await asyncio.gather(
        api.get("/agents"), api.get("/weights"), api.get("/weights/history", limit=_VERSIONS), read_time(api)
    )
    trends = await asyncio.gather(*(api.get(f"/agents/{agent}", per=per, spans=_SPANS[per]) for agent in AgentType))
    values = {
        "rows": [{"agent": agent, "name": f"{agent['agent_type']}_agent"} for agent in agents["items"]],
        "weights": weights,
        "history": history["items"][:_SHOWN_VERSIONS],
        "weight_chart": weight_chart(weights, history["items"], now),
        "result_chart": result_chart(trends, per, now),
        "per": per,
        "spans": list(_SPANS),
        "agents": list(AgentType),
    }
    return page(viewer, "agents.html", values)


def weight_chart(weights: Mapping[str, Any], history: Sequence[Mapping[str, Any]], now: datetime) -> Chart | None:
    """The weights at each change, newest first as they come, until now. None where nothing has changed yet."""
    ages = [max(0.0, (now - datetime.fromisoformat(version["at"])).total_seconds()) for version in history]
    if not ages:
        return None
    size, unit = time_unit(ages[-1])
    series = []
    for agent in AgentType:
        name = f"{agent}_agent"
        earlier = [
            (-age / size, 100 * version["weights"][name])
            for age, version in zip(reversed(ages), reversed(history), strict=True)
        ]
        points = [*earlier, (0.0, 100 * weights["weights"][name])]
        series.append(Series(name=words(agent), style=_STYLES[agent], points=points, is_stepped=True))
    latest = ", ".join(f"{words(agent)} {share(weights['weights'][f'{agent}_agent'])}" for agent in AgentType)
    return chart(series, across=f"{UNITS[unit]} ago", upright="weight in %", label=f"weights over time; now {latest}")


def result_chart(trends: Sequence[Mapping[str, Any]], per: str, now: datetime) -> Chart | None:
    """Success times quality of each agent in each span; success alone for those whose results nobody has judged."""
    series = [_results(trend, _SECONDS[per], now) for trend in trends]
    label = "; ".join(f"{one.name} now {one.points[-1][1]:.2f}" for one in series if one.points)
    return chart(series, across=f"{per}s ago", upright="success times quality", label=f"results by the {per}: {label}")


def _results(trend: Mapping[str, Any], seconds: float, now: datetime) -> Series:
    agent, spans = AgentType(trend["agent_type"]), trend["trend"]
    is_judged = any(span["quality"] is not None for span in spans)
    success, quality = 1.0, None if is_judged else 1.0
    points, texts = [], []
    for span in spans:
        # Results are often judged in a later span: what nothing was learnt of stays as it was.
        success = span["successes"] / span["results"] if span["results"] else success
        quality = quality if span["quality"] is None else span["quality"]
        if quality is None:
            continue
        age = max(0.0, (now - datetime.fromisoformat(span["start"])).total_seconds())
        points.append((-age / seconds, success * quality))
        texts.append(
            f"{words(agent)}: {success * quality:.2f}, with {span['results']:,} results, {span['judged']:,} judged"
        )
    name = words(agent) + ("" if is_judged or not spans else " (success alone)")
    return Series(name=name, style=_STYLES[agent], points=points, texts=texts)
