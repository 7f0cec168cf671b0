"""Language models have conditions, tasks wait for them, and an alert tells of keys that are about to expire."""

import sqlalchemy as sa
from alembic import op

revision = "2026_11_28_conditions"
down_revision = "2026_11_28_replacements"
branch_labels = None
depends_on = None

_RULES = (
    "breaker_open",
    "database_trouble",
    "degraded",
    "duty_late",
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
    """All services are well as far as anybody knows."""
    moment = sa.DateTime(timezone=True)
    cause: sa.Column[str] = sa.Column(
        "cause", sa.Text(), nullable=True, comment="the condition for which the breaker is open; null: failures"
    )
    op.add_column("llm_models", cause)
    op.add_column(
        "llm_models", sa.Column("until", moment, nullable=True, comment="the end of the condition, where it is known")
    )
    op.add_column(
        "llm_models", sa.Column("key_expires_at", moment, nullable=True, comment="the earliest that callers know of")
    )
    op.create_table(
        "parked_tasks",
        sa.Column("task_id", sa.UUID(), nullable=False),
        sa.Column("model", sa.Text(), nullable=False),
        sa.Column("parked_at", moment, nullable=False, server_default=sa.func.now()),
        sa.Column("woken_at", moment, nullable=True, comment="as the one that tries the model"),
        sa.PrimaryKeyConstraint("task_id", name=op.f("parked_tasks_pkey")),
    )
    op.create_index("parked_tasks_of_model", "parked_tasks", ["model", "parked_at"])
    _allow(sorted([*_RULES, "key_expiring"]))


def downgrade() -> None:
    """Forget what only later versions know. Parked tasks come back after their delay."""
    op.execute("DELETE FROM alerts WHERE rule = 'key_expiring'")
    _allow(_RULES)
    op.drop_table("parked_tasks")
    for name in ("key_expires_at", "until", "cause"):
        op.drop_column("llm_models", name)


def _allow(rules: "list[str] | tuple[str, ...]") -> None:
    listed = ", ".join(f"'{rule}'" for rule in rules)
    op.drop_constraint("alerts_rule_check", "alerts")
    op.create_check_constraint(op.f("alerts_rule_check"), "alerts", f"rule IN ({listed})")
