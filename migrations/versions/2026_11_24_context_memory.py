"""Context Memory: versions of entries, and checkpoints of the whole system."""

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

revision = "2026_11_24_context_memory"
down_revision = "2026_11_24_whole_queue"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Two tables that nothing else refers to."""
    _create_entries()
    _create_checkpoints()
    # It is compressed already.
    op.execute("ALTER TABLE checkpoints ALTER COLUMN content SET STORAGE EXTERNAL")


def downgrade() -> None:
    """Forget both."""
    op.drop_table("checkpoints")
    op.drop_table("context_entries")


def _create_entries() -> None:
    op.create_table(
        "context_entries",
        sa.Column("namespace", sa.Text(), nullable=False),
        sa.Column("key", sa.Text(), nullable=False),
        sa.Column("version", sa.BigInteger(), nullable=False),
        sa.Column("value", postgresql.JSONB(), nullable=True, comment="null where the entry was deleted"),
        sa.Column("deleted", sa.Boolean(), server_default="false", nullable=False),
        sa.Column("written_by", sa.Text(), nullable=False, comment="id of the key that was shown"),
        sa.Column("request_id", sa.Text(), nullable=True, comment="by which a writer recognises its own request"),
        sa.Column("written_at", sa.DateTime(timezone=True), server_default=sa.text("now()"), nullable=False),
        sa.PrimaryKeyConstraint("namespace", "key", "version", name="context_entries_pkey"),
    )
    op.create_index("context_entries_written", "context_entries", ["written_at"])


def _create_checkpoints() -> None:
    op.create_table(
        "checkpoints",
        sa.Column("id", sa.BigInteger(), sa.Identity(always=True), nullable=False),
        sa.Column(
            "taken_at",
            sa.DateTime(timezone=True),
            nullable=False,
            comment="the moment that the snapshot shows",
        ),
        sa.Column("reason", sa.Text(), nullable=False),
        sa.Column(
            "taken_by", sa.Text(), nullable=True, comment="id of the key that asked for it; null for a regular one"
        ),
        sa.Column("revision", sa.Text(), nullable=False, comment="of the schema"),
        sa.Column(
            "cursor_transaction",
            sa.BigInteger(),
            nullable=False,
            comment="events up to this cursor are in the snapshot",
        ),
        sa.Column("cursor_seq", sa.BigInteger(), nullable=False),
        sa.Column("counts", postgresql.JSONB(), nullable=False),
        sa.Column("is_cut", sa.Boolean(), nullable=False, comment="there was more than a checkpoint holds"),
        sa.Column("size_bytes", sa.Integer(), nullable=False, comment="of the content before compression"),
        sa.Column("sha256", sa.LargeBinary(), nullable=False, comment="of the content before compression"),
        sa.Column("content", sa.LargeBinary(), nullable=False, comment="JSON, compressed by zlib"),
        sa.PrimaryKeyConstraint("id", name=op.f("checkpoints_pkey")),
    )
