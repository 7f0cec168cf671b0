"""Find the workers that died lately without looking at all that are remembered."""

import sqlalchemy as sa
from alembic import op

revision = "2026_11_24_fleet"
down_revision = "2026_11_24_permits"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """The table has a row for each worker of the last weeks, so this takes no time that anybody notices."""
    op.create_index("workers_died", "workers", ["ended_at"], postgresql_where=sa.text("state IN ('lost', 'failed')"))


def downgrade() -> None:
    """Look at all of them again."""
    op.drop_index("workers_died", "workers")
