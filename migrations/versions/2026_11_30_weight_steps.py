"""The last step of the weights is found without a walk over the orders that came after it."""

from alembic import op

from migrations.online import create_index

revision = "2026_11_30_weight_steps"
down_revision = "2026_11_30_budget_comments"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """An index of the steps alone, made beside writers."""
    create_index("weights_steps", "weights", "(version) WHERE adjustments <> '{}'::jsonb")


def downgrade() -> None:
    """Former versions walk."""
    op.drop_index("weights_steps", table_name="weights")
