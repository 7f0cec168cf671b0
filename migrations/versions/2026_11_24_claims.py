"""When the claims of those who were refused a permit lapse."""

import sqlalchemy as sa
from alembic import op

revision = "2026_11_24_claims"
down_revision = "2026_11_24_gains"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Claims live for seconds, so those that are there may go."""
    op.execute("DELETE FROM llm_claims")
    op.add_column(
        "llm_claims",
        sa.Column("lapses", sa.DateTime(timezone=True), nullable=False, comment="its holder has given up"),
    )
    op.drop_index("llm_claims_due", "llm_claims")
    op.create_index("llm_claims_lapses", "llm_claims", ["lapses"])


def downgrade() -> None:
    """As before."""
    op.drop_index("llm_claims_lapses", "llm_claims")
    op.create_index("llm_claims_due", "llm_claims", ["due"])
    op.drop_column("llm_claims", "lapses")
