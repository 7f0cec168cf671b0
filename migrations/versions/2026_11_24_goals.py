"""Research goals: their limits, iterations and compute, and tasks that are held back with their goal."""

from typing import Any

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

revision = "2026_11_24_goals"
down_revision = "2026_11_24_claims"
branch_labels = None
depends_on = None

offline = "builds an index of tasks"

_GOAL_COLUMNS: dict[str, sa.types.TypeEngine[Any]] = {
    "state": sa.Text(),
    "objective": sa.Text(),
    "time_limit_seconds": sa.Float(),
    "compute_budget_seconds": sa.Float(),
    "money_budget": sa.Float(),
    "min_iterations": sa.Integer(),
    "max_iterations": sa.Integer(),
    "improvement_threshold": sa.Float(),
    "improvement_unit": sa.Text(),
    "rule": sa.Text(),
    "patience": sa.Integer(),
    "created_by": sa.Text(),
    "request_hash": sa.LargeBinary(),
    "started_at": sa.DateTime(timezone=True),
    "ended_at": sa.DateTime(timezone=True),
    "reason": sa.Text(),
}
_COMMENTS = {
    "created_by": "id of the key that was shown",
    "request_hash": "of the body that created it",
    "reason": "why it is in this state",
}
_CHECKS = {
    "state": "('paused', 'running', 'stopped')",
    "improvement_unit": "('relative', 'win_probability')",
    "rule": "('anchored_best', 'slope')",
}
_RUN_AT = "null once the task may run"
_RUN_AT_HELD = f"{_RUN_AT}; infinity while its goal is held back"
_PHASE = """
CREATE OR REPLACE FUNCTION convener_phase(state text, run_at timestamptz) RETURNS text LANGUAGE sql IMMUTABLE
AS $$ SELECT CASE {held} WHEN state = 'pending' AND run_at IS NOT NULL THEN 'delayed' ELSE state END $$
"""


def upgrade() -> None:
    """Columns without defaults, an index that is empty at first, and tables that nothing else refers to."""
    for name, kind in _GOAL_COLUMNS.items():
        op.add_column("goals", sa.Column(name, kind, nullable=True, comment=_COMMENTS.get(name)))
    for column, words in _CHECKS.items():
        op.create_check_constraint(op.f(f"goals_{column}_check"), "goals", f"{column} IN {words}")
    op.create_index("goals_by_state", "goals", ["state", "id"], postgresql_where=sa.text("state IS NOT NULL"))
    _create_tables()
    _hold_tasks()
    op.alter_column(
        "events", "task_id", nullable=True, existing_comment=None, comment="null where a goal itself has changed"
    )
    op.alter_column("events", "agent_type", nullable=True)


def downgrade() -> None:
    """Everything that is held back may run; events of goals are gone, as is what is known of them."""
    op.execute("DELETE FROM events WHERE task_id IS NULL")
    op.alter_column("events", "agent_type", nullable=False)
    op.alter_column(
        "events", "task_id", nullable=False, existing_comment="null where a goal itself has changed", comment=None
    )
    # The trigger counts what this changes, by the phases that there are until here.
    op.execute("UPDATE tasks SET run_at = due_at WHERE run_at = 'infinity'")
    op.execute(_PHASE.format(held=""))
    op.drop_index("tasks_held", table_name="tasks")
    op.drop_column("tasks", "due_at")
    op.alter_column("tasks", "run_at", existing_comment=_RUN_AT_HELD, comment=_RUN_AT)
    for table in ("holds", "goal_compute", "goal_iterations"):
        op.drop_table(table)
    op.execute("DELETE FROM folds WHERE name = 'goals'")
    op.drop_index("goals_by_state", table_name="goals")
    for name in reversed(_GOAL_COLUMNS):
        op.drop_column("goals", name)


def _hold_tasks() -> None:
    op.alter_column("tasks", "run_at", existing_comment=_RUN_AT, comment=_RUN_AT_HELD)
    due_at = sa.Column(
        "due_at",
        sa.DateTime(timezone=True),
        nullable=True,
        comment="what run_at was before the goal was held back",
    )
    op.add_column("tasks", due_at)
    op.create_index(
        "tasks_held",
        "tasks",
        ["goal_id", "agent_type", "priority", "tag", "seq"],
        postgresql_where=sa.text("run_at = 'infinity'"),
    )
    op.execute(_PHASE.format(held="WHEN state = 'pending' AND run_at = 'infinity' THEN 'held'"))


def _create_tables() -> None:
    agents = "('evolution', 'generation', 'meta_review', 'proximity', 'ranking', 'reflection')"
    now = sa.text("now()")
    op.create_table(
        "goal_iterations",
        sa.Column("goal_id", sa.Text(), nullable=False),
        sa.Column("number", sa.Integer(), nullable=False),
        sa.Column("reported_at", sa.DateTime(timezone=True), server_default=now, nullable=False),
        sa.Column("claimed_seconds", sa.Float(), nullable=True, comment="compute, by the word of the client"),
        sa.Column("tasks", sa.Integer(), nullable=True),
        sa.Column("request_hash", sa.LargeBinary(), nullable=False),
        sa.Column("report", sa.JSON(), nullable=False, comment="the iteration as the rule takes it"),
        sa.Column("inputs", sa.JSON(), nullable=False, comment="what was used by then, and the policy"),
        sa.Column("decision", sa.JSON(), nullable=False),
        sa.PrimaryKeyConstraint("goal_id", "number", name="goal_iterations_pkey"),
    )
    op.create_table(
        "goal_compute",
        sa.Column("goal_id", sa.Text(), nullable=False),
        sa.Column("agent_type", sa.Text(), nullable=False),
        sa.Column("attempts", sa.BigInteger(), nullable=False),
        sa.Column("seconds", sa.Float(), nullable=False),
        sa.CheckConstraint(f"agent_type IN {agents}", name=op.f("goal_compute_agent_type_check")),
        sa.PrimaryKeyConstraint("goal_id", "agent_type", name="goal_compute_pkey"),
    )
    op.create_table(
        "holds",
        sa.Column("goal_id", sa.Text(), nullable=False),
        sa.Column("reason", sa.Text(), nullable=False),
        sa.Column("is_closed", sa.Boolean(), server_default=sa.text("true"), nullable=False),
        sa.Column(
            "is_swept",
            sa.Boolean(),
            server_default=sa.text("false"),
            nullable=False,
            comment="its tasks are out of the way",
        ),
        sa.Column("swept_seq", sa.BigInteger(), server_default="0", nullable=False, comment="its tasks up to here are"),
        sa.Column(
            "shifts",
            postgresql.JSONB(),
            nullable=True,
            comment="lane -> by how much its tags move when its tasks come back",
        ),
        sa.Column("since", sa.DateTime(timezone=True), server_default=now, nullable=False),
        sa.CheckConstraint("reason IN ('budget', 'paused', 'stopped')", name=op.f("holds_reason_check")),
        sa.PrimaryKeyConstraint("goal_id", name=op.f("holds_pkey")),
    )
