"""`convener degradation`: show the step in force, hold one, or leave it to the rule."""

from typing import Annotated

import typer
from rich.console import Group
from rich.table import Table
from rich.text import Text

from app.queue.rules.degradation import MEANINGS, TOP_STEP
from app.terminal import output
from app.terminal.client import Json, Url, connect
from app.terminal.output import Format, Output

app = typer.Typer(help="See what is given up while resources are short, and hold it.", no_args_is_help=True)
_STEPS = "\n\n".join(f"{step.value}: {meaning}" for step, meaning in MEANINGS.items())
Why = Annotated[str, typer.Option("--reason", help="why; it is kept, and shown to whoever asks")]


@app.command(
    epilog=output.examples("convener degradation get", "convener degradation get -o json | jq .advice.batch_factor")
)
def get(
    moves: Annotated[int, typer.Option(help="how many of the last moves to show", min=0, max=500)] = 5,
    url: Url = None,
    fmt: Output = Format.TABLE,
) -> None:
    """Show the step in force, why, until when, and how it came about."""
    with connect(url) as client:
        state = client.get("/degradation")
        items = client.get("/degradation/history", limit=moves)["items"] if moves else []
        now = client.now
    table = output.table("WHEN", "MOVE", "STEP", "BY", "WHY", flexible="WHY")
    for item in items:
        steps = f"{item['before']} to {item['after']}"
        cells = (output.age(item["at"], now), item["move"], steps, item["by"], item["reason"])
        table.add_row(*map(output.cell, cells))
    tables = [table] if items else []
    output.present({**state, "moves": items}, fmt, lambda: Group(_details(state), *tables))


@app.command(
    "set",
    help=f"Hold a step for some minutes, whatever the rule says. Each step includes those below it.\n\n{_STEPS}",
    epilog=output.examples(
        "convener degradation set 2 --minutes 60 --reason 'the cluster is being upgraded'",
        "convener degradation set 0 --minutes 15 --reason 'a demonstration'",
    ),
)
def set_step(
    step: Annotated[int, typer.Argument(min=0, max=int(TOP_STEP), help="0 to 4; 0 is as usual")],
    minutes: Annotated[float, typer.Option(help="how long; then the rule takes over", min=0.1, max=1440)] = 30,
    reason: Why = "",
    url: Url = None,
    fmt: Output = Format.TABLE,
) -> None:
    with connect(url) as client:
        state = client.put("/degradation", {"step": step, "minutes": minutes, "reason": reason})
    output.present(state, fmt, lambda: _details(state))


@app.command(epilog=output.examples("convener degradation auto"))
def auto(reason: Why = "", url: Url = None, fmt: Output = Format.TABLE) -> None:
    """Let the rule decide again."""
    with connect(url) as client:
        state = client.put("/degradation", {"step": None, "reason": reason})
    output.present(state, fmt, lambda: _details(state))


def _details(state: Json) -> Table:
    hold, capacity, strain = state["hold"], state["reduced_capacity"], state["strain"]
    shares = [f"{name.replace('_', ' ')} {_share(share)}" for name, share in (strain.get("resources") or {}).items()]
    rows = [
        ("step", Text(output.plain(f"{state['step']}: {state['meaning']}"), style="yellow" if state["step"] else "")),
        ("why", state["reason"]),
        ("until", None if hold else state["expires_at"]),
        ("held", f"until {hold['until']} by {hold['by']}" if hold else None),
        ("at the least share", ", ".join(state["suspended_agents"]) or None),
        ("capacity", capacity["reason"] if capacity["is_reduced"] else None),
        ("in use", ", ".join(shares) or None),
    ]
    return output.details(rows)


def _share(share: float | None) -> str:
    return "not measured" if share is None else f"{share:.0%}"
