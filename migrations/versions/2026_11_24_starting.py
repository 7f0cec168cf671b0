"""Remember how many workers people have started on a host beyond its usual size."""

import sqlalchemy as sa
from alembic import op

revision = "2026_11_24_starting"
down_revision = "2026_11_24_goals"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """A constant default rewrites nothing."""
    extra = sa.Column(
        "extra", sa.Integer(), server_default="0", nullable=False, comment="workers that people started beyond that"
    )
    op.add_column("hosts", extra)


def downgrade() -> None:
    """Forget it."""
    op.drop_column("hosts", "extra")
