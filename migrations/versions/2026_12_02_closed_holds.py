"""Claims find the closed goals whose tasks are not out of their way yet without a walk over all that are held."""

from alembic import op

from migrations.online import create_index

revision = "2026_12_02_closed_holds"
down_revision = "2026_11_30_model_uses"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """An index of the closed ones alone, made beside writers."""
    create_index("holds_closed", "holds", "(is_swept) WHERE is_closed")


def downgrade() -> None:
    """Former versions walk."""
    op.drop_index("holds_closed", table_name="holds")
