"""Alerts of the present and the past, and their acknowledgement."""

from typing import Annotated
from uuid import UUID

from fastapi import Path, Query
from pydantic import BaseModel, ConfigDict, Field

from app.health.errors import AlertNotFound, AlertResolved
from app.health.rules.alerts import UNRESOLVED, AlertState
from app.health.rules.finding import AlertRule, Severity
from app.health.service import alerts as service
from app.health.store import alerts as store
from app.health.store import webhooks
from app.health.store.alerts import Alert, AlertFilter
from app.http.fields import NEWEST, Below, Body, Limit, Moment, Sentence, Word
from app.http.guard import Caller, requires
from app.http.problems import responses_for
from app.http.routing import Router
from app.http.transactions import Reading, Writing
from app.kernel.access import Scope
from app.kernel.events import AlertKind

router = Router(prefix="/alerts", tags=["alerts"])


class AlertOut(BaseModel):
    """Something that is wrong, or was."""

    id: int
    rule: AlertRule
    subject: str = Field(description="which of the things that the rule watches; empty when there is only one")
    severity: str = Field(description="`warning`, or `critical` from the moment when it was; it never gets better")
    state: AlertState
    summary: str = Field(description="what is wrong, with figures")
    advice: str = Field(description="what to do")
    facts: dict[str, float] = Field(description="the figures; seconds, shares of 1, or counts")
    opened_at: Moment
    updated_at: Moment
    acknowledged_at: Moment | None
    acknowledged_by: str | None = Field(description="id of the key that was shown")
    note: str | None
    resolved_at: Moment | None
    resolution: str | None = Field(description="why it is over")


class DeliveryOut(BaseModel):
    """One message of the webhook, which goes out at least once; the receiver tells repetitions by its id."""

    id: UUID
    kind: AlertKind
    created_at: Moment
    attempts: int
    due_at: Moment | None = Field(description="when it is tried next; null: it was delivered or given up")
    delivered_at: Moment | None
    given_up_at: Moment | None
    last_error: str | None


class OneAlertOut(AlertOut):
    """An alert, and whom it was told to."""

    deliveries: list[DeliveryOut] = Field(description="messages of the webhook, where one is set up")


class AlertPage(BaseModel):
    """Those that opened last first; pass `next` as `after` for what follows."""

    items: list[AlertOut]
    next: int | None
    looked_at: Moment | None = Field(description="when the loops last looked; null: never, so no alert means nothing")


class AcknowledgeIn(Body):
    """What whoever looks next should know."""

    model_config = ConfigDict(json_schema_extra={"examples": [{"note": "the provider has been told; back at noon"}]})

    note: Sentence = ""


SeverityName = Annotated[
    Word | None, Query(pattern="^(warning|critical)$", description="of this severity only", examples=["critical"])
]
AlertId = Annotated[int, Path(ge=1, le=NEWEST)]


@router.get("", operation_id="list_alerts", summary="List alerts", dependencies=[requires(Scope.READ)])
async def page(
    connection: Reading,
    state: Annotated[
        list[AlertState] | None,
        Query(max_length=len(AlertState), description="those that are not resolved, by default"),
    ] = None,
    rule: Annotated[AlertRule | None, Query(description="of this rule only")] = None,
    severity: SeverityName = None,
    after: Below = NEWEST,
    limit: Limit = 100,
) -> AlertPage:
    """What is wrong now, newest first; with `state=resolved` what was. Cheap enough to be asked every second.

    An alert opens when its symptom has lasted, and is resolved by itself when it has been away for a while; of each
    rule and subject one stands at most. Opening, getting worse and the end are events too (`alert.opened`, ...).
    """
    selection = AlertFilter(
        states=state or UNRESOLVED, rule=rule, severity=Severity[severity.upper()] if severity else None
    )
    alerts = await store.page(connection, selection, below_id=after, limit=limit)
    items, looked_at = [_alert_out(alert) for alert in alerts.items], await service.last_looked_at(connection)
    return AlertPage(items=items, next=alerts.next(lambda alert: alert.id), looked_at=looked_at)


@router.get(
    "/{alert_id}",
    operation_id="get_alert",
    summary="Read an alert",
    dependencies=[requires(Scope.READ)],
    responses=responses_for(AlertNotFound),
)
async def read(alert_id: AlertId, connection: Reading) -> OneAlertOut:
    """With what to do about it, who knows of it, and what has become of the messages of the webhook."""
    alert = _alert_out(await service.read(connection, alert_id))
    deliveries = await webhooks.read_deliveries(connection, alert_id)
    deliveries_out = [DeliveryOut.model_validate(delivery, from_attributes=True) for delivery in deliveries]
    return OneAlertOut(**alert.model_dump(), deliveries=deliveries_out)


@router.post(
    "/{alert_id}/acknowledge",
    operation_id="acknowledge_alert",
    summary="Acknowledge an alert",
    dependencies=[requires(Scope.OPERATE)],
    responses=responses_for(AlertNotFound, AlertResolved),
)
async def acknowledge(alert_id: AlertId, body: AcknowledgeIn, connection: Writing, caller: Caller) -> AlertOut:
    """Somebody knows. It stays until its symptom is gone, and is open again should it get worse.

    Safe to repeat: who is first is kept. There is no way to resolve an alert by hand, because its symptom would open it
    again.
    """
    return _alert_out(await service.acknowledge(connection, alert_id, by=caller.key_id, note=body.note))


def _alert_out(alert: Alert) -> AlertOut:
    fields = {name: getattr(alert, name) for name in AlertOut.model_fields if name != "severity"}
    return AlertOut(severity=alert.severity.name.lower(), **fields)
