"""Sessions of the dashboard, and the links that open one."""

import sqlalchemy as sa
from alembic import op

revision = "2026_11_28_sessions"
down_revision = "2026_11_28_lean_rows"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """A table that nothing refers to."""
    op.create_table(
        "sessions",
        sa.Column("id", sa.Text(), nullable=False),
        sa.Column("key_id", sa.Text(), nullable=False, comment="the key that it acts for"),
        sa.Column("secret_hash", sa.LargeBinary(), nullable=False),
        sa.Column(
            "is_link", sa.Boolean(), nullable=False, comment="opens one session, once, and is good for nothing else"
        ),
        sa.Column("created_at", sa.DateTime(timezone=True), server_default=sa.text("now()"), nullable=False),
        sa.Column("expires_at", sa.DateTime(timezone=True), nullable=False),
        sa.PrimaryKeyConstraint("id", name=op.f("sessions_pkey")),
    )
    op.create_index("sessions_key", "sessions", ["key_id"])


def downgrade() -> None:
    """All sessions end."""
    op.drop_table("sessions")
