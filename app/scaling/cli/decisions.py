"""`convener decisions`: list, explain and replay scaling decisions, and try them under another configuration."""

from datetime import datetime
from typing import Annotated, Any

import typer
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from app.admin.cli.config import patch_of
from app.kernel.modes import Mode
from app.kernel.text import plural
from app.terminal import output
from app.terminal.client import Client, Json, Url, connect
from app.terminal.failures import ExitCode
from app.terminal.options import Limit, Whole, show_list
from app.terminal.output import Format, Output

app = typer.Typer(help="See why the pool has the size that it has.", no_args_is_help=True)
_BATCH = 50
Id = Annotated[int | None, typer.Argument(metavar="ID", help="the last one by default", min=1)]


@app.command(
    epilog=output.examples("convener decisions ls", "convener decisions ls --changes --all -o json | jq '.items[].id'")
)
def ls(
    changes: Annotated[bool, typer.Option("--changes", help="only those that changed something")] = False,
    limit: Limit = 20,
    everything: Whole = False,
    url: Url = None,
    fmt: Output = Format.TABLE,
) -> None:
    """List decisions, newest first."""
    flag = "true" if changes else None
    show_list("/scaling/decisions", _listing, url, fmt, limit=limit, everything=everything, changes=flag)


@app.command(epilog=output.examples("convener decisions explain", "convener decisions explain 42 -o json"))
def explain(decision: Id = None, url: Url = None, fmt: Output = Format.TABLE) -> None:
    """Tell what drove a decision, each limit that applied, and what was rejected and why."""
    with connect(url) as client:
        answer = client.get(f"/scaling/decisions/{_id(client, decision)}")
        now = client.now
    output.present(answer, fmt, lambda: _details(answer, output.age(answer["timestamp"], now) or ""))


@app.command(
    epilog=output.examples(
        "convener decisions replay 42", "convener decisions replay --all", "convener decisions replay --all -o json"
    )
)
def replay(
    decision: Id = None,
    everything: Annotated[bool, typer.Option("--all", help="all that are kept")] = False,
    url: Url = None,
    fmt: Output = Format.TABLE,
) -> None:
    """Decide again from the inputs that were kept. Ends with 1 where the outcome is not the same to the byte."""
    with connect(url) as client:
        if everything:
            count, different = _replay_all(client)
        else:
            answer = client.post(f"/scaling/decisions/{_id(client, decision)}/replay", {})
            count, different = 1, [] if answer["identical"] else [answer]
    result = {"replayed": count, "identical": count - len(different), "different": different}
    output.present(result, fmt, lambda: _verdict(count, different))
    if different:
        raise typer.Exit(ExitCode.REFUSED)


@app.command(
    "what-if",
    epilog=output.examples(
        "convener decisions what-if worker_pool.max_workers=15",
        "convener decisions what-if --decision 42 worker_pool.scale_up_threshold=0.5 --wait-target 60",
        "convener decisions what-if --mode trusted_tester -o json",
    ),
)
def what_if(
    values: Annotated[list[str] | None, typer.Argument(metavar="PATH=VALUE", help="of the configuration")] = None,
    decision: Annotated[int | None, typer.Option(help="the last one by default", min=1)] = None,
    mode: Annotated[Mode | None, typer.Option(help="the rules and the pool of this mode")] = None,
    wait_target: Annotated[float | None, typer.Option(help="seconds that a task may wait", min=0.001)] = None,
    url: Url = None,
    fmt: Output = Format.TABLE,
) -> None:
    """Make a decision again as it would have been under another configuration. Changes nothing."""
    body: Json = {"decision_id": decision, "mode": mode, "wait_target_seconds": wait_target}
    if values:
        body["config"] = patch_of(values)
    with connect(url) as client:
        answer = client.post("/scaling/what-if", body)
    output.present(answer, fmt, lambda: _comparison(answer))


def _listing(items: list[Json], now: datetime) -> Table:
    table = output.table("ID", "AT", "TYPE", "WORKERS", "TARGET", "NEED", "REASON", flexible="REASON")
    for item in items:
        cells = (output.age(item["timestamp"], now), item["decision_type"], item["current_workers"])
        table.add_row(*map(output.cell, (item["id"], *cells, item["target_workers"], item["need"], item["reasons"][0])))
    return table


def _id(client: Client, decision: int | None) -> int:
    """The given id, or that of the last decision."""
    if decision is not None:
        return decision
    latest = client.get("/scaling/recommendation")["decision_id"]
    # Before the first decision there is none: asking for it says so.
    return int(latest or 1)


def _replay_all(client: Client) -> tuple[int, list[Json]]:
    """Replay all stored decisions; return their number and those that came out differently."""
    count, different = 0, list[Json]()
    batch: Json = {"next": 0}
    while batch["next"] is not None:
        batch = client.post("/scaling/decisions/replay", {"after": batch["next"], "limit": _BATCH})
        count += batch["replayed"]
        different += batch["different"]
    return count, different


def _details(decision: Json, when: str) -> RenderableType:
    words = decision["explanation"]
    facts: list[tuple[str, RenderableType | None]] = [
        ("Decision", f"{decision['id']}, {when}: {decision['decision_type']}"),
        ("Workers", f"{decision['current_workers']} -> {decision['target_workers']}"),
        ("Seen", _lines(words["seen"])),
        ("Because", _lines(words["drove"])),
        ("Limits", _lines(words["clamps"]) if words["clamps"] else Text("none applied")),
        ("Rejected", _lines([f"{item['alternative']}: {item['because']}" for item in words["rejected"]])),
        ("Weights", _lines(_weights(decision)) if decision["agent_weight_adjustments"] else None),
        ("Agents", _lines(_agents(decision)) if decision["resource_allocation"] else None),
    ]
    return output.details(facts)


def _weights(decision: Json) -> list[str]:
    return [
        f"{agent}: {change['previous_weight']:.4g} -> {change['new_weight']:.4g} ({change['reason']})"
        for agent, change in decision["agent_weight_adjustments"].items()
    ]


def _agents(decision: Json) -> list[str]:
    agents = [worker["assigned_agent"] for worker in decision["resource_allocation"].values()]
    bottleneck = decision["bottleneck_agent"]
    return [
        f"{agent}: {agents.count(agent)} workers{', the bottleneck' if agent == bottleneck else ''}; {size['reason']}"
        for agent, size in decision["sizes"].items()
    ]


def _comparison(answer: Json) -> RenderableType:
    actual, hypothetical = answer["decided"], answer["supposed"]
    table = output.table("", "DECIDED", "SUPPOSED", numbers=["DECIDED", "SUPPOSED"])
    rows = {"type": "decision_type", "workers": "current_workers", "target": "target_workers", "need": "need"}
    for name, key in rows.items():
        table.add_row(*map(output.cell, (name, actual[key], hypothetical[key])))
    return Group(Text(f"decision {actual['id']}"), table, Text("it would have said:"), _lines(hypothetical["reasons"]))


def _verdict(count: int, different: list[Json]) -> RenderableType:
    if not different:
        return Text(f"ok: {plural(count, 'decision')} replayed, identical to the byte", "green")
    lines = [
        f"{decision['id']} {change['path']}: {change['before']} -> {change['after']}"
        for decision in different
        for change in decision["differences"]
    ]
    return Group(Text(f"{len(different):,} of {plural(count, 'decision')} come out differently", "red"), _lines(lines))


def _lines(sentences: list[Any]) -> Text:
    return Text("\n".join(output.plain(str(sentence)) for sentence in sentences))
