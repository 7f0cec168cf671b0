"""What people were told was wrong, and what has become of it."""

from sqlalchemy import BigInteger, Column, Identity, Index, Table, Text, text
from sqlalchemy.dialects.postgresql import JSONB

from app.domain.alerts import AlertState
from app.domain.symptoms import AlertRule, Severity
from app.store.tables.base import metadata, moment, one_of

# Of each matter one alert stands at most; the index sees to that, whoever evaluates.
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
)
_STANDS = text("state IN ('open', 'acknowledged')")
Index("alerts_standing", alerts.c.rule, alerts.c.subject, unique=True, postgresql_where=_STANDS)
Index("alerts_resolved", alerts.c.resolved_at, postgresql_where=text("resolved_at IS NOT NULL"))
