"""The ladder of degradation, and its moves."""

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

revision = "2026_11_24_degradation"
down_revision = "2026_11_24_scaling"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Two tables that nothing else refers to."""
    op.create_table(
        "degradation",
        sa.Column("is_only", sa.Boolean(), server_default="true", nullable=False),
        sa.Column("step", sa.SmallInteger(), nullable=False),
        sa.Column("since", sa.DateTime(timezone=True), nullable=False),
        sa.Column(
            "expires_at",
            sa.DateTime(timezone=True),
            nullable=True,
            comment="when the step is over unless it is renewed",
        ),
        sa.Column("reason", sa.Text(), nullable=False),
        sa.Column("held_until", sa.DateTime(timezone=True), nullable=True),
        sa.Column("held_by", sa.Text(), nullable=True, comment="id of the key that was shown"),
        sa.Column("tight_since", sa.DateTime(timezone=True), nullable=True),
        sa.Column("easy_since", sa.DateTime(timezone=True), nullable=True),
        sa.Column("looked_at", sa.DateTime(timezone=True), nullable=True),
        sa.Column("strain", postgresql.JSONB(), nullable=False, comment="what was seen at the last look"),
        sa.CheckConstraint("is_only", name=op.f("degradation_is_only_check")),
        sa.CheckConstraint("step BETWEEN 0 AND 4", name=op.f("degradation_step_check")),
        sa.CheckConstraint("(held_until IS NULL) = (held_by IS NULL)", name=op.f("degradation_hold_check")),
        sa.PrimaryKeyConstraint("is_only", name=op.f("degradation_pkey")),
    )
    op.create_table(
        "degradation_moves",
        sa.Column("id", sa.BigInteger(), sa.Identity(always=True), nullable=False),
        sa.Column("at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("move", sa.Text(), nullable=False),
        sa.Column("before", sa.SmallInteger(), nullable=False),
        sa.Column("after", sa.SmallInteger(), nullable=False),
        sa.Column("reason", sa.Text(), nullable=False),
        sa.Column("by", sa.Text(), nullable=True, comment="id of the key that was shown; null for the rule"),
        sa.Column(
            "until", sa.DateTime(timezone=True), nullable=True, comment="when the step is over unless it is renewed"
        ),
        sa.CheckConstraint(
            "move IN ('down', 'expired', 'held', 'released', 'up')", name=op.f("degradation_moves_move_check")
        ),
        sa.PrimaryKeyConstraint("id", name=op.f("degradation_moves_pkey")),
    )
    op.create_index("degradation_moves_at", "degradation_moves", ["at"])


def downgrade() -> None:
    """Forget them."""
    op.drop_table("degradation_moves")
    op.drop_table("degradation")
