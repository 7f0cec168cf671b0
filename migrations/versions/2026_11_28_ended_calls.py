"""Numbers of ended calls of language models, by which a budget knows how well it knows their cost."""

import sqlalchemy as sa
from alembic import op

revision = "2026_11_28_ended_calls"
down_revision = "2026_11_28_not_ready"
branch_labels = None
depends_on = None

_COMMENTS = {"llm_spending": "those that cost something", "llm_budgets": "those that cost something, ever"}


def upgrade() -> None:
    """Columns with a constant default, so nothing is rewritten; what was before counts as little tried."""
    for table, comment in _COMMENTS.items():
        op.add_column(table, sa.Column("calls", sa.BigInteger(), nullable=False, server_default="0", comment=comment))


def downgrade() -> None:
    """Forget them."""
    for table in _COMMENTS:
        op.drop_column(table, "calls")
