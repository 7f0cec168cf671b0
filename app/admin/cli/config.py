"""`convener config`: the configuration of pool, limits, weights and iterations, and its history."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Annotated, Any

import typer
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from app.admin.rules.config import apply_merge_patch
from app.kernel.changes import Change, changes
from app.kernel.modes import Mode
from app.kernel.text import plural
from app.terminal import output
from app.terminal.bulk import Yes
from app.terminal.client import Client, Json, Url, again_if_stale, connect
from app.terminal.options import Limit, Reason, confirm, show_list
from app.terminal.output import Format, Output

app = typer.Typer(
    help="Read, change and roll back the configuration: pool, limits, weights, iterations, and the mode.",
    no_args_is_help=True,
)
_SECTIONS = ("worker_pool", "resource_limits", "agent_weights", "test_time_compute")
VersionArgument = Annotated[int, typer.Argument(metavar="VERSION", help="as `convener config history` shows it", min=1)]


@dataclass(frozen=True, slots=True, kw_only=True)
class _ConfigChange:
    """A request that changes the configuration."""

    method: str
    path: str
    body: Json
    reason: str

    def send(self, client: Client, version: int, *, dry_run: bool) -> Json:
        """Send the change, or preview it. A PATCH body holds values only, so its reason is in the query."""
        body, query = self.body, {"dry_run": "true"} if dry_run else {}
        if self.method == "PATCH":
            query["reason"] = self.reason
        else:
            body = {**body, "reason": self.reason}
        return client.change(self.method, self.path, body, version=version, **query)


def patch_of(values: list[str]) -> Json:
    """The merge patch that `path=value` arguments make up together. Raises BadParameter."""
    patch: Json = {}
    for value in values:
        path, separator, text = value.partition("=")
        if not separator or not all(path.split(".")):
            raise typer.BadParameter(f"{value} is not PATH=VALUE, like worker_pool.max_workers=20")
        try:
            part: Any = json.loads(text)  # each value of the configuration is a number, true or false
        except ValueError:
            raise typer.BadParameter(f"the value of {path} must be a number, true or false, not {text}") from None
        for name in reversed(path.split(".")):
            part = {name: part}
        patch = apply_merge_patch(patch, part)
    return patch


@app.command(
    epilog=output.examples(
        "convener config get",
        "convener config get --version 3",
        "convener config get -o json | jq .effective_weights",
    )
)
def get(
    version: Annotated[int | None, typer.Option(help="a former version", min=1)] = None,
    url: Url = None,
    fmt: Output = Format.TABLE,
) -> None:
    """Show the configuration in force, its version and mode, and what the weights come to."""
    with connect(url) as client:
        config = client.get("/config" if version is None else f"/config/versions/{version}")
        when = output.age(config["changed_at"], client.now)
    last_change = f"{when} by {config['changed_by']}: {config['reason'] or 'no reason given'}"
    output.present(config, fmt, lambda: _overview(config, last_change))


@app.command(
    name="set",
    epilog=output.examples(
        "convener config set worker_pool.max_workers=20 --reason 'a smaller grant'",
        "convener config set agent_weights.generation_agent=0.4 test_time_compute.enabled=true --yes",
    ),
)
def set_values(
    values: Annotated[list[str], typer.Argument(metavar="PATH=VALUE...", help="as `convener config get` shows paths")],
    reason: Reason = "",
    yes: Yes = False,
    url: Url = None,
    fmt: Output = Format.TABLE,
) -> None:
    """Change some values. Shows what that changes, and asks; a weight gets just its share, the others the rest."""
    _change_config(_ConfigChange(method="PATCH", path="/config", body=patch_of(values), reason=reason), yes, url, fmt)


@app.command(epilog=output.examples("convener config diff", "convener config diff 3", "convener config diff 3 -o json"))
def diff(
    version: Annotated[
        int | None,
        typer.Argument(metavar="VERSION", help="a former version; the one before the last by default", min=1),
    ] = None,
    url: Url = None,
    fmt: Output = Format.TABLE,
) -> None:
    """Show what has changed since a version."""
    with connect(url) as client:
        now = client.get("/config")
        former = client.get(f"/config/versions/{version or max(1, now['version'] - 1)}")
    differences = changes(_content(former), _content(now))
    as_json = [{"path": change.path, "before": change.before, "after": change.after} for change in differences]
    answer = {"from": former["version"], "to": now["version"], "changes": as_json}
    output.present(answer, fmt, lambda: _differences(differences))


@app.command(epilog=output.examples("convener config history", "convener config history --limit 5 -o json"))
def history(
    limit: Limit = 20,
    url: Url = None,
    fmt: Output = Format.TABLE,
) -> None:
    """Show who changed what, when and why, newest first."""
    show_list("/config/history", _history_table, url, fmt, limit=limit)


@app.command(
    epilog=output.examples(
        "convener config rollback 3 --reason 'too few workers'", "convener config rollback 3 --yes -o json"
    )
)
def rollback(
    version: VersionArgument,
    reason: Reason = "",
    yes: Yes = False,
    url: Url = None,
    fmt: Output = Format.TABLE,
) -> None:
    """Put a former version in force again, with its mode. Shows what that changes, and asks."""
    _change_config(
        _ConfigChange(method="POST", path="/config/rollback", body={"version": version}, reason=reason), yes, url, fmt
    )


@app.command(
    epilog=output.examples("convener config mode", "convener config mode trusted_tester --reason 'guests until Friday'")
)
def mode(
    new_mode: Annotated[Mode | None, typer.Argument(metavar="MODE", help=", ".join(Mode))] = None,
    reason: Reason = "",
    yes: Yes = False,
    url: Url = None,
    fmt: Output = Format.TABLE,
) -> None:
    """Show the mode, or change it: the pool gets the bounds of the new mode, all else stays."""
    if new_mode is not None:
        request = _ConfigChange(method="POST", path="/config/mode", body={"mode": new_mode.value}, reason=reason)
        _change_config(request, yes, url, fmt)
        return
    with connect(url) as client:
        config = client.get("/config")
    facts = [("Mode", config["mode"]), *_conduct(config["conduct"])]
    answer = {"mode": config["mode"], "conduct": config["conduct"]}
    output.present(answer, fmt, lambda: output.details(facts))


def _change_config(request: _ConfigChange, yes: bool, url: str | None, fmt: Format) -> None:
    """Preview, confirm and send a change; start again once if the configuration has changed in between."""
    with connect(url) as client:
        # A preview that was built on an outdated version is worth nothing, so a second attempt asks again.
        answer = again_if_stale(lambda: _attempt(client, request, yes, fmt), "the configuration")
    if fmt is Format.JSON:
        output.write_json(answer)
    elif not answer["changes"]:
        output.show(Text(f"nothing to change; the configuration is at version {answer['version']}"))
    else:
        table = _differences([Change(**change) for change in answer["changes"]])
        output.show(Group(table, *_notes(answer), Text(f"the configuration is at version {answer['version']} now")))


def _attempt(client: Client, request: _ConfigChange, yes: bool, fmt: Format) -> Json:
    version = client.get("/config")["version"]
    if not yes:
        preview = request.send(client, version, dry_run=True)
        if not preview["changes"]:
            return preview
        if fmt is Format.TABLE:  # to stderr: what is on stdout must be the result alone
            output.errors().print(_differences([Change(**change) for change in preview["changes"]]))
        confirm(f"change {plural(len(preview['changes']), 'value')}?", fmt)
    return request.send(client, version, dry_run=False)


def _overview(config: Json, last_change: str) -> RenderableType:
    numbers = ["VALUE", "IN EFFECT"]
    table = output.table("PATH", *numbers, numbers=numbers, optional=["IN EFFECT"])
    for section in _SECTIONS:
        for name, value in config[section].items():
            effect = _number(config["effective_weights"][name]) if section == "agent_weights" else None
            table.add_row(output.cell(f"{section}.{name}"), _value(value), output.cell(effect))
    facts = [("Version", str(config["version"])), ("Mode", config["mode"]), *_conduct(config["conduct"])]
    head = output.details([*facts, ("Changed", last_change)])
    return Group(head, Text(""), table, *_notes(config))


def _history_table(items: list[Json], now: datetime) -> Table:
    names = ("VERSION", "CHANGED", "BY", "ACTION", "CHANGES", "REASON")
    table = output.table(*names, numbers=["VERSION"], flexible="REASON")
    for item in items:
        paths = [change["path"].rpartition(".")[2] for change in item["changes"]]
        short = paths[0] + (f" and {len(paths) - 1} more" if len(paths) > 1 else "") if paths else None
        cells = (output.age(item["changed_at"], now), item["changed_by"], item["action"], short, item["reason"])
        table.add_row(output.cell(item["version"]), *map(output.cell, cells))
    return table


def _conduct(conduct: Json) -> list[tuple[str, str]]:
    if not conduct["scales"]:
        return [("Scaling", "none: the pool is only kept between its bounds")]
    window = output.duration(conduct["scale_down_window_seconds"])
    reads = "; reads are audited" if conduct["audits_reads"] else ""
    return [("Scaling", f"at most times {conduct['growth']:g} in a decision, down after {window}{reads}")]


def _notes(config: Json) -> list[Text]:
    return [Text(output.plain(f"{note['path']}: {note['message']}"), style="yellow") for note in config["notes"]]


def _differences(changed_values: Sequence[Change]) -> RenderableType:
    if not changed_values:
        return Text("no differences")
    table = output.table("PATH", "BEFORE", "AFTER", numbers=["BEFORE", "AFTER"])
    for change in changed_values:
        table.add_row(output.cell(change.path), _value(change.before), _value(change.after))
    return table


def _value(value: Any) -> Text:
    return output.cell(_number(value) if isinstance(value, float) else str(value).lower())


def _number(value: float) -> str:
    """Short for people; -o json has all digits."""
    return f"{value:.4g}"


def _content(config: Json) -> Json:
    return {name: config[name] for name in ("mode", *_SECTIONS)}
