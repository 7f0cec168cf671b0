"""What one statement does to many tasks is one row of events, which a view unfolds."""

import sqlalchemy as sa
from alembic import context, op
from sqlalchemy.dialects.postgresql import ARRAY, UUID

revision = "2026_11_28_event_rows"
down_revision = "2026_11_28_ended_calls"
branch_labels = None
depends_on = None

functions_sha256 = "454f26b0cea33e242ee9878a4a58f44129deaa891e4c2e54ad52a1a284dc2f88"

_TASK_ID = "null where a goal itself has changed"
_COMMENTS = {
    "next_kind": "of an event that follows that of each task in a row of many",
    "task_ids": "in a row of many tasks; the other arrays go with it, or are null",
}
_ARRAYS = {
    "task_ids": UUID,
    "worker_ids": UUID,
    "tokens": sa.BigInteger,
    "all_seconds": sa.REAL,
    "qualities": sa.Float,
}
_EVENT = """transaction, seq, at, kind, task_id, agent_type, goal_id, worker_id, token, detail, priority, seconds,
            quality"""
# A row for each event. Conditions on `transaction` and `row_seq` lead to its rows by their key.
_VIEW = """
CREATE VIEW every_event AS
SELECT e.transaction, e.seq + coalesce(member.place, 0) AS seq, e.at, coalesce(member.kind, e.kind) AS kind,
       coalesce(member.task_id, e.task_id) AS task_id, e.agent_type, e.goal_id,
       coalesce(member.worker_id, e.worker_id) AS worker_id, coalesce(member.token, e.token) AS token, e.detail,
       e.priority, coalesce(member.seconds, e.seconds) AS seconds, coalesce(member.quality, e.quality) AS quality,
       e.seq AS row_seq
FROM events e LEFT JOIN LATERAL (
    SELECT (n - 1) * CASE WHEN e.next_kind IS NULL THEN 1 ELSE 2 END + step AS place,
           CASE step WHEN 0 THEN e.kind ELSE e.next_kind END AS kind, task_id, worker_id, token,
           CASE step WHEN 0 THEN seconds END AS seconds, CASE step WHEN 0 THEN quality END AS quality
    FROM unnest(e.task_ids, e.worker_ids, e.tokens, e.all_seconds, e.qualities)
        WITH ORDINALITY AS task (task_id, worker_id, token, seconds, quality, n)
    CROSS JOIN generate_series(0, (e.next_kind IS NOT NULL)::int) AS step
) member ON true
"""
_LAST_OF_A_ROW = "CASE WHEN is_called THEN last_value + 1023 ELSE last_value - 1 END"
_FORMER_LAST = "last_value - (NOT is_called)::int"


def upgrade() -> None:
    """Rows that are there stay as they are, with one event each, and cursors that clients keep stay good."""
    op.alter_column("events", "task_id", comment=f"{_TASK_ID}, and in a row of many tasks")
    size = sa.Column("size", sa.SmallInteger, nullable=False, server_default="1", comment="number of events in the row")
    op.add_column("events", size)
    op.add_column("events", sa.Column("next_kind", sa.Text, comment=_COMMENTS["next_kind"]))
    for name, kind in _ARRAYS.items():
        op.add_column("events", sa.Column(name, ARRAY(kind), comment=_COMMENTS.get(name)))
        # To compress random ids takes time and saves nothing.
        op.execute(f"ALTER TABLE events ALTER COLUMN {name} SET STORAGE EXTERNAL")
    op.execute("ALTER TABLE events ALTER COLUMN seq SET INCREMENT BY 1024")
    op.execute(_VIEW)
    context.config.attributes["apply_functions"] = True


def downgrade() -> None:
    """Unfold the rows of many tasks. The sequence goes on behind the events of its last row."""
    op.execute("ALTER TABLE events ALTER COLUMN seq SET INCREMENT BY 1")
    op.execute("SELECT setval('events_seq_seq', last_value + 1023) FROM events_seq_seq WHERE is_called")
    # One after the other: a row takes the place of the first of its own events.
    op.execute(
        f"""CREATE TEMPORARY TABLE unfolded ON COMMIT DROP AS SELECT {_EVENT} FROM every_event
        WHERE (transaction, row_seq) IN (SELECT transaction, seq FROM events WHERE task_ids IS NOT NULL)"""  # noqa: S608 - the columns are those above
    )
    op.execute("DELETE FROM events WHERE task_ids IS NOT NULL")
    op.execute(f"INSERT INTO events ({_EVENT}) OVERRIDING SYSTEM VALUE SELECT {_EVENT} FROM unfolded")  # noqa: S608 - as above
    op.execute("DROP VIEW every_event")
    op.execute(
        f"""DO $do$ BEGIN
            EXECUTE replace(pg_get_functiondef('convener_horizon(regclass[])'::regprocedure),
                            '{_LAST_OF_A_ROW}', '{_FORMER_LAST}');
        END $do$"""
    )
    op.alter_column("events", "task_id", comment=_TASK_ID)
    for name in ("size", "next_kind", *_ARRAYS):
        op.drop_column("events", name)
