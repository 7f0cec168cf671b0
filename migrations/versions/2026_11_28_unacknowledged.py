"""Leases that no worker acknowledged are counted apart from rescues."""

import sqlalchemy as sa
from alembic import op

revision = "2026_11_28_unacknowledged"
down_revision = "2026_11_28_submitted_priority"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """The default fills existing rows without writing them."""
    for table in ("tasks", "task_history"):
        column: sa.Column[int] = sa.Column(
            "unacknowledged",
            sa.Integer(),
            server_default=sa.text("0"),
            nullable=False,
            comment="leases without a start",
        )
        op.add_column(table, column)


def downgrade() -> None:
    """Earlier versions count them among the rescues."""
    for table in ("task_history", "tasks"):
        op.drop_column(table, "unacknowledged")
