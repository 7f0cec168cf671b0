"""Workers that are part of a job end at its walltime."""

import sqlalchemy as sa
from alembic import op

revision = "2026_11_28_walltimes"
down_revision = "2026_11_28_served_revisions"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """No end is known of those that are there."""
    op.add_column(
        "workers",
        sa.Column(
            "ends_at",
            sa.DateTime(timezone=True),
            comment="whatever it is part of ends then, as a job at its walltime; null: no end is known",
        ),
    )


def downgrade() -> None:
    """Forget it."""
    op.drop_column("workers", "ends_at")
