"""Statistics of tasks from a tenth of the rows."""

from alembic import op

revision = "2026_11_29_task_statistics"
down_revision = "2026_11_29_worker_classes"
branch_labels = None
depends_on = None

# Of all columns, and of the expressions in indexes: the largest target decides how many rows are read for all of them.
_SET = """
DO $do$ DECLARE statement text; BEGIN
    SELECT 'ALTER TABLE tasks ' || string_agg(format('ALTER COLUMN %I SET STATISTICS {target}', attname), ', ')
    INTO statement FROM pg_attribute WHERE attrelid = 'tasks'::regclass AND attnum > 0 AND NOT attisdropped;
    EXECUTE statement;
    FOR statement IN
        SELECT format('ALTER INDEX %s ALTER COLUMN %s SET STATISTICS {target}', indexrelid::regclass, attnum)
        FROM pg_index JOIN pg_attribute ON attrelid = indexrelid
        WHERE indrelid = 'tasks'::regclass AND indkey[attnum - 1] = 0
    LOOP EXECUTE statement; END LOOP;
END $do$
"""


def upgrade() -> None:
    """Nothing waits for it but vacuums: it changes what the next ANALYZE reads."""
    op.execute(_SET.format(target=10))


def downgrade() -> None:
    """Back to the default of the server."""
    op.execute(_SET.format(target=-1))
