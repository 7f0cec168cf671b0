"""Context Memory: versions of entries, and checkpoints of the whole system."""

from sqlalchemy import (
    BigInteger,
    Boolean,
    Column,
    Identity,
    Index,
    Integer,
    LargeBinary,
    PrimaryKeyConstraint,
    Table,
    Text,
    func,
)
from sqlalchemy.dialects.postgresql import JSONB

from app.db.columns import metadata, moment

# Append-only: the highest version of a key is its entry, and the primary key lets only one of two concurrent writers
# have the next version. An entry that is written again and again leaves no dead rows, so reading it stays one probe.
context_entries = Table(
    "context_entries",
    metadata,
    Column("namespace", Text, nullable=False),
    Column("key", Text, nullable=False),
    Column("version", BigInteger, nullable=False),
    Column("value", JSONB, comment="null where the entry was deleted"),
    Column("deleted", Boolean, nullable=False, server_default="false"),
    Column("written_by", Text, nullable=False, comment="id of the key that was shown"),
    Column("request_id", Text, comment="by which a writer recognises its own request"),
    moment("written_at", nullable=False, server_default=func.now()),
    PrimaryKeyConstraint("namespace", "key", "version", name="context_entries_pkey"),
    Index("context_entries_written", "written_at"),
)

checkpoints = Table(
    "checkpoints",
    metadata,
    Column("id", BigInteger, Identity(always=True), primary_key=True),
    moment("taken_at", nullable=False, comment="the moment that the snapshot shows"),
    Column("reason", Text, nullable=False),
    Column("taken_by", Text, comment="id of the key that asked for it; null for a regular one"),
    Column("revision", Text, nullable=False, comment="of the schema"),
    Column("cursor_transaction", BigInteger, nullable=False, comment="events up to this cursor are in the snapshot"),
    Column("cursor_seq", BigInteger, nullable=False),
    Column("counts", JSONB, nullable=False),
    Column("is_cut", Boolean, nullable=False, comment="there was more than a checkpoint holds"),
    Column("size_bytes", Integer, nullable=False, comment="of the content before compression"),
    Column("sha256", LargeBinary, nullable=False, comment="of the content before compression"),
    Column("content", LargeBinary, nullable=False, comment="JSON, compressed by zlib"),
)
