"""`convener llm`: language models and their limits, who calls one now, and what calls came to."""

import json
from typing import Annotated, Any
from urllib.parse import quote

import typer
from rich.console import Group, RenderableType
from rich.text import Text

from app.terminal import output
from app.terminal.client import Client, Json, Refusal, Url, connect
from app.terminal.options import Limit, moment_option
from app.terminal.output import Format, Output

app = typer.Typer(
    short_help="See and limit calls of language models.",
    help="See and limit calls of language models: rates, concurrency, prices, fallbacks, usage, live permits.",
    no_args_is_help=True,
)
models = typer.Typer(help="Language models, their limits, and how their services stand.", no_args_is_help=True)
permits = typer.Typer(help="Permits for calls of language models.", no_args_is_help=True)
app.add_typer(models, name="models")
app.add_typer(permits, name="permits")

_STALE = 412
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
    with connect(url) as client:
        items, following = client.pages("/llm/models", limit)
        now = client.now
    if fmt is Format.JSON:
        output.write_json({"items": items, "next": following})
        return
    numbers = ("IN USE", "LIMIT", "LATENCY", "REQUESTS", "TOKENS")
    table = output.table("MODEL", *numbers, "SERVICE", "USED", numbers=numbers, flexible="MODEL")
    for item in items:
        rates = (_rate(item, "requests_per_window"), _rate(item, "tokens_per_window"))
        told = (item["in_use"], item["limit"], _milliseconds(item["mean_latency_ms"]), *rates)
        table.add_row(
            output.cell(item["model"]),
            *map(output.cell, told),
            _service(item),
            output.cell(output.age(item["used_at"], now)),
        )
    output.show(table)


@models.command(epilog=output.examples("convener llm models get gpt-4.1", "convener llm models get gpt-4.1 -o json"))
def get(model: ModelArgument, url: Url = None, fmt: Output = Format.TABLE) -> None:
    """Show the limits of a model, and how its service stands."""
    with connect(url) as client:
        found = client.get(_path(model))
        used = output.age(found["used_at"], client.now)
    if fmt is Format.JSON:
        output.write_json(found)
    else:
        output.show(_portrait(found, used))


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
    url: Url = None,
    fmt: Output = Format.TABLE,
) -> None:
    """Change some limits of a model; the others stay. In force from the next permit on."""
    wanted = _wanted(values)
    with connect(url) as client:
        try:
            done = _change(client, model, wanted)
        except Refusal as refusal:
            if refusal.status != _STALE:
                raise
            output.errors().print("[dim]somebody has changed this model meanwhile; trying again[/]")
            done = _change(client, model, wanted)
    if fmt is Format.JSON:
        output.write_json(done)
    else:
        output.show(_portrait(done, None))


@app.command(
    epilog=output.examples(
        "convener llm usage", "convener llm usage --by goal --since 24h", "convener llm usage --by agent -o json"
    )
)
def usage(
    by: Annotated[str, typer.Option(help="model, agent or goal")] = "model",
    since: Annotated[str | None, moment_option("--since", "calls since then; an hour ago by default")] = None,
    limit: Limit = 100,
    url: Url = None,
    fmt: Output = Format.TABLE,
) -> None:
    """Show calls, tokens, costs and latencies, those with most calls first."""
    if by not in ("model", "agent", "goal"):
        raise typer.BadParameter(f"{by} is none of model, agent and goal", param_hint="--by")
    with connect(url) as client:
        found = client.get("/llm/usage", by=by, since=since, limit=limit)
    if fmt is Format.JSON:
        output.write_json(found)
        return
    numbers = ("CALLS", "FAILED", "PROMPT", "COMPLETION", "COST", "LATENCY", "P95")
    table = output.table(by.upper(), *numbers, numbers=numbers, flexible=by.upper())
    for item in found["items"]:
        failed = item["calls"] - item["outcomes"].get("success", 0)
        tokens = (f"{item['prompt_tokens']:,}", f"{item['completion_tokens']:,}")
        latencies = (_milliseconds(item["latency_ms"]["mean"]), _milliseconds(item["latency_ms"]["p95"]))
        told = (item["calls"], failed, *tokens, f"${item['cost_usd']:.4f}", *latencies)
        table.add_row(output.cell(item["name"]), *map(output.cell, told))
    output.show(table)


@permits.command(name="ls", epilog=output.examples("convener llm permits ls", "convener llm permits ls -o json"))
def live(limit: Limit = 100, url: Url = None, fmt: Output = Format.TABLE) -> None:
    """List who calls a language model right now, the oldest first."""
    with connect(url) as client:
        items, following = client.pages("/llm/permits", limit)
        now = client.now
    if fmt is Format.JSON:
        output.write_json({"items": items, "next": following})
        return
    table = output.table("PERMIT", "MODEL", "AGENT", "GOAL", "GRANTED", "EXPIRES", whole=["PERMIT"], flexible="MODEL")
    for item in items:
        names = (item["permit_id"], item["model"], item["agent_type"], item["goal_id"])
        times = (output.age(item["granted_at"], now), output.age(item["expires_at"], now))
        table.add_row(*map(output.cell, (*names, *times)))
    output.show(table)


def _path(model: str) -> str:
    return f"/llm/models/{quote(model, safe='/:')}"


def _change(client: Client, model: str, wanted: Json) -> Json:
    found = client.get(_path(model))
    body = {name: found[name] for name in _LIMITS} | wanted
    return client.change("PUT", _path(model), body, version=found["version"])


def _wanted(values: list[str]) -> Json:
    """What `name=value` words mean together. Raises BadParameter."""
    wanted: Json = {}
    for value in values:
        name, separator, text = value.partition("=")
        if not separator or name not in _LIMITS:
            known = ", ".join(_LIMITS)
            raise typer.BadParameter(f"{value} is not NAME=VALUE, like burst=20; names are {known}")
        wanted[name] = _value(name, text)
    return wanted


def _value(name: str, text: str) -> Any:
    if name == "fallback_models":
        return [] if text == "none" else [part.strip() for part in text.split(",") if part.strip()]
    if text == "none":
        return None
    try:
        return json.loads(text)
    except ValueError:
        raise typer.BadParameter(f"the value of {name} must be a number or none, not {text}") from None


def _portrait(found: Json, used: str | None) -> RenderableType:
    shown = {name: _limit(found[name]) for name in _LIMITS}
    table = output.table("LIMIT", "VALUE", numbers=["VALUE"])
    for name, value in shown.items():
        table.add_row(output.cell(name), output.cell(value))
    head = output.details(
        [
            ("Model", found["model"]),
            ("Version", str(found["version"])),
            ("Service", _service(found)),
            ("Calls", f"{found['in_use']} of {found['limit']} that may be under way at once"),
            ("Latency", _milliseconds(found["mean_latency_ms"])),
            ("Used", used),
        ]
    )
    return Group(head, Text(""), table)


def _service(found: Json) -> Text:
    if found["breaker"] == "open":
        return Text(f"failing, tried again in {output.duration(found['breaker_open_seconds'])}", style="red")
    if found["breaker"] == "half_open":
        return Text("failing, the next call tries it", style="yellow")
    if found["cooldown_seconds"]:
        return Text(f"cooling down for {output.duration(found['cooldown_seconds'])}", style="yellow")
    return Text("works", style="green")


def _rate(found: Json, name: str) -> str | None:
    return None if found[name] is None else f"{found[name]:,} / {output.duration(found['window_seconds'])}"


def _milliseconds(value: float | None) -> str | None:
    return None if value is None else f"{value:,.0f} ms"


def _limit(value: Any) -> str | None:
    if isinstance(value, list):
        return ", ".join(value)
    return None if value is None else f"{value:,}" if isinstance(value, int) else f"{value:g}"
