"""Why the health report of a starting worker has not passed."""

import sqlalchemy as sa
from alembic import op

revision = "2026_11_28_not_ready"
down_revision = "2026_11_28_api_processes"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """A column without a default, so nothing is rewritten."""
    comment = "why its last report has not passed, while it is starting"
    op.add_column("workers", sa.Column("not_ready_reason", sa.Text(), comment=comment))


def downgrade() -> None:
    """Forget it."""
    op.drop_column("workers", "not_ready_reason")
