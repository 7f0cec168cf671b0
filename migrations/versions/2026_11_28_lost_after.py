"""Each worker keeps the silence that it was told when it registered."""

import sqlalchemy as sa
from alembic import op

revision = "2026_11_28_lost_after"
down_revision = "2026_11_28_budgets"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """A column without a default, which rewrites nothing."""
    comment = "of silence, as it was told when it registered"
    op.add_column("workers", sa.Column("lost_after_seconds", sa.Float(), nullable=True, comment=comment))


def downgrade() -> None:
    """Forget it."""
    op.drop_column("workers", "lost_after_seconds")
