"""Statistics of events, history and leases from a tenth of the rows, as those of tasks."""

from alembic import op

revision = "2026_12_04_few_statistics"
down_revision = "2026_12_03_array_statistics"
branch_labels = None
depends_on = None

# Of all columns but arrays, which have none, and of the expressions in indexes: the largest target decides how many
# rows are read for all of them.
_SET = """
DO $do$ DECLARE statement text; BEGIN
    FOR statement IN
        SELECT format('ALTER TABLE %s ALTER COLUMN %I SET STATISTICS {target}', attrelid::regclass, attname)
        FROM pg_attribute JOIN pg_type ON pg_type.oid = atttypid
        WHERE attrelid = ANY (ARRAY['events', 'task_history', 'leases']::regclass[]) AND attnum > 0
          AND typcategory <> 'A'
        UNION ALL
        SELECT format('ALTER INDEX %s ALTER COLUMN %s SET STATISTICS {target}', indexrelid::regclass, attnum)
        FROM unnest(ARRAY['events', 'task_history']::regclass[]) AS parent
        CROSS JOIN pg_partition_tree(parent) AS part JOIN pg_index ON indrelid = part.relid
        JOIN pg_attribute ON attrelid = indexrelid
        WHERE indkey[attnum - 1] = 0
    LOOP EXECUTE statement; END LOOP;
END $do$
"""


def upgrade() -> None:
    """Of the partitions too; nothing waits for it but vacuums: it changes what the next ANALYZE reads."""
    op.execute(_SET.format(target=10))


def downgrade() -> None:
    """Back to the default of the server."""
    op.execute(_SET.format(target=-1))
