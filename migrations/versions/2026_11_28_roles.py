"""Keys of pools and monitors, keys with fewer scopes than their role, and one worker for each worker's key."""

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

revision = "2026_11_28_roles"
down_revision = "2026_11_28_functions"
branch_labels = None
depends_on = None

_FORMER = ("admin", "operator", "reader", "supervisor", "worker")


def upgrade() -> None:
    """The keys with which workers register become keys of pools."""
    withheld: sa.Column[list[str]] = sa.Column(
        "withheld",
        postgresql.ARRAY(sa.Text()),
        server_default="{}",
        nullable=False,
        comment="scopes of the role that it lacks",
    )
    op.add_column("keys", withheld)
    _allow(sorted([*_FORMER, "monitor", "pool"]))
    op.execute("UPDATE keys SET role = 'pool' WHERE role = 'worker' AND worker_id IS NULL")
    op.create_check_constraint(op.f("keys_worker_check"), "keys", "(role = 'worker') = (worker_id IS NOT NULL)")


def downgrade() -> None:
    """Earlier versions know neither monitors nor keys without some scopes: those are revoked."""
    op.drop_constraint("keys_worker_check", "keys")
    op.execute("UPDATE keys SET revoked_at = coalesce(revoked_at, now()) WHERE role = 'monitor' OR withheld <> '{}'")
    op.execute("UPDATE keys SET role = 'reader' WHERE role = 'monitor'")
    op.execute("UPDATE keys SET role = 'worker' WHERE role = 'pool'")
    _allow(_FORMER)
    op.drop_column("keys", "withheld")


def _allow(roles: "list[str] | tuple[str, ...]") -> None:
    listed = ", ".join(f"'{role}'" for role in roles)
    op.drop_constraint("keys_role_check", "keys")
    op.create_check_constraint(op.f("keys_role_check"), "keys", f"role IN ({listed})")
