"""Where the ladder of degradation stands, and how it came there."""

from sqlalchemy import BigInteger, Boolean, CheckConstraint, Column, Identity, Index, SmallInteger, Table, Text
from sqlalchemy.dialects.postgresql import JSONB

from app.domain.degradation import LadderMove
from app.store.tables.base import metadata, moment, one_of

# One row, whose lock whoever moves the ladder holds: the duty, or an operator.
degradation = Table(
    "degradation",
    metadata,
    Column("is_only", Boolean, primary_key=True, server_default="true"),
    Column("step", SmallInteger, nullable=False),
    moment("since", nullable=False),
    moment("expires_at", comment="when the step is over unless it is renewed"),
    Column("reason", Text, nullable=False),
    moment("held_until"),
    Column("held_by", Text, comment="id of the key that was shown"),
    moment("tight_since"),
    moment("easy_since"),
    moment("looked_at"),
    Column("strain", JSONB, nullable=False, comment="what was seen at the last look"),
    CheckConstraint("is_only", name="is_only"),
    CheckConstraint("step BETWEEN 0 AND 4", name="step"),
    CheckConstraint("(held_until IS NULL) = (held_by IS NULL)", name="hold"),
)

degradation_moves = Table(
    "degradation_moves",
    metadata,
    Column("id", BigInteger, Identity(always=True), primary_key=True),
    moment("at", nullable=False),
    Column("move", Text, nullable=False),
    Column("before", SmallInteger, nullable=False),
    Column("after", SmallInteger, nullable=False),
    Column("reason", Text, nullable=False),
    Column("by", Text, comment="id of the key that was shown; null for the rule"),
    moment("until", comment="when the step is over unless it is renewed"),
    one_of("move", LadderMove),
    Index("degradation_moves_at", "at"),
)
