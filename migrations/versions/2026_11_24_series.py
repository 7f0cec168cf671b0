"""Metrics that workers and agents push: series, their minutes, and the batches that were taken."""

import sqlalchemy as sa
from alembic import op

revision = "2026_11_24_series"
down_revision = "2026_11_24_degradation"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Three tables that nothing else refers to."""
    op.create_table(
        "metric_series",
        sa.Column("id", sa.BigInteger(), sa.Identity(always=True), nullable=False),
        sa.Column("name", sa.Text(), nullable=False),
        sa.Column("kind", sa.Text(), nullable=False),
        sa.Column("agent", sa.Text(), nullable=False),
        sa.Column("worker", sa.Text(), nullable=False),
        sa.Column("goal", sa.Text(), nullable=False),
        sa.Column(
            "last_at",
            sa.DateTime(timezone=True),
            server_default=sa.text("now()"),
            nullable=False,
            comment="of the last sample, within an hour",
        ),
        sa.CheckConstraint("kind IN ('counter', 'gauge')", name=op.f("metric_series_kind_check")),
        sa.PrimaryKeyConstraint("id", name=op.f("metric_series_pkey")),
    )
    op.create_index("metric_series_labels", "metric_series", ["name", "agent", "worker", "goal"], unique=True)
    op.create_index("metric_series_of_name", "metric_series", ["name", "id"])
    op.create_table(
        "metric_minutes",
        sa.Column("series_id", sa.BigInteger(), nullable=False),
        sa.Column("minute", sa.DateTime(timezone=True), nullable=False),
        sa.Column("samples", sa.BigInteger(), nullable=False),
        sa.Column("total", sa.Float(), nullable=False),
        sa.Column("low", sa.Float(), nullable=False),
        sa.Column("high", sa.Float(), nullable=False),
        sa.Column("last", sa.Float(), nullable=False),
        sa.Column("last_at", sa.DateTime(timezone=True), nullable=False),
        sa.PrimaryKeyConstraint("series_id", "minute", name=op.f("metric_minutes_pkey")),
    )
    op.create_index("metric_minutes_minute", "metric_minutes", ["minute"])
    op.create_table(
        "metric_batches",
        sa.Column("sent_by", sa.Text(), nullable=False, comment="id of the key that was shown"),
        sa.Column("batch_id", sa.UUID(), nullable=False),
        sa.Column("digest", sa.LargeBinary(), nullable=False),
        sa.Column("received_at", sa.DateTime(timezone=True), server_default=sa.text("now()"), nullable=False),
        sa.PrimaryKeyConstraint("sent_by", "batch_id", name=op.f("metric_batches_pkey")),
    )
    op.create_index("metric_batches_received", "metric_batches", ["received_at"])


def downgrade() -> None:
    """Forget them."""
    op.drop_table("metric_batches")
    op.drop_table("metric_minutes")
    op.drop_table("metric_series")
