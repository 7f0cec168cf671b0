"""How much quality an agent gains by each doubling of a task's time."""

import sqlalchemy as sa
from alembic import op

revision = "2026_11_24_gains"
down_revision = "2026_11_24_series"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """A column without a default, which rewrites nothing."""
    comment = "of quality by each doubling of a task's time; null: not known"
    op.add_column("agent_results", sa.Column("gain", sa.Float(), nullable=True, comment=comment))


def downgrade() -> None:
    """Forget it."""
    op.drop_column("agent_results", "gain")
