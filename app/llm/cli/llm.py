"""`convener llm`: limits of language models, live permits, and usage."""

import json
from datetime import datetime
from typing import Annotated, Any
from urllib.parse import quote

import typer
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from app.llm.cli import budgets
from app.terminal import options, output
from app.terminal.client import Client, Json, Url, again_if_stale, connect
from app.terminal.options import Limit, Reason, moment_option
from app.terminal.output import Format, Output

app = typer.Typer(
    help="See and limit calls of language models: which may be called, rates, concurrency, prices, usage, permits.",
    no_args_is_help=True,
)
models = typer.Typer(help="Language models, their limits, and how their services stand.", no_args_is_help=True)
permits = typer.Typer(help="Permits for calls of language models.", no_args_is_help=True)
app.add_typer(models, name="models")
app.add_typer(permits, name="permits")
app.add_typer(budgets.app, name="budgets")

_SINCE = "calls since then, by whole hours where that is over two hours ago; an hour ago by default"
_LIMITS = (
    "requests_per_window",
    "tokens_per_window",
    "window_seconds",
    "burst",
    "token_burst",
    "max_concurrency",
    "fallback_models",
    "input_price_per_million_tokens",
    "output_price_per_million_tokens",
)
ModelArgument = Annotated[str, typer.Argument(metavar="MODEL", help="as callers name it, like gpt-4.1")]


@models.command(
    epilog=output.examples("convener llm models ls", "convener llm models ls -o json | jq '.items[].limit'")
)
def ls(limit: Limit = 100, url: Url = None, fmt: Output = Format.TABLE) -> None:
    """List language models: calls under way, what their services bear, and whether they work."""
    options.show_list("/llm/models", _model_table, url, fmt, limit=limit)


@models.command(epilog=output.examples("convener llm models get gpt-4.1", "convener llm models get gpt-4.1 -o json"))
def get(model: ModelArgument, url: Url = None, fmt: Output = Format.TABLE) -> None:
    """Show the limits of a model, and how its service stands."""
    with connect(url) as client:
        item = client.get(_path(model))
        used_ago = output.age(item["used_at"], client.now)
    output.present(item, fmt, lambda: _model_details(item, used_ago))


@models.command(
    name="set",
    epilog=output.examples(
        "convener llm models set gpt-4.1 requests_per_window=500 tokens_per_window=200000",
        "convener llm models set gpt-4.1 max_concurrency=8 fallback_models=gpt-4.1-mini,gpt-4.1-nano",
        "convener llm models set gpt-4.1 tokens_per_window=none -o json",
    ),
)
def set_limits(
    model: ModelArgument,
    values: Annotated[list[str], typer.Argument(metavar="NAME=VALUE...", help=f"{', '.join(_LIMITS)}; none: no limit")],
    reason: Reason = "",
    url: Url = None,
    fmt: Output = Format.TABLE,
) -> None:
    """Change some limits of a model; the others stay. In force from the next permit on."""
    changes = _changes(values)
    with connect(url) as client:
        item = again_if_stale(lambda: _change(client, model, changes, reason), "this model")
    output.present(item, fmt, lambda: _model_details(item, None))


@models.command(epilog=output.examples("convener llm models add gpt-4.1", "convener llm models add gpt-4.1 -o json"))
def add(model: ModelArgument, reason: Reason = "", url: Url = None, fmt: Output = Format.TABLE) -> None:
    """Let callers ask for a model. Its limits stay where it has some."""
    with connect(url) as client:
        item = again_if_stale(lambda: _change(client, model, {}, reason), "this model")
    output.present(item, fmt, lambda: _model_details(item, None))


@models.command(epilog=output.examples("convener llm models rm gpt-4.1"))
def rm(model: ModelArgument, reason: Reason = "", url: Url = None) -> None:
    """Let nobody ask for a model any more, and forget its limits. Calls that are under way go on."""
    with connect(url) as client:
        client.delete(_path(model), reason=reason)
    output.note(f"{model} is not listed any more")


@app.command(epilog=output.examples("convener llm reset gpt-4.1", "convener llm reset gpt-4.1 -o json"))
def reset(model: ModelArgument, reason: Reason = "", url: Url = None, fmt: Output = Format.TABLE) -> None:
    """Lift the cool-down of a model, close its breaker, and forget what was measured of its service."""
    with connect(url) as client:
        item = client.post(f"{_path(model)}/reset", {}, reason=reason)
    output.present(item, fmt, lambda: _model_details(item, None))


@app.command(
    epilog=output.examples(
        "convener llm usage", "convener llm usage --by goal --since 24h", "convener llm usage --by agent -o json"
    )
)
def usage(
    by: Annotated[str, typer.Option(help="model, agent, goal or key")] = "model",
    since: Annotated[str | None, moment_option("--since", _SINCE)] = None,
    limit: Limit = 100,
    url: Url = None,
    fmt: Output = Format.TABLE,
) -> None:
    """Show calls, tokens, costs and latencies, those with most calls first."""
    if by not in ("model", "agent", "goal", "key"):
        raise typer.BadParameter(f"{by} is none of model, agent, goal and key", param_hint="--by")
    with connect(url) as client:
        body = client.get("/llm/usage", by=by, since=since, limit=limit)
    if fmt is Format.JSON:
        output.write_json(body)
        return
    numbers = ("CALLS", "FAILED", "PROMPT", "COMPLETION", "COST", "LATENCY", "P95")
    table = output.table(by.upper(), *numbers, numbers=numbers, flexible=by.upper())
    for item in body["items"]:
        failures = item["calls"] - item["outcomes"].get("success", 0)
        tokens = (f"{item['prompt_tokens']:,}", f"{item['completion_tokens']:,}")
        latencies = (_milliseconds(item["latency_ms"]["mean"]), _milliseconds(item["latency_ms"]["p95"]))
        values = (item["calls"], failures, *tokens, f"${item['cost_usd']:.4f}", *latencies)
        table.add_row(output.cell(item["name"]), *map(output.cell, values))
    output.show(table)


@permits.command(name="ls", epilog=output.examples("convener llm permits ls", "convener llm permits ls -o json"))
def live(limit: Limit = 100, url: Url = None, fmt: Output = Format.TABLE) -> None:
    """List who calls a language model right now, the oldest first."""
    options.show_list("/llm/permits", _permit_table, url, fmt, limit=limit)


def _model_table(items: list[Json], now: datetime) -> Table:
    numbers = ("IN USE", "LIMIT", "LATENCY", "REQUESTS", "TOKENS")
    table = output.table("MODEL", *numbers, "SERVICE", "USED", numbers=numbers, flexible="MODEL")
    for item in items:
        rates = (_rate(item, "requests_per_window"), _rate(item, "tokens_per_window"))
        values = (item["in_use"], item["limit"], _milliseconds(item["mean_latency_ms"]), *rates)
        table.add_row(
            output.cell(item["model"]),
            *map(output.cell, values),
            _service(item),
            output.cell(output.age(item["used_at"], now)),
        )
    return table


def _permit_table(items: list[Json], now: datetime) -> Table:
    names, flexible = ("PERMIT", "MODEL", "AGENT", "GOAL", "GRANTED", "EXPIRES"), ["MODEL", "GOAL"]
    table = output.table(*names, whole=["PERMIT"], flexible=flexible, optional=["GRANTED", "GOAL"])
    for item in items:
        cells = (item["permit_id"], item["model"], item["agent_type"], item["goal_id"])
        times = (output.age(item["granted_at"], now), output.age(item["expires_at"], now))
        table.add_row(*map(output.cell, (*cells, *times)))
    return table


def _path(model: str) -> str:
    return f"/llm/models/{quote(model, safe='/:')}"


def _change(client: Client, model: str, changes: Json, reason: str) -> Json:
    item = client.get(_path(model))
    body = {name: item[name] for name in _LIMITS} | changes
    return client.change("PUT", _path(model), body, version=item["version"], reason=reason)


def _changes(values: list[str]) -> Json:
    """The limits in `name=value` words. Raises BadParameter."""
    changes: Json = {}
    for value in values:
        name, separator, text = value.partition("=")
        if not separator or name not in _LIMITS:
            names = ", ".join(_LIMITS)
            raise typer.BadParameter(f"{value} is not NAME=VALUE, like burst=20; names are {names}")
        changes[name] = _value(name, text)
    return changes


def _value(name: str, text: str) -> Any:
    if name == "fallback_models":
        return [] if text == "none" else [part.strip() for part in text.split(",") if part.strip()]
    if text == "none":
        return None
    try:
        return json.loads(text)
    except ValueError:
        raise typer.BadParameter(f"the value of {name} must be a number or none, not {text}") from None


def _model_details(item: Json, used_ago: str | None) -> RenderableType:
    table = output.table("LIMIT", "VALUE", numbers=["VALUE"])
    for name in _LIMITS:
        table.add_row(output.cell(name), output.cell(_limit(item[name])))
    head = output.details(
        [
            ("Model", item["model"]),
            ("Version", str(item["version"])),
            ("Service", _service(item)),
            ("Calls", f"{item['in_use']} of {item['limit']} that may be under way at once"),
            ("Latency", _milliseconds(item["mean_latency_ms"])),
            ("Key", f"expires at {item['key_expires_at']}" if item["key_expires_at"] else None),
            ("Used", used_ago),
            ("Held back", ", ".join(caller["caller"] for caller in item["held_back"]) or None),
        ]
    )
    return Group(head, Text(""), table)


_STATES = {
    "key_expired": "refuses the key",
    "quota_exhausted": "quota used up",
    "maintenance": "under maintenance",
    "loading": "loading the model",
}


def _service(item: Json) -> Text:
    if not item["is_listed"]:
        return Text(f"not listed, so nobody may call it: convener llm models add {item['model']}", style="yellow")
    if words := _STATES.get(item["state"]):
        return Text(f"{words}, until {item['state_until']}" if item["state_until"] else words, style="red")
    if item["breaker"] == "open":
        return Text(f"failing, tried again in {output.duration(item['breaker_open_seconds'])}", style="red")
    if item["breaker"] == "half_open":
        return Text("failing, the next call tries it", style="yellow")
    if item["cooldown_seconds"]:
        return Text(f"cooling down for {output.duration(item['cooldown_seconds'])}", style="yellow")
    return Text("works", style="green")


def _rate(item: Json, name: str) -> str | None:
    return None if item[name] is None else f"{item[name]:,} / {output.duration(item['window_seconds'])}"


def _milliseconds(value: float | None) -> str | None:
    return None if value is None else f"{value:,.0f} ms"


def _limit(value: Any) -> str | None:
    if isinstance(value, list):
        return ", ".join(value)
    return None if value is None else f"{value:,}" if isinstance(value, int) else f"{value:g}"
