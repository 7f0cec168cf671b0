"""Keys that expire, are rotated, or serve a few times; and by which key each worker was registered."""

from typing import Any

import sqlalchemy as sa
from alembic import op

revision = "2026_11_28_credentials"
down_revision = "2026_11_28_refusals"
branch_labels = None
depends_on = None

_MOMENT = sa.DateTime(timezone=True)
_COLUMNS: tuple[sa.Column[Any], ...] = (
    sa.Column("launches", sa.UUID(), nullable=True, comment="the requested worker that this key registers, once"),
    sa.Column("uses_left", sa.Integer(), nullable=True, comment="workers that it may still register; null: any number"),
    sa.Column("expires_at", _MOMENT, nullable=True),
    sa.Column("rotated_at", _MOMENT, nullable=True),
    sa.Column("former_hash", sa.LargeBinary(), nullable=True, comment="of the secret before the last rotation"),
    sa.Column("former_expires_at", _MOMENT, nullable=True),
    sa.Column("last_used_at", _MOMENT, nullable=True, comment="right within a minute or so"),
)


def upgrade() -> None:
    """Columns that the running version does not read."""
    for column in _COLUMNS:
        op.add_column("keys", column)
    op.create_check_constraint(op.f("keys_uses_left_check"), "keys", "uses_left >= 0")
    op.create_index("keys_changed", "keys", [sa.text("greatest(revoked_at, rotated_at)")])
    registered_by = sa.Column("registered_by", sa.Text(), nullable=True, comment="id of the key that was shown")
    op.add_column("workers", registered_by)


def downgrade() -> None:
    """Earlier versions do not know that a key ends: those that do are revoked, or go with their worker."""
    op.drop_column("workers", "registered_by")
    op.drop_index("keys_changed", "keys")
    op.execute("DELETE FROM keys WHERE launches IS NOT NULL")
    op.execute(
        "UPDATE keys SET revoked_at = coalesce(revoked_at, now()) WHERE expires_at IS NOT NULL OR uses_left IS NOT NULL"
    )
    op.drop_constraint("keys_uses_left_check", "keys")
    for column in reversed(_COLUMNS):
        op.drop_column("keys", column.name)
