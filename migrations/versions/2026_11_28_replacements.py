"""A replacement that is not needed any more, or whose host is gone, is closed with the reason."""

import sqlalchemy as sa
from alembic import op

revision = "2026_11_28_replacements"
down_revision = "2026_11_28_task_timeouts"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """None of those from before is closed; the next sweep closes those of hosts that are gone."""
    op.add_column("replacements", sa.Column("closed_at", sa.DateTime(timezone=True)))
    op.add_column("replacements", sa.Column("closed_reason", sa.Text(), comment="why there will be none"))
    op.drop_index("replacements_open", "replacements")
    open_ones = sa.text("worker_id IS NULL AND closed_at IS NULL")
    op.create_index("replacements_open", "replacements", ["slot"], postgresql_where=open_ones)


def downgrade() -> None:
    """Forget it."""
    op.drop_index("replacements_open", "replacements")
    op.create_index("replacements_open", "replacements", ["slot"], postgresql_where=sa.text("worker_id IS NULL"))
    op.drop_column("replacements", "closed_reason")
    op.drop_column("replacements", "closed_at")
