"""Decisions on the size of the pool with their inputs, the memory of the scaling loop, and each worker's agent."""

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

revision = "2026_11_24_decisions"
down_revision = "2026_11_24_config"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Two tables that nothing else refers to, and a column without a default, which rewrites nothing."""
    op.create_table(
        "decisions",
        sa.Column("id", sa.BigInteger(), sa.Identity(always=True), nullable=False),
        sa.Column("decided_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("decision_type", sa.Text(), nullable=False),
        sa.Column("current_workers", sa.Integer(), nullable=False),
        sa.Column("target_workers", sa.Integer(), nullable=False),
        sa.Column("inputs", sa.JSON(), nullable=False),
        sa.Column("output", sa.JSON(), nullable=False),
        sa.CheckConstraint(
            "decision_type IN ('maintain', 'rebalance', 'scale_down', 'scale_up')",
            name=op.f("decisions_decision_type_check"),
        ),
        sa.PrimaryKeyConstraint("id", name=op.f("decisions_pkey")),
    )
    op.create_index("decisions_decided", "decisions", ["decided_at"])
    op.create_table(
        "scaling_state",
        sa.Column("is_only", sa.Boolean(), server_default="true", nullable=False),
        sa.Column("decided_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column(
            "content",
            postgresql.JSONB(),
            nullable=False,
            comment="spare workers lately, service times, the target in force",
        ),
        sa.CheckConstraint("is_only", name=op.f("scaling_state_is_only_check")),
        sa.PrimaryKeyConstraint("is_only", name=op.f("scaling_state_pkey")),
    )
    op.add_column("workers", sa.Column("assigned_agent", sa.Text(), nullable=True, comment="what it is to prefer"))


def downgrade() -> None:
    """Forget them."""
    op.drop_column("workers", "assigned_agent")
    op.drop_table("scaling_state")
    op.drop_table("decisions")
