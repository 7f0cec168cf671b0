"""Keep in history since when a task could run, so that its wait is known afterwards."""

import sqlalchemy as sa
from alembic import op

revision = "2026_11_24_waits"
down_revision = "2026_11_24_webhooks"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Null for what finished before; adding it rewrites nothing."""
    comment = "when it last became ready to run"
    op.add_column("task_history", sa.Column("waiting_since", sa.TIMESTAMP(timezone=True), comment=comment))


def downgrade() -> None:
    """Only the wait is forgotten."""
    op.drop_column("task_history", "waiting_since")
