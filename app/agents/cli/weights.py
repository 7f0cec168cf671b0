"""`convener weights`: weights of the agents, their reasons and targets, and orders about them."""

from collections.abc import Mapping
from datetime import datetime
from typing import Annotated

import typer
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from app.kernel.agents import agent_type
from app.terminal import options, output
from app.terminal.client import Client, Json, Url, connect
from app.terminal.options import Limit, Reason
from app.terminal.output import Format, Output

app = typer.Typer(
    help="See what share of the leases each agent has and why; command weights, or override them for a while.",
    no_args_is_help=True,
)
Shares = Annotated[
    list[str], typer.Argument(metavar="AGENT=WEIGHT...", help="shares of 1; agents that are not named share the rest")
]


@app.command(epilog=output.examples("convener weights get", "convener weights get -o json | jq .weights"))
def get(url: Url = None, fmt: Output = Format.TABLE) -> None:
    """Show the weights in force, why each last changed, and where it is headed."""
    with connect(url) as client:
        _show(client, client.get("/weights"), fmt)


@app.command(
    name="set",
    epilog=output.examples(
        "convener weights set reflection=0.25 --reason 'reviews lag behind'",
        "convener weights set generation=0.3 ranking=0.3 -o json",
    ),
)
def command(shares: Shares, reason: Reason = "", url: Url = None, fmt: Output = Format.TABLE) -> None:
    """Send the weights there, a minute apart by at most half of each; from there on results move them."""
    _order("/weights", {"weights": _parse_shares(shares), "reason": reason}, url, fmt)


@app.command(
    epilog=output.examples(
        "convener weights override ranking=0.5 --for 30min --reason 'a deadline'",
        "convener weights override generation=0.4 --for 2h -o json",
    )
)
def override(
    shares: Shares,
    span: Annotated[str, options.duration_option("--for", "until it expires, at most 7d")],
    reason: Reason = "",
    url: Url = None,
    fmt: Output = Format.TABLE,
) -> None:
    """Send the weights there whatever the agents achieve, for a while; then the automatic ones go on."""
    body = {"weights": _parse_shares(shares), "reason": reason, "expires_in_seconds": options.parse_duration(span)}
    _order("/weights/override", body, url, fmt)


@app.command(epilog=output.examples("convener weights release --reason 'the deadline is over'"))
def release(reason: Reason = "", url: Url = None, fmt: Output = Format.TABLE) -> None:
    """End the override before it expires."""
    with connect(url) as client:
        _show(client, client.remove("/weights/override", reason=reason), fmt)


@app.command(epilog=output.examples("convener weights history", "convener weights history --limit 5 -o json"))
def history(limit: Limit = 20, url: Url = None, fmt: Output = Format.TABLE) -> None:
    """Show every step and every order, newest first."""
    options.show_list("/weights/history", _history_table, url, fmt, limit=limit)


def _order(path: str, body: Json, url: str | None, fmt: Format) -> None:
    with connect(url) as client:
        _show(client, client.put(path, body), fmt)


def _show(client: Client, body: Json, fmt: Format) -> None:
    output.present(body, fmt, lambda: _weights_table(body, client.now))


def _history_table(items: list[Json], now: datetime) -> Table:
    table = output.table("VERSION", "AT", "BY", "CAUSE", "CHANGES", "REASON", numbers=["VERSION"], flexible="CHANGES")
    for item in items:
        values = (output.age(item["at"], now), item["changed_by"], item["cause"], _changes(item), item["reason"])
        table.add_row(output.cell(item["version"]), *map(output.cell, values))
    return table


def _parse_shares(shares: list[str]) -> dict[str, float]:
    """The weights in `agent=share` words. Raises BadParameter."""
    weights: dict[str, float] = {}
    for share in shares:
        name, _, value = share.partition("=")
        try:
            agent, weight = agent_type(name).value, float(value)
        except ValueError as error:
            why = str(error) if value.replace(".", "", 1).isdigit() else "write AGENT=WEIGHT, like ranking=0.3"
            raise typer.BadParameter(f"{share}: {why}") from None
        if not 0 <= weight <= 1:
            raise typer.BadParameter(f"{share}: a weight is a share from 0 to 1")
        if agent in weights:
            raise typer.BadParameter(f"{share}: name each agent once")
        weights[agent] = weight
    return weights


def _weights_table(body: Json, now: datetime) -> RenderableType:
    numbers = ["WEIGHT", "HEADED FOR", "CONFIGURED"]
    table = output.table("AGENT", *numbers, "WHY", numbers=numbers, flexible="WHY")
    adjustments = body["agent_weight_adjustments"]
    for name, weight in body["weights"].items():
        why = adjustments[name]["reason"] if name in adjustments else None
        shares = (f"{share:.4f}" for share in (weight, body["target"][name], body["configured"][name]))
        table.add_row(*map(output.cell, (name.removesuffix("_agent"), *shares, why)))
    return Group(table, Text(""), output.details(_facts(body, now)))


def _facts(body: Json, now: datetime) -> list[tuple[str, RenderableType | None]]:
    override, rule = body["override"], body["rule"]
    until = f"{_shares(override['weights'])}, ends {output.age(override['expires_at'], now)}" if override else None
    about = output.age(body["at"], now)
    steps = f"at most {rule['largest_step']:.0%} of each, {rule['least_seconds']:.0f} s apart"
    return [
        ("Version", f"{body['version']}, {about} by {body['changed_by']}" if about else "none yet: as configured"),
        ("Cause", f"{body['cause']}: {body['reason']}"),
        ("Heading", body["heading"]),
        ("Override", until),
        ("Shares", _shares(body["shares"]) if body["shares"] != body["weights"] else None),
        ("Steps", steps),
    ]


def _shares(weights: Mapping[str, float]) -> str:
    return ", ".join(f"{name.removesuffix('_agent')} {weight:.3g}" for name, weight in weights.items())


def _changes(item: Json) -> str | None:
    """The changed weights, the largest relative change first."""
    changes = sorted(item["agent_weight_adjustments"].items(), key=lambda change: -_relative_change(change[1]))
    parts = [
        f"{name.removesuffix('_agent')} {adjustment['previous_weight']:.3g} to {adjustment['new_weight']:.3g}"
        for name, adjustment in changes
    ]
    return ", ".join(parts) or None


def _relative_change(adjustment: Json) -> float:
    return abs(float(adjustment["new_weight"]) / float(adjustment["previous_weight"]) - 1)
