"""The outbox of webhooks, and one more rule for alerts."""

import sqlalchemy as sa
from alembic import op

revision = "2026_11_24_webhooks"
down_revision = "2026_11_24_starting"
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
_KINDS = "kind IN ('alert.opened', 'alert.resolved', 'alert.worsened')"


def upgrade() -> None:
    """A table that nothing else refers to; the check is of a table that stays small."""
    op.create_table(
        "webhook_deliveries",
        sa.Column("id", sa.UUID(), nullable=False, comment="the receiver tells repetitions by it"),
        sa.Column("seq", sa.BigInteger(), sa.Identity(always=True), nullable=False),
        sa.Column("alert_id", sa.BigInteger(), nullable=False),
        sa.Column("kind", sa.Text(), nullable=False),
        sa.Column("body", sa.Text(), nullable=False, comment="just as it is sent, whenever it is sent again"),
        sa.Column("created_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("attempts", sa.Integer(), server_default=sa.text("0"), nullable=False),
        sa.Column("due_at", sa.DateTime(timezone=True), nullable=True, comment="null: it was delivered or given up"),
        sa.Column("delivered_at", sa.DateTime(timezone=True), nullable=True),
        sa.Column("given_up_at", sa.DateTime(timezone=True), nullable=True),
        sa.Column("last_error", sa.Text(), nullable=True),
        sa.CheckConstraint(_KINDS, name=op.f("webhook_deliveries_kind_check")),
        sa.PrimaryKeyConstraint("id", name=op.f("webhook_deliveries_pkey")),
    )
    op.create_index("webhook_deliveries_alert", "webhook_deliveries", ["alert_id", "seq"])
    due = sa.text("due_at IS NOT NULL")
    op.create_index("webhook_deliveries_due", "webhook_deliveries", ["due_at"], postgresql_where=due)
    _allow(sorted([*_RULES, "degraded"]))


def downgrade() -> None:
    """Forget what only later versions know."""
    op.execute("DELETE FROM alerts WHERE rule = 'degraded'")
    _allow(_RULES)
    op.drop_table("webhook_deliveries")


def _allow(rules: "list[str] | tuple[str, ...]") -> None:
    listed = ", ".join(f"'{rule}'" for rule in rules)
    op.drop_constraint("alerts_rule_check", "alerts")
    op.create_check_constraint(op.f("alerts_rule_check"), "alerts", f"rule IN ({listed})")
