"""Tables of utilisation, pushed metrics, alerts and webhooks."""

from sqlalchemy import (
    BigInteger,
    Column,
    Float,
    Identity,
    Index,
    Integer,
    LargeBinary,
    PrimaryKeyConstraint,
    Table,
    Text,
    func,
    text,
)
from sqlalchemy.dialects.postgresql import JSONB, UUID

from app.db.columns import metadata, moment, one_of
from app.health.rules.alerts import AlertState
from app.health.rules.finding import AlertRule, Severity
from app.health.rules.series import MetricKind
from app.health.rules.utilisation import Measure
from app.kernel.access import RefusalReason
from app.kernel.events import AlertKind

# Utilisation of hosts and workers. A sample is added to its minute at once, so there is nothing to roll up later and
# nothing to lose in between; `last` is the present value.
utilisation = Table(
    "utilisation",
    metadata,
    moment("minute", nullable=False),
    Column("subject", Text, nullable=False, comment="host:<name>, workers or pool"),
    Column("measure", Text, nullable=False),
    Column("samples", BigInteger, nullable=False),
    Column("total", Float, nullable=False, comment="sum of the samples"),
    Column("low", Float, nullable=False),
    Column("high", Float, nullable=False),
    Column("last", Float, nullable=False, comment="the last sample"),
    moment("last_at", nullable=False),
    PrimaryKeyConstraint("minute", "subject", "measure", name="utilisation_pkey"),
    one_of("measure", Measure),
)

# Metrics that workers and agents push: a series is a name with its labels, of which empty ones are absent.
metric_series = Table(
    "metric_series",
    metadata,
    Column("id", BigInteger, Identity(always=True), primary_key=True),
    Column("name", Text, nullable=False),
    Column("kind", Text, nullable=False),
    Column("agent", Text, nullable=False),
    Column("worker", Text, nullable=False),
    Column("goal", Text, nullable=False),
    moment("last_at", nullable=False, server_default=func.now(), comment="of the last sample, within an hour"),
    Column("created_by", Text, comment="id of the key that was shown; null: an earlier version"),
    Column("principal", Text, comment="the key that vouches for it; null: an earlier version"),
    one_of("kind", MetricKind),
    Index("metric_series_labels", "name", "agent", "worker", "goal", unique=True),
    Index("metric_series_of_name", "name", "id"),
)

metric_minutes = Table(
    "metric_minutes",
    metadata,
    Column("series_id", BigInteger, nullable=False),
    moment("minute", nullable=False),
    Column("samples", BigInteger, nullable=False),
    Column("total", Float, nullable=False),
    Column("low", Float, nullable=False),
    Column("high", Float, nullable=False),
    Column("last", Float, nullable=False),
    moment("last_at", nullable=False),
    PrimaryKeyConstraint("series_id", "minute", name="metric_minutes_pkey"),
    # For retention, and for the values of the last minutes over all series.
    Index("metric_minutes_minute", "minute"),
)

# Batches that were stored: one that is sent again, because its answer was lost, is recognized by its row.
metric_batches = Table(
    "metric_batches",
    metadata,
    Column("sent_by", Text, nullable=False, comment="id of the key that was shown"),
    Column("batch_id", UUID, nullable=False),
    Column("digest", LargeBinary, nullable=False),
    moment("received_at", nullable=False, server_default=func.now()),
    PrimaryKeyConstraint("sent_by", "batch_id", name="metric_batches_pkey"),
    Index("metric_batches_received", "received_at"),
)

# Of all processes of the API; each adds what it has counted every few seconds.
refusals = Table(
    "refusals",
    metadata,
    moment("minute", nullable=False),
    Column("reason", Text, nullable=False),
    Column("requests", BigInteger, nullable=False),
    one_of("reason", RefusalReason),
    PrimaryKeyConstraint("minute", "reason", name="refusals_pkey"),
)

# Of each rule and subject at most one alert is unresolved: the index `alerts_standing` enforces it, however many
# replicas observe.
alerts = Table(
    "alerts",
    metadata,
    Column("id", BigInteger, Identity(always=True), primary_key=True),
    Column("rule", Text, nullable=False),
    Column(
        "subject", Text, nullable=False, comment="which of the things that the rule watches; empty for the only one"
    ),
    Column("state", Text, nullable=False),
    Column("severity", Text, nullable=False, comment="the worst since it opened"),
    Column("summary", Text, nullable=False),
    Column("advice", Text, nullable=False),
    Column("facts", JSONB, nullable=False),
    moment("opened_at", nullable=False),
    moment("updated_at", nullable=False),
    moment("acknowledged_at"),
    Column("acknowledged_by", Text, comment="id of the key that was shown"),
    Column("note", Text),
    moment("resolved_at"),
    Column("resolution", Text),
    one_of("rule", AlertRule),
    one_of("state", AlertState),
    one_of("severity", [severity.name.lower() for severity in Severity]),
    Index(
        "alerts_standing", "rule", "subject", unique=True, postgresql_where=text("state IN ('open', 'acknowledged')")
    ),
    # For retention.
    Index("alerts_resolved", "resolved_at", postgresql_where=text("resolved_at IS NOT NULL")),
)

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
    # Only of deliveries still to be made: looking for due ones costs as much as the backlog, not the history.
    Index("webhook_deliveries_due", "due_at", postgresql_where=text("due_at IS NOT NULL")),
)
