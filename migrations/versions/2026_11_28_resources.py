"""Tasks ask for resources and workers offer them; equal requests share a class, which has lanes of its own."""

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects.postgresql import JSONB

revision = "2026_11_28_resources"
down_revision = "2026_11_28_walltimes"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Columns without a default and two empty tables: no row is rewritten, and no index is built."""
    for table in ("tasks", "task_history"):
        op.add_column(table, sa.Column("resources", JSONB(), comment="what it asks for; null: nothing"))
    op.add_column("tasks", sa.Column("resource_class", sa.SmallInteger(), comment="null where it asks for nothing"))
    op.add_column("workers", sa.Column("gpus", sa.Integer(), comment="that it offers to a task"))
    op.add_column("workers", sa.Column("resources", JSONB(), comment="others that it offers, by name"))
    op.create_table(
        "resource_classes",
        sa.Column("id", sa.SmallInteger(), autoincrement=False, nullable=False),
        sa.Column("request", JSONB(), nullable=False),
        sa.Column("created_at", sa.DateTime(timezone=True), nullable=False, server_default=sa.func.now()),
        sa.CheckConstraint("id > 0", name=op.f("resource_classes_id_check")),
        sa.PrimaryKeyConstraint("id", name=op.f("resource_classes_pkey")),
        sa.UniqueConstraint("request", name=op.f("resource_classes_request_key")),
    )
    op.create_table(
        "resource_lanes",
        sa.Column("resource_class", sa.SmallInteger(), nullable=False),
        sa.Column("agent_type", sa.Text(), nullable=False),
        sa.Column("priority", sa.SmallInteger(), nullable=False),
        sa.Column("virtual_time", sa.Float(), nullable=False),
        sa.PrimaryKeyConstraint("resource_class", "agent_type", "priority", name=op.f("resource_lanes_pkey")),
    )


def downgrade() -> None:
    """Tasks that ask for resources would be leased to anybody, so there must be none."""
    op.execute(
        "DO $$ BEGIN IF EXISTS (SELECT FROM resource_classes) THEN RAISE EXCEPTION "
        "'tasks ask for resources: let them end, and delete resource_classes'; END IF; END $$"
    )
    op.drop_table("resource_lanes")
    op.drop_table("resource_classes")
    for column in ("resources", "gpus"):
        op.drop_column("workers", column)
    op.drop_column("tasks", "resource_class")
    for table in ("task_history", "tasks"):
        op.drop_column(table, "resources")
