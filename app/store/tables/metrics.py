"""What is measured, by the minute."""

from sqlalchemy import BigInteger, Column, Float, PrimaryKeyConstraint, Table, Text

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
