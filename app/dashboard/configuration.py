"""The page of the configuration: a form, what a change would do, the change itself, and the way back."""

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from starlette.responses import Response

from app.admin.api.config_schemas import DocumentIn
from app.dashboard.access import HOME, Viewer, notify, read_viewers_form
from app.dashboard.actions import whole, wrong_value
from app.dashboard.api_calls import Refused
from app.dashboard.rendering import page
from app.dashboard.suppositions import hour_chart
from app.kernel.modes import Mode

PAGE = f"{HOME}/config"
_SCHEMA = DocumentIn.model_json_schema()


@dataclass(frozen=True, slots=True, kw_only=True)
class Setting:
    """A value of the configuration: its path, its value as JSON, and what its schema allows."""

    path: str
    name: str
    value: str
    lowest: float | None
    highest: float | None
    is_switch: bool
    hint: str


async def show(viewer: Viewer) -> Response:
    """The configuration in force as a form, and its history."""
    return await _form(viewer, {})


async def preview(viewer: Viewer) -> Response:
    """The difference that the form makes, and the decision that would have come of it; changes nothing."""
    fields = _typed(await read_viewers_form(viewer))
    config = await viewer.api.ask("GET", "/config")
    try:
        patch = _patch(config.value, fields)
        if not patch:
            return await _form(viewer, {"sentence": "Nothing differs from what is in force."})
        changed = await viewer.api.ask("PATCH", "/config", query={"dry_run": True}, body=patch, if_match=config.etag)
    except Refused as refusal:
        return await _form(viewer, {"refusal": refusal, "typed": fields}, refusal.status)
    try:
        outcome = (await viewer.api.ask("POST", "/scaling/what-if", body={"config": patch})).value
    except Refused:
        outcome = None  # nothing has been decided yet
    values = {"changes": changed.value["changes"], "notes": changed.value["notes"], "outcome": outcome}
    values["hour"] = await hour_chart(viewer.api, patch) if outcome else None
    return page(viewer, "config_change.html", values | {"patch": json.dumps(patch), "version": config.value["version"]})


async def apply(viewer: Viewer) -> Response:
    """Make the change that was shown, if what is in force is still what it was compared with."""
    fields = await read_viewers_form(viewer)
    try:
        patch = json.loads(fields.get("patch", ""))
    except (ValueError, RecursionError):
        raise Refused(422, {"detail": "the change cannot be read; begin again"}) from None
    query = {"reason": fields.get("reason", "")}
    return await _change(viewer, "PATCH", "", whole(fields, "version"), body=patch, query=query)


async def roll_back(viewer: Viewer) -> Response:
    """Return to a former version."""
    fields = await read_viewers_form(viewer)
    body = {"version": whole(fields, "to"), "reason": fields.get("reason", "")}
    return await _change(viewer, "POST", "/rollback", whole(fields, "version"), body=body)


async def switch(viewer: Viewer) -> Response:
    """Change the mode."""
    fields = await read_viewers_form(viewer)
    body = {"mode": fields.get("mode", ""), "reason": fields.get("reason", "")}
    return await _change(viewer, "POST", "/mode", whole(fields, "version"), body=body)


async def _change(viewer: Viewer, method: str, path: str, version: int, **content: Any) -> Response:
    answer = await viewer.api.ask(method, f"/config{path}", if_match=f'"{version}"', **content)
    response = Response(status_code=303, headers={"Location": PAGE})
    notify(viewer.request, response, f"Version {answer.value['version']} is in force.")
    return response


async def _form(viewer: Viewer, values: Mapping[str, Any], status: int = 200) -> Response:
    config = await viewer.api.get("/config")
    history = await viewer.api.get("/config/history", limit=20)
    typed = values.get("typed", {})
    groups = {name: list(_settings(name, config[name], _SCHEMA["properties"][name], typed)) for name in _sections()}
    in_force = {setting.path: setting.value for setting in _all_settings(config)}
    shown = {"config": config, "groups": groups, "history": history["items"], "modes": list(Mode)}
    shown |= {"in_force": json.dumps(in_force)}
    return page(viewer, "config.html", {"sentence": "", "refusal": None} | shown | dict(values), status=status)


def _typed(fields: Mapping[str, str]) -> dict[str, str]:
    """The values that somebody has changed in the form; others may have been changed elsewhere since it was shown."""
    try:
        shown = json.loads(fields.get("in_force", ""))
    except (ValueError, RecursionError):
        shown = None
    former = shown if isinstance(shown, dict) else {}
    return {path: text for path, text in fields.items() if former.get(path) != (text.strip() or "null")}


def _sections() -> list[str]:
    """Those with settings of a fixed name; namespaces have names that people choose."""
    return [name for name in _SCHEMA["properties"] if name != "namespaces"]


def _all_settings(config: Mapping[str, Any]) -> Iterator[Setting]:
    for name in _sections():
        yield from _settings(name, config[name], _SCHEMA["properties"][name], {})


def _settings(path: str, section: Mapping[str, Any], schema: Any, typed: Mapping[str, str]) -> Iterator[Setting]:
    for name, part in _resolved(schema)["properties"].items():
        here, value = f"{path}.{name}", section[name]
        if isinstance(value, dict):
            yield from _settings(here, value, part, typed)
            continue
        kinds = [part, *part.get("anyOf", ())]
        bounds = [[kind[bound] for kind in kinds if bound in kind] for bound in ("minimum", "maximum")]
        yield Setting(
            path=here,
            name=here.partition(".")[2].replace(".", " ").replace("_", " "),
            value=typed.get(here, json.dumps(value)),
            lowest=bounds[0][0] if bounds[0] else None,
            highest=bounds[1][0] if bounds[1] else None,
            is_switch=any(kind.get("type") == "boolean" for kind in kinds),
            hint=part.get("description", ""),
        )


def _resolved(schema: Any) -> Any:
    """A part of the schema in place of a reference to it."""
    return _SCHEMA["$defs"][schema["$ref"].rpartition("/")[2]] if "$ref" in schema else schema


def _patch(config: Mapping[str, Any], fields: Mapping[str, str]) -> dict[str, Any]:
    """The merge patch with the values that the form has otherwise. Raises Refused."""
    patch: dict[str, Any] = {}
    for setting in _all_settings(config):
        text = fields.get(setting.path, setting.value).strip() or "null"
        try:
            value, former = json.loads(text), json.loads(setting.value)
        except (ValueError, RecursionError):
            raise wrong_value(setting.path, f"{text[:50]} is no number") from None
        if value != former or isinstance(value, bool) != isinstance(former, bool):
            _put(patch, setting.path.split("."), value)
    return patch


def _put(patch: dict[str, Any], path: list[str], value: Any) -> None:
    for name in path[:-1]:
        patch = patch.setdefault(name, {})
    patch[path[-1]] = value
