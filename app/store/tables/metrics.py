"""What is measured, by the minute."""

from sqlalchemy import BigInteger, Column, Float, Identity, Index, LargeBinary, PrimaryKeyConstraint, Table, Text, func
from sqlalchemy.dialects.postgresql import UUID

from app.domain.series import MetricKind
from app.domain.utilisation import Measure
from app.store.tables.base import metadata, moment, one_of

# How busy hosts and workers were. A sample is added to its minute at once, so there is nothing to roll up later and
# nothing to lose in between; `last` tells the present.
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

# What workers and agents push: a series is a name with its labels, of which empty ones are none.
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
    Index("metric_minutes_minute", "minute"),
)

# By which a batch is recognised that comes again because its answer was lost.
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
