"""Permits and series know the key that vouches for their callers: workers of one key count as one."""

import sqlalchemy as sa
from alembic import op

revision = "2026_11_28_principals"
down_revision = "2026_11_28_duty_late"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Of permits from before the key counts, and of series from before nothing."""
    principal: sa.Column[str] = sa.Column(
        "principal", sa.Text(), nullable=True, comment="who vouches for the caller; null: the key"
    )
    op.add_column("llm_permits", principal)
    sender: sa.Column[str] = sa.Column(
        "principal", sa.Text(), nullable=True, comment="the key that vouches for it; null: an earlier version"
    )
    op.add_column("metric_series", sender)


def downgrade() -> None:
    """Forget it."""
    op.drop_column("metric_series", "principal")
    op.drop_column("llm_permits", "principal")
