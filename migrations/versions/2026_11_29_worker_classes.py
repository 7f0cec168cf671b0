"""A pool may be a class of workers, sized apart by the tasks that belong to it."""

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

revision = "2026_11_29_worker_classes"
down_revision = "2026_11_28_resources"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """A column that may be null, which rewrites nothing."""
    op.add_column(
        "hosts",
        sa.Column(
            "serves", postgresql.JSONB(), comment="agent types and offer of a class of workers; null: the usual pool"
        ),
    )


def downgrade() -> None:
    """Earlier versions would take the pool of a class for a part of the usual one, and start any worker there."""
    op.execute("DELETE FROM hosts WHERE serves IS NOT NULL")
    op.drop_column("hosts", "serves")
