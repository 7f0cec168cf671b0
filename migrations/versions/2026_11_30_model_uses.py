"""A language model that nobody has called has no last use, where it had the time at which it was listed."""

import sqlalchemy as sa
from alembic import op

revision = "2026_11_30_model_uses"
down_revision = "2026_11_30_weight_steps"
branch_labels = None
depends_on = None

# Whatever a call leaves; a reset forgets what the service was seen to bear, the sums of calls stay a while.
_UNUSED = """
UPDATE llm_models SET used_at = NULL
WHERE latency_seconds IS NULL AND requests_tat IS NULL AND tokens_tat IS NULL AND shrunk_at IS NULL
    AND failures = 0 AND callers = '{}'
    AND model NOT IN (SELECT model FROM llm_minutes) AND model NOT IN (SELECT model FROM llm_permits)
"""


def upgrade() -> None:
    """A change of the catalogue, and of a table with few rows."""
    op.alter_column("llm_models", "used_at", nullable=True, server_default=None)
    op.execute(_UNUSED)


def downgrade() -> None:
    """Former versions take it for unlisted."""
    op.execute("UPDATE llm_models SET used_at = now() WHERE used_at IS NULL")
    op.alter_column("llm_models", "used_at", nullable=False, server_default=sa.text("now()"))
