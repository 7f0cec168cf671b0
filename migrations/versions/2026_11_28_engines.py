"""Pools whose members an engine starts (Kubernetes, Slurm) are hosts with a size and without figures of a machine."""

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

revision = "2026_11_28_engines"
down_revision = "2026_11_28_sessions"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Columns with constant defaults, which rewrite nothing."""
    op.add_column(
        "hosts",
        sa.Column(
            "max_size", sa.Integer(), comment="members that its engine may keep; null: a machine, which is measured"
        ),
    )
    op.add_column(
        "hosts",
        sa.Column(
            "block_size", sa.Integer(), nullable=False, server_default="1", comment="members that come and go together"
        ),
    )
    op.add_column(
        "hosts", sa.Column("member_waits", postgresql.JSONB(), comment="why members of an engine do not come")
    )
    op.add_column(
        "hosts",
        sa.Column(
            "awaited",
            postgresql.JSONB(),
            comment="members of an engine that have not registered, by name: when they were made",
        ),
    )
    op.add_column(
        "hosts",
        sa.Column(
            "dismissed",
            postgresql.ARRAY(sa.Text()),
            nullable=False,
            server_default="{}",
            comment="members that its engine removes",
        ),
    )
    op.add_column(
        "hosts",
        sa.Column(
            "scaling_until",
            sa.DateTime(timezone=True),
            comment="until when a process that asks its engine for another size is left alone",
        ),
    )


def downgrade() -> None:
    """Earlier versions take the pool of an engine for a machine without memory, which starts nothing."""
    op.execute("DELETE FROM hosts WHERE max_size IS NOT NULL")
    for column in ("scaling_until", "dismissed", "awaited", "member_waits", "block_size", "max_size"):
        op.drop_column("hosts", column)
