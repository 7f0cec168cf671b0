"""Tables of decisions with their inputs, and of the one row of state between two decisions."""

from sqlalchemy import (
    JSON,
    BigInteger,
    Boolean,
    CheckConstraint,
    Column,
    Identity,
    Index,
    Integer,
    LargeBinary,
    Table,
    Text,
    text,
)
from sqlalchemy.dialects.postgresql import JSONB

from app.db.columns import metadata, moment, one_of
from app.scaling.rules.target import DecisionType

# Rows are only added, and pruned when they are old.
decisions = Table(
    "decisions",
    metadata,
    Column("id", BigInteger, Identity(always=True), primary_key=True),
    moment("decided_at", nullable=False),
    Column("decision_type", Text, nullable=False),
    Column("current_workers", Integer, nullable=False),
    Column("target_workers", Integer, nullable=False),
    # Not JSONB: a replay is compared with the very text of the numbers.
    Column("inputs", JSON, nullable=False),
    Column("output", JSON, nullable=False),
    Column("roster_id", BigInteger),
    one_of("decision_type", DecisionType),
    Index("decisions_decided", "decided_at"),
    Index("decisions_roster", "roster_id"),
    Index("decisions_changes", "id", postgresql_where=text("decision_type <> 'maintain'")),
)

# Ids and capabilities of the workers: the long part of the inputs. It seldom changes, so many decisions share a row.
rosters = Table(
    "rosters",
    metadata,
    Column("id", BigInteger, Identity(always=True), primary_key=True),
    Column("digest", LargeBinary, nullable=False, unique=True, comment="SHA-256 of the content"),
    Column("content", JSON, nullable=False, comment="who the workers are and what they can run"),
)

scaling_state = Table(
    "scaling_state",
    metadata,
    Column("is_only", Boolean, primary_key=True, server_default="true"),
    moment("decided_at", nullable=False),
    Column("content", JSONB, nullable=False, comment="spare workers lately, service times, the target in force"),
    CheckConstraint("is_only", name="is_only"),
)
