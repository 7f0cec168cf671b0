"""Functions and triggers stand in one file, `migrations/functions.sql`, from now on."""

from alembic import context

revision = "2026_11_28_functions"
down_revision = "2026_11_24_metering"
branch_labels = None
depends_on = None

# Of the file that this revision applies. Whoever edits the file adds a migration with the new digest.
functions_sha256 = "b8a89b6539b9234edee3fc395d5cb420fbc86c16c3ac200ff95aecf748ba9664"


def upgrade() -> None:
    """Apply the file when all steps have been taken."""
    context.config.attributes["apply_functions"] = True


def downgrade() -> None:
    """Nothing: the functions and triggers did the same before."""
