"""A smaller index leads to finished tasks, and no row holds an empty list of dependencies."""

from alembic import op

revision = "2026_11_28_lean_rows"
down_revision = "2026_11_28_hot_claims"
branch_labels = None
depends_on = None

offline = "builds an index of task_history"

_TABLES = ("tasks", "task_history")


def upgrade() -> None:
    """Rows that are there keep their empty lists, which read the same."""
    for table in _TABLES:
        op.alter_column(table, "depends_on", nullable=True, server_default=None, comment="null where there are none")
    # It was unique only together with the time of the end, as it has to be in a partitioned table.
    op.drop_constraint("task_history_pkey", "task_history")
    op.create_index("task_history_id", "task_history", ["id"])


def downgrade() -> None:
    """Bring back the lists and the key."""
    op.drop_index("task_history_id", "task_history")
    op.create_primary_key("task_history_pkey", "task_history", ["id", "finished_at"])
    for table in _TABLES:
        op.execute(f"UPDATE {table} SET depends_on = '{{}}' WHERE depends_on IS NULL")  # noqa: S608 - two names
        op.alter_column(table, "depends_on", nullable=False, server_default="{}", comment=None)
