"""A reader that begins before the first event of a new database sees that one as well."""

from alembic import context

revision = "2026_11_28_first_event"
down_revision = "2026_11_28_lost_after"
branch_labels = None
depends_on = None

functions_sha256 = "85910e1fe530f7d11a7f7ea27c60d9eb65b1e95f0492f3129782c3a8912f86dc"


def upgrade() -> None:
    """Apply the file when all steps have been taken."""
    context.config.attributes["apply_functions"] = True


def downgrade() -> None:
    """Nothing: the function has the same shape, and only its first answer was wrong."""
