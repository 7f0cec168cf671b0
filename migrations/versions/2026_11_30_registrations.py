"""Workers keep the id of the request that registered them, by which it is repeated."""

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects.postgresql import UUID

revision = "2026_11_30_registrations"
down_revision = "2026_11_30_key_reports"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """A column without a default; the table has few rows."""
    comment = "of its registration, which is repeated where the answer was lost"
    op.add_column("workers", sa.Column("request_id", UUID(), comment=comment))


def downgrade() -> None:
    """Former versions refuse a registration that is repeated with a key that is used up."""
    op.drop_column("workers", "request_id")
