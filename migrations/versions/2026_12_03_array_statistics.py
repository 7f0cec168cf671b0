"""No statistics of arrays in events and history, which take most of an ANALYZE and serve no statement."""

from alembic import op

revision = "2026_12_03_array_statistics"
down_revision = "2026_12_02_closed_holds"
branch_labels = None
depends_on = None

_SET = """
DO $do$ DECLARE statement text; BEGIN
    SELECT 'ALTER TABLE {table} ' || string_agg(format('ALTER COLUMN %I SET STATISTICS {target}', attname), ', ')
    INTO statement FROM pg_attribute JOIN pg_type ON pg_type.oid = atttypid
    WHERE attrelid = '{table}'::regclass AND attnum > 0 AND typcategory = 'A';
    EXECUTE statement;
END $do$
"""


def upgrade() -> None:
    """Of the partitions too; nothing waits for it but vacuums."""
    for table in ("events", "task_history"):
        op.execute(_SET.format(table=table, target=0))


def downgrade() -> None:
    """Back to the default of the server."""
    for table in ("events", "task_history"):
        op.execute(_SET.format(table=table, target=-1))
