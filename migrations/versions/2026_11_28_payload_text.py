"""Payloads that JSONB would change are kept as they were written as well."""

import sqlalchemy as sa
from alembic import op

revision = "2026_11_28_payload_text"
down_revision = "2026_11_28_dropped_events"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Only of new tasks: how the others were written is not known any more."""
    comment = "the payload as it was written, where JSONB would change it"
    for table in ("tasks", "task_history"):
        op.add_column(table, sa.Column("payload_text", sa.Text(), comment=comment))


def downgrade() -> None:
    """Payloads come back with their keys in another order."""
    for table in ("task_history", "tasks"):
        op.drop_column(table, "payload_text")
