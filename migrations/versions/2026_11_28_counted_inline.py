"""The counts name phases by a function that PostgreSQL makes part of the query, instead of a call for every row."""

from alembic import context, op

revision = "2026_11_28_counted_inline"
down_revision = "2026_11_28_goal_totals"
branch_labels = None
depends_on = None

functions_sha256 = "aee38c29e943f4e08419eaa2a4f09faef7de6fd57b0191d2da7a7aa1ab86d3e2"

_FORMER = """
CREATE OR REPLACE FUNCTION convener_counted(goal_id text, state text, run_at timestamptz,
                                            submitted_priority smallint DEFAULT NULL) RETURNS text
LANGUAGE sql IMMUTABLE AS $$
    SELECT CASE WHEN goal_id LIKE '@%/%' THEN split_part(goal_id, '/', 1) || '/' ELSE '' END
           || coalesce(submitted_priority || '/', '') || convener_phase(state, run_at)
$$
"""


def upgrade() -> None:
    """Replace the function; its results are the same."""
    context.config.attributes["apply_functions"] = True


def downgrade() -> None:
    """Bring back the former text."""
    op.execute(_FORMER)
