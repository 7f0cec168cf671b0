"""A task that names no timeout of its own has that of the configuration at the time of its lease."""

import sqlalchemy as sa
from alembic import op

revision = "2026_11_28_task_timeouts"
down_revision = "2026_11_28_principals"
branch_labels = None
depends_on = None

_COMMENT = "null: as the configuration says when it is leased"
# What every task had that named none.
_FORMER_DEFAULT = 600


def upgrade() -> None:
    """Tasks that are there keep theirs, which earlier versions have written down for each."""
    for table in ("tasks", "task_history"):
        op.alter_column(table, "timeout_seconds", existing_type=sa.Float(), nullable=True, comment=_COMMENT)


def downgrade() -> None:
    """Each task names one again."""
    for table in ("tasks", "task_history"):
        rows = sa.table(table, sa.column("timeout_seconds"))
        op.execute(rows.update().where(rows.c.timeout_seconds.is_(None)).values(timeout_seconds=_FORMER_DEFAULT))
        op.alter_column(
            table, "timeout_seconds", existing_type=sa.Float(), nullable=False, comment=None, existing_comment=_COMMENT
        )
