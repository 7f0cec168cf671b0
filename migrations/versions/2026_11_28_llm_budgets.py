"""Budgets of agent types and API keys for calls of language models, with an alert."""

from typing import Any

import sqlalchemy as sa
from alembic import op

revision = "2026_11_28_llm_budgets"
down_revision = "2026_11_28_returns"
branch_labels = None
depends_on = None

_RULES = (
    "breaker_open",
    "database_trouble",
    "degraded",
    "duty_late",
    "goal_budget",
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


def _amount(name: str, type_: "sa.types.TypeEngine[Any]", comment: str | None = None) -> "sa.Column[Any]":
    return sa.Column(name, type_, nullable=False, server_default="0", comment=comment)


def upgrade() -> None:
    """Nobody has a budget yet."""
    op.create_table(
        "llm_budgets",
        sa.Column("scope", sa.Text(), nullable=False),
        sa.Column("name", sa.Text(), nullable=False, comment="agent type, or id of a key"),
        sa.Column("money_budget", sa.Float(), nullable=True, comment="US dollars; null: no limit"),
        sa.Column("token_budget", sa.BigInteger(), nullable=True, comment="null: no limit"),
        sa.Column("period", sa.Text(), nullable=False),
        sa.Column(
            "ends_at",
            sa.DateTime(timezone=True),
            nullable=True,
            comment="of the period that the amounts are of; null: they are for ever",
        ),
        _amount("cost_usd", sa.Float()),
        _amount("tokens", sa.BigInteger()),
        _amount("max_cost_usd", sa.Float(), "of one call, ever"),
        _amount("max_tokens", sa.BigInteger(), "of one call, ever"),
        sa.Column(
            "is_low", sa.Boolean(), nullable=False, server_default=sa.text("false"), comment="an event has told of it"
        ),
        sa.CheckConstraint("scope IN ('agent', 'key')", name=op.f("llm_budgets_scope_check")),
        sa.CheckConstraint(
            "period IN ('day', 'hour', 'month', 'total', 'week')", name=op.f("llm_budgets_period_check")
        ),
        sa.PrimaryKeyConstraint("scope", "name", name="llm_budgets_pkey"),
        postgresql_with={
            "fillfactor": "50",
            "autovacuum_vacuum_scale_factor": "0",
            "autovacuum_vacuum_threshold": "500",
        },
    )
    _allow((*_RULES, "llm_budget"))


def downgrade() -> None:
    """Nobody has a budget any more."""
    op.execute("DELETE FROM alerts WHERE rule = 'llm_budget'")
    _allow(_RULES)
    op.drop_table("llm_budgets")


def _allow(rules: "tuple[str, ...]") -> None:
    listed = ", ".join(f"'{rule}'" for rule in sorted(rules))
    op.drop_constraint("alerts_rule_check", "alerts")
    op.create_check_constraint(op.f("alerts_rule_check"), "alerts", f"rule IN ({listed})")
