"""A table in which each process of the API notes that it is there."""

import sqlalchemy as sa
from alembic import op

revision = "2026_11_28_api_processes"
down_revision = "2026_11_28_llm_budgets"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """A table that nothing refers to; a version without it notes nothing, and is then not waited for."""
    op.create_table(
        "api_processes",
        sa.Column("id", sa.UUID(), nullable=False),
        sa.Column("began_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("present_since", sa.DateTime(timezone=True), nullable=False, comment="without an absence"),
        sa.Column("seen_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("backend", sa.Integer(), nullable=False, comment="pid of its last session at the server"),
        sa.PrimaryKeyConstraint("id", name=op.f("api_processes_pkey")),
        postgresql_with={"fillfactor": "50"},
    )


def downgrade() -> None:
    """Forget it."""
    op.drop_table("api_processes")
