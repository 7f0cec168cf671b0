"""Counts of refused requests, and one more rule for alerts."""

import sqlalchemy as sa
from alembic import op

revision = "2026_11_28_refusals"
down_revision = "2026_11_28_callers"
branch_labels = None
depends_on = None

_RULES = (
    "breaker_open",
    "database_trouble",
    "degraded",
    "oldest_task",
    "pool_below_minimum",
    "queue_growth",
    "replacement_failing",
    "resource_pressure",
    "stuck_executing",
    "worker_starvation",
)
_REASONS = "reason IN ('forbidden', 'no_key', 'too_many_failures', 'unknown_key')"


def upgrade() -> None:
    """A table that nothing refers to; the check is of a table that stays small."""
    op.create_table(
        "refusals",
        sa.Column("minute", sa.DateTime(timezone=True), nullable=False),
        sa.Column("reason", sa.Text(), nullable=False),
        sa.Column("requests", sa.BigInteger(), nullable=False),
        sa.CheckConstraint(_REASONS, name=op.f("refusals_reason_check")),
        sa.PrimaryKeyConstraint("minute", "reason", name=op.f("refusals_pkey")),
    )
    _allow(sorted([*_RULES, "refused_requests"]))


def downgrade() -> None:
    """Forget what only later versions know."""
    op.execute("DELETE FROM alerts WHERE rule = 'refused_requests'")
    _allow(_RULES)
    op.drop_table("refusals")


def _allow(rules: "list[str] | tuple[str, ...]") -> None:
    listed = ", ".join(f"'{rule}'" for rule in rules)
    op.drop_constraint("alerts_rule_check", "alerts")
    op.create_check_constraint(op.f("alerts_rule_check"), "alerts", f"rule IN ({listed})")
