"""One more rule for alerts, which tells of background duties that are late."""

from alembic import op

revision = "2026_11_28_duty_late"
down_revision = "2026_11_28_audit"
branch_labels = None
depends_on = None

_RULES = (
    "breaker_open",
    "database_trouble",
    "degraded",
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
    """The check is of a table that stays small."""
    _allow(sorted([*_RULES, "duty_late"]))


def downgrade() -> None:
    """Forget what only later versions know."""
    op.execute("DELETE FROM alerts WHERE rule = 'duty_late'")
    _allow(_RULES)


def _allow(rules: "list[str] | tuple[str, ...]") -> None:
    listed = ", ".join(f"'{rule}'" for rule in rules)
    op.drop_constraint("alerts_rule_check", "alerts")
    op.create_check_constraint(op.f("alerts_rule_check"), "alerts", f"rule IN ({listed})")
