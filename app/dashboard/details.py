"""Pages with more than a list: a decision with its reasons, agents with their weights, models with their usage."""

import asyncio
from collections.abc import Mapping, Sequence
from typing import Any

from starlette.responses import Response

from app.dashboard.access import Viewer, read_viewers_form
from app.dashboard.actions import number, whole
from app.dashboard.api_calls import Refused
from app.dashboard.rendering import page
from app.dashboard.sparklines import sparkline
from app.kernel.access import Scope


async def show_decision(viewer: Viewer) -> Response:
    """A decision: inputs, need, each limit, action; what else could have been decided."""
    return await _decision_page(viewer, {})


async def replay_decision(viewer: Viewer) -> Response:
    """The decision, and whether today's rules decide the same from its inputs."""
    await read_viewers_form(viewer)
    answer = await viewer.api.ask("POST", f"/scaling/decisions/{viewer.request.path_params['decision_id']}/replay")
    return await _decision_page(viewer, {"replay": answer.value})


async def try_decision(viewer: Viewer) -> Response:
    """The decision beside another that would have been made under another configuration."""
    fields = await read_viewers_form(viewer)
    bounds = {name: whole(fields, name) for name in ("min_workers", "max_workers") if fields.get(name)}
    body: dict[str, Any] = {"decision_id": whole(fields, "decision_id")}
    if bounds:
        body["config"] = {"worker_pool": bounds}
    if fields.get("wait_target_seconds"):
        body["wait_target_seconds"] = number(fields, "wait_target_seconds")
    if fields.get("mode"):
        body["mode"] = fields["mode"]
    try:
        outcome = (await viewer.api.ask("POST", "/scaling/what-if", body=body)).value
    except Refused as refusal:
        return await _decision_page(viewer, {"refusal": refusal, "tried": fields})
    return await _decision_page(viewer, {"outcome": outcome, "tried": fields})


async def _decision_page(viewer: Viewer, values: Mapping[str, Any]) -> Response:
    decision_id = viewer.request.path_params["decision_id"]
    decision = await viewer.api.get(f"/scaling/decisions/{decision_id}", inputs=True)
    nothing: dict[str, Any] = {"replay": None, "outcome": None, "refusal": None, "tried": {}}
    return page(viewer, "decision.html", nothing | {"decision": decision} | dict(values))


async def show_agents(viewer: Viewer) -> Response:
    """The agents with what they achieve, and the weights that follow from it."""
    agents, weights, history = await asyncio.gather(
        viewer.api.get("/agents"), viewer.api.get("/weights"), viewer.api.get("/weights/history", limit=50)
    )
    by_agent = {
        agent["agent_type"]: [version["weights"].get(f"{agent['agent_type']}_agent") for version in history["items"]]
        for agent in agents["items"]
    }
    curves = {name: sparkline(_percent(values), "% weight") for name, values in by_agent.items()}
    values = {"agents": agents["items"], "weights": weights, "history": history["items"], "curves": curves}
    return page(viewer, "agents.html", values)


def _percent(newest_first: Sequence[float | None]) -> list[float | None]:
    return [None if value is None else 100 * value for value in reversed(newest_first)]


async def verify_audit(viewer: Viewer) -> Response:
    """Whether the audit log is as it was written."""
    await read_viewers_form(viewer)
    verdict = (await viewer.api.ask("POST", "/audit/verify", body={})).value
    return page(viewer, "verdict.html", {"verdict": verdict})


async def show_models(viewer: Viewer) -> Response:
    """The language models with their state, and what calls came to in the last hour."""
    models = await viewer.api.get("/llm/models")
    budgets = await viewer.api.get("/llm/budgets") if viewer.may(Scope.READ) else {"items": []}
    usage = {}
    # One after the other: of what grows with the history each key may have one at a time.
    for by in ("model", "agent", "goal"):
        usage[by] = (await viewer.api.get("/llm/usage", by=by, limit=20))["items"]
    return page(viewer, "models.html", {"items": models["items"], "usage": usage, "budgets": budgets["items"]})
