"""Who has told of the end of a language model's key, and when."""

import sqlalchemy as sa
from alembic import op

revision = "2026_11_30_key_reports"
down_revision = "2026_11_30_metered_tasks"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Columns without a default, of a table with few rows."""
    op.add_column(
        "llm_models", sa.Column("key_reported_by", sa.Text(), comment="worker, or key of somebody who is none")
    )
    op.add_column("llm_models", sa.Column("key_reported_at", sa.DateTime(timezone=True)))


def downgrade() -> None:
    """The end itself stays known."""
    op.drop_column("llm_models", "key_reported_at")
    op.drop_column("llm_models", "key_reported_by")
