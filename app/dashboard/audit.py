"""The audit log: entries with what each has changed, and whether the chain of them is unbroken."""

from collections.abc import Mapping
from typing import Any
from urllib.parse import urlencode

from starlette.responses import Response

from app.dashboard.access import HOME, Viewer, read_viewers_form
from app.dashboard.actions import whole
from app.dashboard.api_calls import Refused
from app.dashboard.rendering import page
from app.kernel import changes as change_kernel

_LIST = f"{HOME}/audit"
_LIMIT = 50
_SHOWN_CHANGES = 5


async def show(viewer: Viewer) -> Response:
    """A page of the log, newest first."""
    return await _page(viewer, {})


async def verify(viewer: Viewer) -> Response:
    """The log with the verdict on its chain, and on an end of it that somebody has noted earlier."""
    fields = await read_viewers_form(viewer)
    body = {}
    try:
        if fields.get("seq") or fields.get("digest"):
            body = {"known": {"seq": whole(fields, "seq"), "digest": fields.get("digest", "").strip()}}
        verdict = (await viewer.api.ask("POST", "/audit/verify", body=body)).value
    except Refused as refusal:
        return await _page(viewer, {"sentence": refusal.sentence}, status=refusal.status)
    return await _page(viewer, {"verdict": verdict})


async def _page(viewer: Viewer, values: Mapping[str, Any], *, status: int = 200) -> Response:
    query = viewer.request.query_params
    chosen = {"action": query["action"]} if query.get("action") else {}
    answer = await viewer.api.get("/audit", chosen, after=query.get("after"), limit=_LIMIT)
    items = [entry | {"changes": changes(entry["before"], entry["after"])} for entry in answer["items"]]
    shown = {
        "items": items,
        "chosen": chosen,
        "actions": sorted({entry["action"] for entry in items}),
        "shown_changes": _SHOWN_CHANGES,
        "first": f"{_LIST}?{urlencode(chosen)}" if chosen else _LIST,
        "following": f"{_LIST}?{urlencode(chosen | {'after': answer['next']})}" if answer["next"] else None,
        "verdict": None,
        "sentence": "",
        "list": _LIST,
    }
    return page(viewer, "audit.html", shown | dict(values), status=status)


def changes(old_state: Any, new_state: Any) -> list[tuple[str, Any, Any]]:
    """Each value that differs, by its path, as it was and as it is; None where there is none."""
    # Asked for backwards, as what is gone comes last.
    return [(change.path, change.after, change.before) for change in change_kernel.changes(new_state, old_state)]
