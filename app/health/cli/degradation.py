"""`convener degradation`: what is given up while resources are short, and operators who know better."""

from typing import Annotated

import typer
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
        found = client.get("/degradation")
        items = client.get("/degradation/history", limit=moves)["items"] if moves else []
        now = client.now
    if fmt is Format.JSON:
        output.write_json({**found, "moves": items})
        return
    _print(found)
    if items:
        table = output.table("WHEN", "MOVE", "STEP", "BY", "WHY", flexible="WHY")
        for item in items:
            steps = f"{item['before']} to {item['after']}"
            told = (output.age(item["at"], now), item["move"], steps, item["by"], item["reason"])
            table.add_row(*map(output.cell, told))
        output.show(table)


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
        _write(client.put("/degradation", {"step": step, "minutes": minutes, "reason": reason}), fmt)


@app.command(epilog=output.examples("convener degradation auto"))
def auto(reason: Why = "", url: Url = None, fmt: Output = Format.TABLE) -> None:
    """Let the rule decide again."""
    with connect(url) as client:
        _write(client.put("/degradation", {"step": None, "reason": reason}), fmt)


def _write(found: Json, fmt: Format) -> None:
    if fmt is Format.JSON:
        output.write_json(found)
    else:
        _print(found)


def _print(found: Json) -> None:
    hold, reduced, seen = found["hold"], found["reduced_capacity"], found["strain"]
    used = [f"{name.replace('_', ' ')} {_share(share)}" for name, share in (seen.get("resources") or {}).items()]
    rows = [
        ("step", Text(output.plain(f"{found['step']}: {found['meaning']}"), style="yellow" if found["step"] else "")),
        ("why", found["reason"]),
        ("until", None if hold else found["expires_at"]),
        ("held", f"until {hold['until']} by {hold['by']}" if hold else None),
        ("at the least share", ", ".join(found["suspended_agents"]) or None),
        ("capacity", reduced["reason"] if reduced["is_reduced"] else None),
        ("in use", ", ".join(used) or None),
    ]
    output.show(output.details(rows))


def _share(share: float | None) -> str:
    return "not measured" if share is None else f"{share:.0%}"
