"""Events of tasks of several lanes and goals share a row."""

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects.postgresql import ARRAY

revision = "2026_12_05_event_lanes"
down_revision = "2026_12_04_few_statistics"
branch_labels = None
depends_on = None

_EVENT = """transaction, seq, at, kind, task_id, agent_type, goal_id, worker_id, token, detail, priority, seconds,
            quality"""
_VIEW = """
CREATE OR REPLACE VIEW every_event AS
SELECT e.transaction, e.seq + coalesce(member.place, 0) AS seq, e.at, coalesce(member.kind, e.kind) AS kind,
       coalesce(member.task_id, e.task_id) AS task_id, {agent_type} AS agent_type, {goal_id} AS goal_id,
       coalesce(member.worker_id, e.worker_id) AS worker_id, coalesce(member.token, e.token) AS token, e.detail,
       {priority} AS priority, coalesce(member.seconds, e.seconds) AS seconds,
       coalesce(member.quality, e.quality) AS quality, e.seq AS row_seq, e.kind AS row_kind,
       e.next_kind AS row_next_kind
FROM events e LEFT JOIN LATERAL (
    SELECT (n - 1) * CASE WHEN e.next_kind IS NULL THEN 1 ELSE 2 END + step AS place,
           CASE step WHEN 0 THEN e.kind ELSE e.next_kind END AS kind, task_id, worker_id, token,
           CASE step WHEN 0 THEN seconds END AS seconds, CASE step WHEN 0 THEN quality END AS quality{members}
    FROM unnest(e.task_ids, e.worker_ids, e.tokens, e.all_seconds, e.qualities{arrays})
        WITH ORDINALITY AS task (task_id, worker_id, token, seconds, quality{members}, n)
    CROSS JOIN generate_series(0, (e.next_kind IS NOT NULL)::int) AS step
) member ON true
"""
_FORMER_VIEW = _VIEW.format(
    agent_type="e.agent_type", goal_id="e.goal_id", priority="e.priority", members="", arrays=""
)
_MANY_LANES_VIEW = _VIEW.format(
    agent_type="""coalesce(e.agent_type, (ARRAY['generation', 'reflection', 'ranking', 'evolution', 'proximity',
                                             'meta_review'])[member.lane / 8])""",
    goal_id="coalesce(e.goal_id, member.goal_id)",
    priority="coalesce(e.priority, nullif(member.lane % 8, 0)::smallint)",
    members=", lane, goal_id",
    arrays=", e.lanes, e.goal_ids",
)


def upgrade() -> None:
    """Rows that are there stay as they are, and former versions read the new ones through the view."""
    comment = "8 times the place of the agent type, from 1 on, plus the priority"
    op.add_column("events", sa.Column("lanes", ARRAY(sa.SmallInteger), comment=comment))
    op.add_column("events", sa.Column("goal_ids", ARRAY(sa.Text)))
    # As of all arrays here: they would take most of an ANALYZE.
    for name in ("lanes", "goal_ids"):
        op.execute(f"ALTER TABLE events ALTER COLUMN {name} SET STATISTICS 0")
    op.execute(_MANY_LANES_VIEW)


def downgrade() -> None:
    """Unfold the rows that tell lanes or goals by arrays: one takes the place of the first of its own events."""
    op.execute(
        f"""CREATE TEMPORARY TABLE unfolded_lanes ON COMMIT DROP AS SELECT {_EVENT} FROM every_event
        WHERE (transaction, row_seq) IN (
            SELECT transaction, seq FROM events WHERE lanes IS NOT NULL OR goal_ids IS NOT NULL
        )"""  # noqa: S608 - the columns are those above
    )
    op.execute("DELETE FROM events WHERE lanes IS NOT NULL OR goal_ids IS NOT NULL")
    op.execute(f"INSERT INTO events ({_EVENT}) OVERRIDING SYSTEM VALUE SELECT {_EVENT} FROM unfolded_lanes")  # noqa: S608 - as above
    op.execute(_FORMER_VIEW)
    op.drop_column("events", "lanes")
    op.drop_column("events", "goal_ids")
