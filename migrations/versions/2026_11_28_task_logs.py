"""A table for what attempts write to stdout and stderr."""

import sqlalchemy as sa
from alembic import op

revision = "2026_11_28_task_logs"
down_revision = "2026_11_28_payload_text"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """A table that nothing refers to."""
    op.create_table(
        "task_logs",
        sa.Column("task_id", sa.UUID(), nullable=False),
        sa.Column("token", sa.BigInteger(), nullable=False),
        sa.Column("stream", sa.Text(), nullable=False),
        sa.Column("start", sa.BigInteger(), nullable=False, comment="bytes of the stream before it"),
        sa.Column("ending", sa.BigInteger(), nullable=False),
        sa.Column("attempt", sa.Integer(), nullable=False),
        sa.Column("text", sa.Text(), nullable=False),
        sa.Column("at", sa.DateTime(timezone=True), nullable=False, comment="when its end was written"),
        sa.CheckConstraint("stream IN ('stderr', 'stdout')", name=op.f("task_logs_stream_check")),
        sa.PrimaryKeyConstraint("task_id", "token", "stream", "start", name=op.f("task_logs_pkey")),
    )
    op.create_index("task_logs_at", "task_logs", ["at"])


def downgrade() -> None:
    """Forget all output."""
    op.drop_table("task_logs")
