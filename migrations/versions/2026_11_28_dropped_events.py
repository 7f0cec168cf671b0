"""The last event that was dropped is known, so that a reader with an older cursor is told."""

import sqlalchemy as sa
from alembic import op

revision = "2026_11_28_dropped_events"
down_revision = "2026_11_28_unacknowledged"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """What was dropped before is told of from the next day on, when more is dropped."""
    op.add_column("folds", sa.Column("seq", sa.BigInteger(), comment="of the last event that was dropped"))


def downgrade() -> None:
    """Earlier versions tell nobody."""
    op.execute("DELETE FROM folds WHERE name = 'events dropped'")
    op.drop_column("folds", "seq")
