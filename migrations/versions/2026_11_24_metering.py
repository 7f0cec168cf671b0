"""Goals near the end of their budget: their tasks are let through one by one."""

import sqlalchemy as sa
from alembic import op

revision = "2026_11_24_metering"
down_revision = "2026_11_24_waits"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Three columns with constant defaults, which rewrite nothing."""
    false, nought = sa.text("false"), "0"
    comment = "only so many of its tasks are let through as its budget has room for"
    op.add_column("holds", sa.Column("is_metered", sa.Boolean(), server_default=false, nullable=False, comment=comment))
    comment = "tasks let through since it is metered"
    op.add_column(
        "holds", sa.Column("released", sa.BigInteger(), server_default=nought, nullable=False, comment=comment)
    )
    comment = "attempts that there were before"
    op.add_column("holds", sa.Column("base", sa.BigInteger(), server_default=nought, nullable=False, comment=comment))


def downgrade() -> None:
    """Those that are metered are held whole."""
    op.execute("UPDATE holds SET is_closed = true WHERE is_metered")
    for column in ("base", "released", "is_metered"):
        op.drop_column("holds", column)
