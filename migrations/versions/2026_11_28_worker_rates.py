"""What one worker uses of a model's rate is metered beside what all use."""

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

revision = "2026_11_28_worker_rates"
down_revision = "2026_11_28_credentials"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Nobody has used anything."""
    column: sa.Column[dict[str, str]] = sa.Column(
        "worker_tats",
        postgresql.JSONB(),
        server_default="{}",
        nullable=False,
        comment="the same of single workers",
    )
    op.add_column("llm_models", column)


def downgrade() -> None:
    """Forget it."""
    op.drop_column("llm_models", "worker_tats")
