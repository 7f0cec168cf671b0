"""Keys belong to a namespace; tasks and history are listed, and tasks are counted, within one."""

import sqlalchemy as sa
from alembic import context, op

revision = "2026_11_28_namespaces"
down_revision = "2026_11_28_roles"
branch_labels = None
depends_on = None

offline = "builds an index of tasks, and one of task_history"

functions_sha256 = "8361aa1a359b994ca3e72deea6832a2f79e3b3f413cb66c5f1e2bec293b10a1f"

_COUNT_OF_BEFORE = """
CREATE OR REPLACE FUNCTION convener_count_tasks() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    IF TG_OP = 'INSERT' THEN
        INSERT INTO queue_changes (agent_type, priority, phase, tasks)
        SELECT agent_type, priority, convener_phase(state, run_at), count(*) FROM arrived GROUP BY 1, 2, 3;
    ELSIF TG_OP = 'DELETE' THEN
        INSERT INTO queue_changes (agent_type, priority, phase, tasks)
        SELECT agent_type, priority, convener_phase(state, run_at), -count(*) FROM departed GROUP BY 1, 2, 3;
    ELSE
        INSERT INTO queue_changes (agent_type, priority, phase, tasks)
        SELECT agent_type, priority, phase, sum(tasks) FROM (
            SELECT agent_type, priority, convener_phase(state, run_at) AS phase, 1 AS tasks FROM arrived
            UNION ALL SELECT agent_type, priority, convener_phase(state, run_at), -1 FROM departed
        ) change GROUP BY 1, 2, 3 HAVING sum(tasks) <> 0;
    END IF;
    RETURN NULL;
END $$
"""
_RECOUNT = """
INSERT INTO queue_counts (agent_type, priority, phase, tasks)
SELECT agent_type, priority, convener_phase(state, run_at), count(*) FROM tasks GROUP BY 1, 2, 3
"""
_NAME = sa.text("substr(split_part(goal_id, '/'::text, 1), 2)")


def upgrade() -> None:
    """Supervisors and readers that exist belong to `default`, where everything is; the keys of others to none."""
    op.add_column(
        "keys", sa.Column("namespace", sa.Text(), server_default="default", comment="null: of the whole service")
    )
    op.execute("UPDATE keys SET namespace = NULL WHERE role NOT IN ('supervisor', 'reader')")
    op.create_index("keys_namespace", "keys", ["namespace"], postgresql_where=sa.text("namespace <> 'default'"))
    for table in ("tasks", "task_history"):
        op.create_index(f"{table}_namespace", table, [_NAME, "seq"], postgresql_where=sa.text("goal_id LIKE '@%/%'"))
    context.config.attributes["apply_functions"] = True


def downgrade() -> None:
    """Earlier versions know no namespaces, so keys of others than `default` would see everything: they are revoked."""
    op.execute("UPDATE keys SET revoked_at = coalesce(revoked_at, now()) WHERE namespace <> 'default'")
    op.execute(_COUNT_OF_BEFORE)
    op.execute("DROP FUNCTION convener_counted(text, text, timestamptz)")
    op.execute("LOCK TABLE tasks IN SHARE MODE")
    for statement in ("DELETE FROM queue_changes", "DELETE FROM queue_counts", _RECOUNT):
        op.execute(statement)
    for table in ("task_history", "tasks"):
        op.drop_index(f"{table}_namespace", table)
    op.drop_index("keys_namespace", "keys")
    op.drop_column("keys", "namespace")
