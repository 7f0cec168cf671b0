"""The sender of each series of metrics, whose number is bounded by sender."""

import sqlalchemy as sa
from alembic import op

revision = "2026_11_28_series"
down_revision = "2026_11_28_worker_rates"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """A column without a default, which rewrites nothing."""
    comment = "id of the key that was shown; null: an earlier version"
    op.add_column("metric_series", sa.Column("created_by", sa.Text(), nullable=True, comment=comment))


def downgrade() -> None:
    """Forget the senders."""
    op.drop_column("metric_series", "created_by")
