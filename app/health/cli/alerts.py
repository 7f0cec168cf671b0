"""`convener alerts`: list, show and acknowledge alerts."""

from datetime import datetime
from enum import StrEnum
from typing import Annotated

import typer
from rich.table import Table
from rich.text import Text

from app.health.rules.alerts import AlertState
from app.health.rules.finding import AlertRule
from app.terminal import output
from app.terminal.client import Json, Url, connect
from app.terminal.deaths import recent_deaths
from app.terminal.options import Limit, Whole
from app.terminal.output import Format, Output

app = typer.Typer(help="See what is wrong, and say that you know.", no_args_is_help=True)
# The duty runs every 5 s.
_LATE_SECONDS = 30.0
_OF_THE_POOL = (AlertRule.POOL_BELOW_MINIMUM, AlertRule.REPLACEMENT_FAILING)
_SEVERITIES = {"critical": "red", "warning": "yellow"}
AlertId = Annotated[int, typer.Argument(metavar="ID", help="number of the alert", min=1)]


class SeverityName(StrEnum):
    """Values of `--severity`."""

    WARNING = "warning"
    CRITICAL = "critical"


@app.command(
    epilog=output.examples(
        "convener alerts ls",
        "convener alerts ls --state resolved --rule queue_growth --limit 5",
        "convener alerts ls --severity critical -o json | jq -r '.items[].summary'",
    )
)
def ls(
    state: Annotated[
        list[AlertState] | None, typer.Option(help="open and acknowledged by default; may be given twice")
    ] = None,
    rule: Annotated[AlertRule | None, typer.Option(help="of this rule only")] = None,
    severity: Annotated[SeverityName | None, typer.Option(help="of this severity only")] = None,
    limit: Limit = 50,
    everything: Whole = False,
    url: Url = None,
    fmt: Output = Format.TABLE,
) -> None:
    """List alerts, those that opened last first."""
    states = [item.value for item in state or ()] or None
    with connect(url) as client:
        page_limit, rule_name = None if everything else limit, rule.value if rule else None
        items, following = client.pages("/alerts", page_limit, state=states, rule=rule_name, severity=severity)
        looked_at, now = client.get("/alerts", limit=1)["looked_at"], client.now
    if fmt is Format.JSON:
        output.write_json({"items": items, "next": following, "looked_at": looked_at})
        return
    table = output.table("ID", "SEVERITY", "STATE", "OPENED", "WHAT", numbers=["ID"], flexible="WHAT")
    for item in items:
        cells = map(output.cell, (item["state"], output.age(item["opened_at"], now), item["summary"]))
        table.add_row(output.cell(item["id"]), _severity(item), *cells)
    output.show(table if items else Text("nothing is wrong" if states is None else "there are none"))
    _warn_if_stale(looked_at, now)
    if following:
        output.hint_at_more("--all", "--limit")


@app.command(epilog=output.examples("convener alerts get 7", "convener alerts get 7 -o json | jq .facts"))
def get(alert_id: AlertId, url: Url = None, fmt: Output = Format.TABLE) -> None:
    """Show an alert: what is wrong, what to do, and who knows of it."""
    with connect(url) as client:
        alert = client.get(f"/alerts/{alert_id}")
        is_of_pool = alert["rule"] in _OF_THE_POOL and alert["resolved_at"] is None
        deaths = recent_deaths(client) if is_of_pool and fmt is Format.TABLE else []
    output.present(alert, fmt, lambda: _details(alert))
    for line in deaths:
        output.note(line)


@app.command(epilog=output.examples("convener alerts ack 7 --note 'the provider has been told'"))
def ack(
    alert_id: AlertId,
    note: Annotated[str, typer.Option(help="what whoever looks next should know")] = "",
    url: Url = None,
    fmt: Output = Format.TABLE,
) -> None:
    """Say that you know. The alert stays until its symptom is gone."""
    with connect(url) as client:
        alert = client.post(f"/alerts/{alert_id}/acknowledge", {"note": note})
    output.present(alert, fmt, lambda: _details(alert))


def _warn_if_stale(looked_at: str | None, now: datetime) -> None:
    """Warn when the duty does not run, because then no alert means nothing."""
    ago = None if looked_at is None else (now - datetime.fromisoformat(looked_at)).total_seconds()
    if ago is None or ago > _LATE_SECONDS:
        when = "never looked" if ago is None else f"not looked for {output.duration(ago)}"
        output.note(f"the background loops have {when}: `convener loops` runs them", "yellow")


def _details(alert: Json) -> Table:
    acknowledgement = f"{alert['acknowledged_at']} by {alert['acknowledged_by']}" if alert["acknowledged_at"] else None
    rows = [
        ("what", output.cell(alert["summary"])),
        ("do", alert["advice"]),
        ("severity", _severity(alert)),
        ("state", alert["state"]),
        ("opened", alert["opened_at"]),
        ("acknowledged", acknowledgement),
        ("note", alert["note"] or None),
        ("resolved", alert["resolved_at"]),
        ("because", alert["resolution"]),
        ("figures", ", ".join(f"{name} {value:g}" for name, value in alert["facts"].items()) or None),
    ]
    deliveries = [f"{delivery['kind']} {_delivery_state(delivery)}" for delivery in alert.get("deliveries") or ()]
    return output.details([*rows, ("webhook", "; ".join(deliveries) or None)])


def _delivery_state(delivery: Json) -> str:
    tries = f"after {delivery['attempts']} attempts"
    if delivery["delivered_at"]:
        return f"delivered {tries}" if delivery["attempts"] > 1 else "delivered"
    return f"{'given up' if delivery['given_up_at'] else 'not delivered'} {tries}: {delivery['last_error'] or '-'}"


def _severity(alert: Json) -> Text:
    return Text(output.plain(alert["severity"]), style=_SEVERITIES.get(alert["severity"], ""))
