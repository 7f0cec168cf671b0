"""Vacuum of tasks once a tenth of them is dead, at the usual pace."""

from alembic import op

revision = "2026_11_29_task_vacuum"
down_revision = "2026_11_29_task_statistics"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Nothing waits for it but vacuums.

    Each of them reads all indexes, so after a fixed number of dead rows it costs more for each the longer the queue is;
    and while somebody keeps an old snapshot it removes nothing, however often it comes.
    """
    op.execute("ALTER TABLE tasks SET (autovacuum_vacuum_scale_factor = 0.1)")
    op.execute("ALTER TABLE tasks RESET (autovacuum_vacuum_cost_delay)")


def downgrade() -> None:
    """Back to every 2,000 dead rows, without a pause."""
    op.execute("ALTER TABLE tasks SET (autovacuum_vacuum_scale_factor = 0, autovacuum_vacuum_cost_delay = 0)")
