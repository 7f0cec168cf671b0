"""Tasks count how often they were handed back, and parked ones the lease after which they were."""

import sqlalchemy as sa
from alembic import op

revision = "2026_11_28_returns"
down_revision = "2026_11_28_counted_inline"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """All begin anew; no row is written."""
    returns: sa.Column[int] = sa.Column(
        "returns", sa.Integer(), server_default="0", nullable=False, comment="how often it was handed back"
    )
    op.add_column("tasks", returns)
    token: sa.Column[int] = sa.Column(
        "token",
        sa.BigInteger(),
        nullable=True,
        comment="of its last lease then: one that was leased since waits for something else",
    )
    op.add_column("parked_tasks", token)


def downgrade() -> None:
    """Forget it."""
    op.drop_column("parked_tasks", "token")
    op.drop_column("tasks", "returns")
