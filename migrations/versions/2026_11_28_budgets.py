"""Budgets of goals count what calls cost, reserved with the permit; tokens have budgets too, and an alert tells."""

import sqlalchemy as sa
from alembic import op

revision = "2026_11_28_budgets"
down_revision = "2026_11_28_task_logs"
branch_labels = None
depends_on = None

_RULES = (
    "breaker_open",
    "database_trouble",
    "degraded",
    "duty_late",
    "key_expiring",
    "oldest_task",
    "pool_below_minimum",
    "queue_growth",
    "refused_requests",
    "replacement_failing",
    "resource_pressure",
    "results_delayed",
    "stuck_executing",
    "worker_starvation",
)


def upgrade() -> None:
    """Calls cost from now on; what reports have said so far stands."""
    reserved: sa.Column[float] = sa.Column(
        "reserved_usd", sa.Float(), nullable=False, server_default="0", comment="of the goal's budget, for this call"
    )
    op.add_column("llm_permits", reserved)
    op.add_column("llm_permits", sa.Column("reserved_tokens", sa.BigInteger(), nullable=False, server_default="0"))
    op.create_table(
        "llm_spending",
        sa.Column("goal_id", sa.Text(), nullable=False),
        sa.Column("cost_usd", sa.Float(), nullable=False),
        sa.Column("tokens", sa.BigInteger(), nullable=False),
        sa.Column("max_cost_usd", sa.Float(), nullable=False, comment="of one call"),
        sa.Column("max_tokens", sa.BigInteger(), nullable=False, comment="of one call"),
        sa.Column("updated_at", sa.DateTime(timezone=True), nullable=False, server_default=sa.func.now()),
        sa.PrimaryKeyConstraint("goal_id", name=op.f("llm_spending_pkey")),
        postgresql_with={
            "fillfactor": "50",
            "autovacuum_vacuum_scale_factor": "0",
            "autovacuum_vacuum_threshold": "500",
        },
    )
    op.add_column("goals", sa.Column("token_budget", sa.BigInteger(), nullable=True))
    base: sa.Column[float] = sa.Column(
        "money_base", sa.Float(), nullable=False, server_default="0", comment="spent until the last report"
    )
    since: sa.Column[float] = sa.Column(
        "money_since", sa.Float(), nullable=False, server_default="0", comment="cost of all calls until then"
    )
    is_low: sa.Column[bool] = sa.Column(
        "is_budget_low",
        sa.Boolean(),
        nullable=False,
        server_default=sa.text("false"),
        comment="an event has told of it",
    )
    for column in (base, since, is_low):
        op.add_column("goals", column)
    op.execute("""
        UPDATE goals g SET money_base = (last.decision ->> 'money_spent')::float8
        FROM goals live CROSS JOIN LATERAL (
            SELECT decision FROM goal_iterations i WHERE i.goal_id = live.id ORDER BY number DESC LIMIT 1
        ) last
        WHERE live.id = g.id AND live.money_budget IS NOT NULL AND live.state IN ('running', 'paused')
          AND last.decision ->> 'money_spent' IS NOT NULL
    """)
    _allow(sorted([*_RULES, "goal_budget"]))


def downgrade() -> None:
    """Forget what calls cost."""
    op.execute("DELETE FROM alerts WHERE rule = 'goal_budget'")
    _allow(_RULES)
    for name in ("is_budget_low", "money_since", "money_base", "token_budget"):
        op.drop_column("goals", name)
    op.drop_table("llm_spending")
    for name in ("reserved_tokens", "reserved_usd"):
        op.drop_column("llm_permits", name)


def _allow(rules: "list[str] | tuple[str, ...]") -> None:
    listed = ", ".join(f"'{rule}'" for rule in rules)
    op.drop_constraint("alerts_rule_check", "alerts")
    op.create_check_constraint(op.f("alerts_rule_check"), "alerts", f"rule IN ({listed})")
