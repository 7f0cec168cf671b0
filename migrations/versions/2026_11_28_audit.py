"""Entries of the audit log have the label of their key."""

import sqlalchemy as sa
from alembic import op

revision = "2026_11_28_audit"
down_revision = "2026_11_28_horizon"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """A column without a default, which rewrites nothing; entries without it keep their digest."""
    op.add_column("audit", sa.Column("label", sa.Text(), nullable=True, comment="of that key at the time"))


def downgrade() -> None:
    """Earlier versions compute digests without labels: for them the entries that have one are wrong."""
    op.drop_column("audit", "label")
