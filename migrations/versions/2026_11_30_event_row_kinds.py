"""Events tell the kinds of the row that they are in, so that whoever reads few kinds unfolds no other rows."""

from alembic import op

revision = "2026_11_30_event_row_kinds"
down_revision = "2026_11_29_task_vacuum"
branch_labels = None
depends_on = None

_VIEW = """
CREATE OR REPLACE VIEW every_event AS
SELECT e.transaction, e.seq + coalesce(member.place, 0) AS seq, e.at, coalesce(member.kind, e.kind) AS kind,
       coalesce(member.task_id, e.task_id) AS task_id, e.agent_type, e.goal_id,
       coalesce(member.worker_id, e.worker_id) AS worker_id, coalesce(member.token, e.token) AS token, e.detail,
       e.priority, coalesce(member.seconds, e.seconds) AS seconds, coalesce(member.quality, e.quality) AS quality,
       e.seq AS row_seq{row_kinds}
FROM events e LEFT JOIN LATERAL (
    SELECT (n - 1) * CASE WHEN e.next_kind IS NULL THEN 1 ELSE 2 END + step AS place,
           CASE step WHEN 0 THEN e.kind ELSE e.next_kind END AS kind, task_id, worker_id, token,
           CASE step WHEN 0 THEN seconds END AS seconds, CASE step WHEN 0 THEN quality END AS quality
    FROM unnest(e.task_ids, e.worker_ids, e.tokens, e.all_seconds, e.qualities)
        WITH ORDINALITY AS task (task_id, worker_id, token, seconds, quality, n)
    CROSS JOIN generate_series(0, (e.next_kind IS NOT NULL)::int) AS step
) member ON true
"""


def upgrade() -> None:
    """Nothing waits for it but who reads events, for a moment; former versions name the columns that they read."""
    op.execute(_VIEW.format(row_kinds=", e.kind AS row_kind, e.next_kind AS row_next_kind"))


def downgrade() -> None:
    """A view loses columns only with itself."""
    op.execute("DROP VIEW every_event")
    op.execute(_VIEW.format(row_kinds=""))
