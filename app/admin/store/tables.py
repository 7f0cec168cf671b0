"""The deployment configuration with its history and the audit log, to which rows are only added, and sessions."""

from sqlalchemy import JSON, BigInteger, Boolean, Column, Index, LargeBinary, Table, Text, func
from sqlalchemy.dialects.postgresql import JSONB

from app.admin.rules.config import ConfigAction
from app.db.columns import metadata, moment, one_of
from app.kernel.modes import Mode

# The highest version is the configuration, and the primary key lets one of two rivals have the next.
config_versions = Table(
    "config_versions",
    metadata,
    Column("version", BigInteger, primary_key=True, autoincrement=False),
    Column("mode", Text, nullable=False),
    Column("document", JSONB, nullable=False),
    moment("changed_at", nullable=False, server_default=func.now()),
    Column("changed_by", Text, nullable=False, comment="id of the key that was shown"),
    Column("reason", Text, nullable=False),
    Column("action", Text, nullable=False),
    one_of("mode", Mode),
    one_of("action", ConfigAction),
)

audit = Table(
    "audit",
    metadata,
    Column("seq", BigInteger, primary_key=True, autoincrement=False, comment="without gaps"),
    moment("at", nullable=False),
    Column("by", Text, nullable=False, comment="id of the key that was shown"),
    Column("label", Text, comment="of that key at the time"),
    Column("action", Text, nullable=False),
    # Not JSONB: the digest is of the very text of the numbers.
    Column("before", JSON, nullable=False),
    Column("after", JSON, nullable=False),
    Column("reason", Text, nullable=False),
    Column("digest", LargeBinary, nullable=False, comment="SHA-256 of the digest before and of this content"),
    Index("audit_by_action", "action", "seq"),
)

# No foreign key, for which each registration of a launched worker would pay: a session without its key is no good.
sessions = Table(
    "sessions",
    metadata,
    Column("id", Text, primary_key=True),
    Column("key_id", Text, nullable=False, comment="the key that it acts for"),
    Column("secret_hash", LargeBinary, nullable=False),
    Column("is_link", Boolean, nullable=False, comment="opens one session, once, and is good for nothing else"),
    moment("created_at", nullable=False, server_default=func.now()),
    moment("expires_at", nullable=False),
    Index("sessions_key", "key_id"),
)
