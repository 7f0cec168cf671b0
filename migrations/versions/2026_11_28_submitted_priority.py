"""Tasks keep the priority at their submit when they rise; counters tell it, and tags are given for each of both."""

import sqlalchemy as sa
from alembic import context, op

revision = "2026_11_28_submitted_priority"
down_revision = "2026_11_28_conditions"
branch_labels = None
depends_on = None

offline = "builds two indexes of tasks"

functions_sha256 = "4b4ed1837bd394f028a37cbcf798dab58f9ea2d64f478b915b5734083c0d9663"

_LIVE = "state IN ('blocked', 'pending') AND priority <= 4"
_FLOW: list[str | sa.TextClause] = ["agent_type", "priority", sa.text("coalesce(goal_id, '')"), "tag"]
_FORMER_COUNTED = """
CREATE FUNCTION convener_counted(goal_id text, state text, run_at timestamptz) RETURNS text LANGUAGE sql IMMUTABLE AS $$
    SELECT CASE WHEN goal_id LIKE '@%/%' THEN split_part(goal_id, '/', 1) || '/' || convener_phase(state, run_at)
                ELSE convener_phase(state, run_at) END
$$
"""
_FORMER_TRIGGER = """
CREATE OR REPLACE FUNCTION convener_count_tasks() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    IF TG_OP = 'INSERT' THEN
        INSERT INTO queue_changes (agent_type, priority, phase, tasks)
        SELECT agent_type, priority, convener_counted(goal_id, state, run_at), count(*) FROM arrived GROUP BY 1, 2, 3;
    ELSIF TG_OP = 'DELETE' THEN
        INSERT INTO queue_changes (agent_type, priority, phase, tasks)
        SELECT agent_type, priority, convener_counted(goal_id, state, run_at), -count(*) FROM departed GROUP BY 1, 2, 3;
    ELSE
        INSERT INTO queue_changes (agent_type, priority, phase, tasks)
        SELECT agent_type, priority, phase, sum(tasks) FROM (
            SELECT agent_type, priority, convener_counted(goal_id, state, run_at) AS phase, 1 AS tasks FROM arrived
            UNION ALL SELECT agent_type, priority, convener_counted(goal_id, state, run_at), -1 FROM departed
        ) change GROUP BY 1, 2, 3 HAVING sum(tasks) <> 0;
    END IF;
    RETURN NULL;
END $$
"""
_RECOUNT = """
INSERT INTO queue_counts (agent_type, priority, phase, tasks)
SELECT agent_type, priority, convener_counted(goal_id, state, run_at), count(*) FROM tasks GROUP BY 1, 2, 3
"""


def upgrade() -> None:
    """Tasks that exist count as submitted with the priority that they have."""
    for table in ("tasks", "task_history"):
        op.add_column(
            table,
            sa.Column("submitted_priority", sa.SmallInteger(), comment="null: the priority, which has never risen"),
        )
    for name, origin in (("tasks_submitted_tags", "IS NULL"), ("tasks_raised_tags", "IS NOT NULL")):
        op.create_index(name, "tasks", [*_FLOW], postgresql_where=sa.text(f"{_LIVE} AND submitted_priority {origin}"))
    op.drop_index("tasks_tags", "tasks")
    op.execute("DROP FUNCTION IF EXISTS convener_counted(text, text, timestamptz)")
    context.config.attributes["apply_functions"] = True


def downgrade() -> None:
    """Tasks that have risen keep their present priority, and the counters forget the former one."""
    op.execute("DROP FUNCTION convener_counted(text, text, timestamptz, smallint)")
    op.execute(_FORMER_COUNTED)
    op.execute(_FORMER_TRIGGER)
    op.execute("LOCK TABLE tasks IN SHARE MODE")
    for statement in ("DELETE FROM queue_changes", "DELETE FROM queue_counts", _RECOUNT):
        op.execute(statement)
    op.create_index("tasks_tags", "tasks", [*_FLOW], postgresql_where=sa.text(_LIVE))
    for name in ("tasks_raised_tags", "tasks_submitted_tags"):
        op.drop_index(name, "tasks")
    for table in ("task_history", "tasks"):
        op.drop_column(table, "submitted_priority")
