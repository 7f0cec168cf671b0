"""`convener llm budgets`: what agent types and API keys may spend on calls of language models."""

import json
from datetime import datetime
from typing import Annotated, Any
from urllib.parse import quote

import typer
from rich.console import RenderableType
from rich.table import Table
from rich.text import Text

from app.terminal import options, output
from app.terminal.client import Json, Url, connect
from app.terminal.options import Limit, Reason
from app.terminal.output import Format, Output

app = typer.Typer(help="What agent types and API keys may spend on calls of language models.", no_args_is_help=True)
_LIMITS = ("money_budget", "token_budget", "period")
ScopeArgument = Annotated[str, typer.Argument(metavar="SCOPE", help="agent or key")]
NameArgument = Annotated[str, typer.Argument(metavar="NAME", help="agent type, or id of a key")]


@app.command(epilog=output.examples("convener llm budgets ls", "convener llm budgets ls -o json"))
def ls(limit: Limit = 100, url: Url = None, fmt: Output = Format.TABLE) -> None:
    """List budgets with what is spent and reserved."""
    options.show_list("/llm/budgets", _table, url, fmt, limit=limit)


@app.command(
    name="set",
    epilog=output.examples(
        "convener llm budgets set agent generation money_budget=20 period=day",
        "convener llm budgets set key KEY_ID token_budget=5000000 period=month -o json",
    ),
)
def set_budget(
    scope: ScopeArgument,
    name: NameArgument,
    values: Annotated[
        list[str],
        typer.Argument(metavar="NAME=VALUE...", help=f"{', '.join(_LIMITS)} (total, hour, day, week or month)"),
    ],
    reason: Reason = "",
    url: Url = None,
    fmt: Output = Format.TABLE,
) -> None:
    """Set a budget: what is left out is not limited, and the period is for ever. In force from the next permit on."""
    with connect(url) as client:
        item = client.put(_path(scope, name), _body(values), reason=reason)
    output.present(item, fmt, lambda: _details(item))


@app.command(epilog=output.examples("convener llm budgets rm agent generation"))
def rm(scope: ScopeArgument, name: NameArgument, reason: Reason = "", url: Url = None) -> None:
    """Limit an agent type or a key no longer, and forget what was counted."""
    with connect(url) as client:
        client.delete(_path(scope, name), reason=reason)
    output.note(f"{scope} {name} has no budget any more")


def _path(scope: str, name: str) -> str:
    return f"/llm/budgets/{quote(scope, safe='')}/{quote(name, safe='')}"


def _body(values: list[str]) -> Json:
    """The body of `name=value` words. Raises BadParameter."""
    body: Json = {}
    for value in values:
        name, separator, text = value.partition("=")
        if not separator or name not in _LIMITS:
            raise typer.BadParameter(f"{value} is not NAME=VALUE, like money_budget=20; names are {', '.join(_LIMITS)}")
        try:
            body[name] = text if name == "period" else json.loads(text)
        except ValueError:
            raise typer.BadParameter(f"the value of {name} must be a number, not {text}") from None
    return body


def _table(items: list[Json], now: datetime) -> Table:
    numbers = ("SPENT", "OF", "TOKENS", "OF TOKENS", "RESERVED")
    table = output.table("SCOPE", "NAME", *numbers, "UNTIL", numbers=numbers, flexible="NAME")
    for item in items:
        table.add_row(
            item["scope"],
            Text(item["name"], style="red" if item["is_used_up"] else ""),
            *map(output.cell, _amounts(item)),
            output.cell(item["until"]),
        )
    return table


def _amounts(item: Json) -> tuple[Any, ...]:
    limits = (_money(item["money_budget"]), _tokens(item["token_budget"]))
    return _money(item["spent_usd"]), limits[0], _tokens(item["spent_tokens"]), limits[1], _money(item["reserved_usd"])


def _details(item: Json) -> RenderableType:
    spent, money, tokens, token_limit, reserved = _amounts(item)
    return output.details(
        [
            ("Budget", f"{item['scope']} {item['name']}, period {item['period']}"),
            ("Money", f"{spent} of {money or 'any amount'}, {reserved} reserved"),
            ("Tokens", f"{tokens} of {token_limit or 'any number'}, {_tokens(item['reserved_tokens'])} reserved"),
            ("Until", item["until"]),
        ]
    )


def _money(value: float | None) -> str | None:
    return None if value is None else f"${value:,.4f}"


def _tokens(value: int | None) -> str | None:
    return None if value is None else f"{value:,}"
