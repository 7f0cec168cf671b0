"""Tasks of a metered goal that could run are found by their urgency, without a walk over those that wait for others."""

from alembic import op

from migrations.online import create_index

revision = "2026_11_30_held_tasks"
down_revision = "2026_11_30_event_row_kinds"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """An index of the tasks that are set aside, made beside writers."""
    free = "(goal_id, priority DESC, tag, seq) WHERE run_at = 'infinity' AND blockers = 0"
    create_index("tasks_held_free", "tasks", free)


def downgrade() -> None:
    """Former versions let tasks through in the order of another index."""
    op.drop_index("tasks_held_free", table_name="tasks")
