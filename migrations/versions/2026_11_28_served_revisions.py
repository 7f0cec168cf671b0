"""The schema says which versions of the program it serves besides its own."""

import sqlalchemy as sa
from alembic import op

revision = "2026_11_28_served_revisions"
down_revision = "2026_11_28_engines"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """A table that nothing refers to."""
    op.create_table(
        "served_revisions",
        sa.Column("revision", sa.Text(), nullable=False, comment="the schema that such a version was made for"),
        sa.PrimaryKeyConstraint("revision", name=op.f("served_revisions_pkey")),
        comment="versions of the program that may work with this schema",
    )


def downgrade() -> None:
    """Earlier versions serve none but themselves."""
    op.drop_table("served_revisions")
