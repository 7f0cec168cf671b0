"""Alerts, and a way to find the workers that ended lately."""

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

revision = "2026_11_24_alerts"
down_revision = "2026_11_24_decisions"
branch_labels = None
depends_on = None

_RULES = (
    "breaker_open",
    "database_trouble",
    "oldest_task",
    "pool_below_minimum",
    "queue_growth",
    "replacement_failing",
    "resource_pressure",
    "stuck_executing",
    "worker_starvation",
)


def upgrade() -> None:
    """A table that nothing else refers to, and an index on a small one."""
    op.create_table(
        "alerts",
        sa.Column("id", sa.BigInteger(), sa.Identity(always=True), nullable=False),
        sa.Column("rule", sa.Text(), nullable=False),
        sa.Column(
            "subject",
            sa.Text(),
            nullable=False,
            comment="which of the things that the rule watches; empty for the only one",
        ),
        sa.Column("state", sa.Text(), nullable=False),
        sa.Column("severity", sa.Text(), nullable=False, comment="the worst since it opened"),
        sa.Column("summary", sa.Text(), nullable=False),
        sa.Column("advice", sa.Text(), nullable=False),
        sa.Column("facts", postgresql.JSONB(), nullable=False),
        sa.Column("opened_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("updated_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("acknowledged_at", sa.DateTime(timezone=True), nullable=True),
        sa.Column("acknowledged_by", sa.Text(), nullable=True, comment="id of the key that was shown"),
        sa.Column("note", sa.Text(), nullable=True),
        sa.Column("resolved_at", sa.DateTime(timezone=True), nullable=True),
        sa.Column("resolution", sa.Text(), nullable=True),
        sa.CheckConstraint(
            "rule IN (" + ", ".join(f"'{rule}'" for rule in _RULES) + ")", name=op.f("alerts_rule_check")
        ),
        sa.CheckConstraint("state IN ('acknowledged', 'open', 'resolved')", name=op.f("alerts_state_check")),
        sa.CheckConstraint("severity IN ('critical', 'warning')", name=op.f("alerts_severity_check")),
        sa.PrimaryKeyConstraint("id", name=op.f("alerts_pkey")),
    )
    stands = sa.text("state IN ('open', 'acknowledged')")
    op.create_index("alerts_standing", "alerts", ["rule", "subject"], unique=True, postgresql_where=stands)
    over = sa.text("resolved_at IS NOT NULL")
    op.create_index("alerts_resolved", "alerts", ["resolved_at"], postgresql_where=over)
    op.create_index("workers_ended", "workers", ["ended_at"], postgresql_where=sa.text("ended_at IS NOT NULL"))


def downgrade() -> None:
    """Forget them."""
    op.drop_index("workers_ended", "workers")
    op.drop_table("alerts")
