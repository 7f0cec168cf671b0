"""The page of a decision on the pool: its reasons, its replay, and what would have been decided otherwise."""

from collections.abc import Mapping
from typing import Any

from starlette.responses import Response

from app.dashboard.access import Viewer, read_viewers_form
from app.dashboard.actions import number, whole
from app.dashboard.api_calls import Refused
from app.dashboard.rendering import page


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
