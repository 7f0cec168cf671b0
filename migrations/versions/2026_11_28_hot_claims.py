"""A claim touches no index of tasks, and the log tells only of the columns that it changes."""

from collections.abc import Mapping

from alembic import op

revision = "2026_11_28_hot_claims"
down_revision = "2026_11_28_event_rows"
branch_labels = None
depends_on = None

offline = "writes every task that was ever leased, and builds the indexes of tasks anew"

_CHANGED = {
    "state": "text NOT NULL DEFAULT 'pending'",
    "token": "bigint NOT NULL DEFAULT 0",
    "worker_id": "uuid",
    "leased_at": "timestamptz",
    "lease_expires_at": "timestamptz",
    "deadline_at": "timestamptz",
}
_CHECKS = {
    "state": "state IN ('assigned', 'blocked', 'executing', 'pending')",
    "blocked": "(blockers > 0) = (state = 'blocked')",
    "leased": "(worker_id IS NOT NULL) = (state IN ('assigned', 'executing'))",
}
_FLOW = "agent_type, priority, coalesce(goal_id, ''), tag"
_INDEXES = {
    "tasks_claim": "agent_type, priority, tag, seq",
    "tasks_waiting": "priority, waiting_since",
    "tasks_submitted_tags": _FLOW,
    "tasks_raised_tags": _FLOW,
    "tasks_deadline": "deadline",
}
_CONDITIONS = {
    "tasks_claim": "blockers = 0 AND run_at IS NULL",
    "tasks_waiting": "blockers = 0 AND run_at IS NULL AND priority <= 4",
    "tasks_submitted_tags": "priority <= 4 AND submitted_priority IS NULL",
    "tasks_raised_tags": "priority <= 4 AND submitted_priority IS NOT NULL",
    "tasks_deadline": "deadline IS NOT NULL AND priority < 4",
}
_FORMER_CONDITIONS = {
    "tasks_claim": "state = 'pending' AND run_at IS NULL",
    "tasks_waiting": "state = 'pending' AND run_at IS NULL AND priority <= 4",
    "tasks_submitted_tags": "state IN ('blocked', 'pending') AND priority <= 4 AND submitted_priority IS NULL",
    "tasks_raised_tags": "state IN ('blocked', 'pending') AND priority <= 4 AND submitted_priority IS NOT NULL",
    "tasks_deadline": "deadline IS NOT NULL AND priority < 4 AND state IN ('blocked', 'pending')",
}


def upgrade() -> None:
    """Move the columns that a claim changes to the end of the rows; only tasks that were ever leased are rewritten."""
    for name in _INDEXES:
        op.execute(f"DROP INDEX {name}")
    for name in _CHECKS:
        op.drop_constraint(op.f(f"tasks_{name}_check"), "tasks")
    for name, definition in _CHANGED.items():
        op.execute(f"ALTER TABLE tasks RENAME COLUMN {name} TO former_{name}")
        op.execute(f"ALTER TABLE tasks ADD COLUMN {name} {definition}")
    # No task changes, so nothing is counted.
    op.execute("ALTER TABLE tasks DISABLE TRIGGER USER")
    moved = ", ".join(f"{name} = former_{name}" for name in _CHANGED)
    op.execute(f"UPDATE tasks SET {moved} WHERE former_state <> 'pending' OR former_token <> 0")  # noqa: S608 - as above
    op.execute("ALTER TABLE tasks ENABLE TRIGGER USER")
    for name in _CHANGED:
        op.execute(f"ALTER TABLE tasks DROP COLUMN former_{name}")
    op.alter_column("tasks", "state", server_default=None)
    for name, condition in _CHECKS.items():
        op.create_check_constraint(op.f(f"tasks_{name}_check"), "tasks", condition)
    _create_indexes(_CONDITIONS)
    op.execute("ALTER TABLE tasks SET (fillfactor = 45)")


def downgrade() -> None:
    """Bring back the former indexes; the order of the columns makes no difference to anybody."""
    for name in _INDEXES:
        op.execute(f"DROP INDEX {name}")
    _create_indexes(_FORMER_CONDITIONS)
    op.execute("ALTER TABLE tasks SET (fillfactor = 70)")


def _create_indexes(conditions: Mapping[str, str]) -> None:
    for name, columns in _INDEXES.items():
        op.execute(f"CREATE INDEX {name} ON tasks ({columns}) WHERE {conditions[name]}")
