"""Metered goals know which of the tasks that were let through still wait."""

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects.postgresql import ARRAY, UUID

revision = "2026_11_30_metered_tasks"
down_revision = "2026_11_30_held_tasks"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """A column with a constant default, of a table with few rows."""
    comment = "tasks let through, of which those that still live and wait take room"
    op.add_column(
        "holds", sa.Column("released_ids", ARRAY(UUID()), server_default="{}", nullable=False, comment=comment)
    )


def downgrade() -> None:
    """Those that were let through count on by their number."""
    op.drop_column("holds", "released_ids")
