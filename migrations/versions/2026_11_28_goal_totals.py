"""The sums of a goal count its tasks as well: how many were submitted, completed, failed and so on."""

import sqlalchemy as sa
from alembic import op

revision = "2026_11_28_goal_totals"
down_revision = "2026_11_28_first_event"
branch_labels = None
depends_on = None

offline = "reads all events while goal_compute is locked"

_KINDS = {
    "submitted": "task.submitted",
    "completed": "task.completed",
    "failed": "task.failed",
    "cancelled": "task.cancelled",
    "displaced": "task.displaced",
    "retried": "task.retrying",
    "rescued": "task.expired",
    "requeued": "task.requeued",
}


def upgrade() -> None:
    """Count what was folded before, as far back as events are kept, by one pass over them."""
    for name in _KINDS:
        op.add_column("goal_compute", sa.Column(name, sa.BigInteger(), server_default="0", nullable=False))
    names = ", ".join(_KINDS)
    counts = ", ".join(f"count(*) FILTER (WHERE kind = '{kind}')" for kind in _KINDS.values())
    kinds = ", ".join(f"'{kind}'" for kind in _KINDS.values())
    op.execute(f"""
        INSERT INTO goal_compute (goal_id, agent_type, attempts, seconds, {names})
        SELECT goal_id, agent_type, 0, 0, {counts} FROM events
        WHERE goal_id IS NOT NULL AND kind IN ({kinds})
          AND transaction < (SELECT transaction FROM folds WHERE name = 'goals')
        GROUP BY goal_id, agent_type
        ON CONFLICT (goal_id, agent_type) DO UPDATE SET {", ".join(f"{name} = excluded.{name}" for name in _KINDS)}
    """)  # noqa: S608 - names and kinds are those above


def downgrade() -> None:
    """Forget them."""
    for name in _KINDS:
        op.drop_column("goal_compute", name)
