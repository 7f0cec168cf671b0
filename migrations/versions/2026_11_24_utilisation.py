"""Utilisation by the minute, and the pace of each duty."""

import sqlalchemy as sa
from alembic import op

revision = "2026_11_24_utilisation"
down_revision = "2026_11_24_fleet"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """A new table, and a column without a default, which rewrites nothing."""
    op.create_table(
        "utilisation",
        sa.Column("minute", sa.DateTime(timezone=True), nullable=False),
        sa.Column("subject", sa.Text(), nullable=False, comment="host:<name>, workers or pool"),
        sa.Column("measure", sa.Text(), nullable=False),
        sa.Column("samples", sa.BigInteger(), nullable=False),
        sa.Column("total", sa.Float(), nullable=False, comment="sum of the samples"),
        sa.Column("low", sa.Float(), nullable=False),
        sa.Column("high", sa.Float(), nullable=False),
        sa.Column("last", sa.Float(), nullable=False, comment="the last sample"),
        sa.Column("last_at", sa.DateTime(timezone=True), nullable=False),
        sa.CheckConstraint(
            "measure IN ('busy', 'cores', 'cpu', 'gigabytes', 'memory')", name=op.f("utilisation_measure_check")
        ),
        sa.PrimaryKeyConstraint("minute", "subject", "measure", name=op.f("utilisation_pkey")),
    )
    op.add_column(
        "loop_ticks",
        sa.Column(
            "every_seconds",
            sa.Float(),
            nullable=True,
            comment="between two turns; null when the duty has no fixed pace",
        ),
    )


def downgrade() -> None:
    """Forget them."""
    op.drop_column("loop_ticks", "every_seconds")
    op.drop_table("utilisation")
