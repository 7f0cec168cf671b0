"""Readers of events wait for transactions that write events alone, and an alert tells of those that stay open."""

import sqlalchemy as sa
from alembic import context, op

revision = "2026_11_28_horizon"
down_revision = "2026_11_28_series"
branch_labels = None
depends_on = None

functions_sha256 = "a5a8ff40f049accb69acdc6a640438ca039ec048005211af8c060ec94483706a"

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
    "stuck_executing",
    "worker_starvation",
)
_OWN_TRANSACTION = "(pg_current_xact_id()::text)::bigint + convener_transaction_offset()"
_FORMER_NUMBER = """
CREATE OR REPLACE FUNCTION convener_event_transaction() RETURNS bigint LANGUAGE plpgsql VOLATILE AS $$
BEGIN
    RETURN greatest((pg_current_xact_id()::text)::bigint,
                    (pg_snapshot_xmax(pg_current_snapshot())::text)::bigint - 1) + convener_transaction_offset();
END $$
"""


def upgrade() -> None:
    """Changes of counters are numbered as events are: one of an old transaction comes after those that were folded."""
    op.alter_column("queue_changes", "transaction", server_default=sa.text("convener_event_transaction()"))
    _allow(sorted([*_RULES, "results_delayed"]))
    context.config.attributes["apply_functions"] = True


def downgrade() -> None:
    """Earlier versions read below the oldest transaction of the whole server."""
    op.execute("DELETE FROM alerts WHERE rule = 'results_delayed'")
    _allow(_RULES)
    op.alter_column("queue_changes", "transaction", server_default=sa.text(_OWN_TRANSACTION))
    op.execute(_FORMER_NUMBER)
    op.execute("DROP FUNCTION convener_horizon(regclass[])")


def _allow(rules: "list[str] | tuple[str, ...]") -> None:
    listed = ", ".join(f"'{rule}'" for rule in rules)
    op.drop_constraint("alerts_rule_check", "alerts")
    op.create_check_constraint(op.f("alerts_rule_check"), "alerts", f"rule IN ({listed})")
