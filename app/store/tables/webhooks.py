"""What other services are to be told of alerts: written with the change itself, delivered after it."""

from sqlalchemy import BigInteger, Column, Identity, Index, Integer, Table, Text, text
from sqlalchemy.dialects.postgresql import UUID

from app.domain.webhooks import AlertKind
from app.store.tables.base import metadata, moment, one_of

webhook_deliveries = Table(
    "webhook_deliveries",
    metadata,
    Column("id", UUID, primary_key=True, comment="the receiver tells repetitions by it"),
    Column("seq", BigInteger, Identity(always=True), nullable=False),
    Column("alert_id", BigInteger, nullable=False),
    Column("kind", Text, nullable=False),
    Column("body", Text, nullable=False, comment="just as it is sent, whenever it is sent again"),
    moment("created_at", nullable=False),
    Column("attempts", Integer, nullable=False, server_default=text("0")),
    moment("due_at", comment="null: it was delivered or given up"),
    moment("delivered_at"),
    moment("given_up_at"),
    Column("last_error", Text),
    one_of("kind", AlertKind),
    Index("webhook_deliveries_alert", "alert_id", "seq"),
)
Index(
    "webhook_deliveries_due",
    webhook_deliveries.c.due_at,
    postgresql_where=text("due_at IS NOT NULL"),
)
